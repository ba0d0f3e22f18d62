"""Describe what the tables of a comparison show, in sentences of escaped HTML."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from ..runs.tables import BOUND, CELL, is_bounded, seed_differences
from .style import signed


class Judged(NamedTuple):
    """A column by which estimators are judged, and its name in a sentence."""

    column: str
    words: str


EVIDENCE = Judged("test_log_evidence", "exact test log-evidence")
ELBO = Judged("test_elbo", "exact test ELBO")
#: The same two if there are continuous latents, which are drawn.
DRAWN_EVIDENCE = Judged(BOUND.name, "importance-weighted bound of the test log-evidence")
DRAWN_ELBO = Judged("test_elbo", "estimated test ELBO")


class Best(NamedTuple):
    """The highest point of an estimator's mean curve, which lies before its end.

    Attributes:
        step: its training step.
        value: the mean over seeds, in nats per datum.
        falls: how far each seed fell from there to the end.
    """

    step: int
    value: float
    falls: pd.Series

    @property
    def text(self) -> str:
        """The value and the step in words."""
        return f"{self.value:.2f} at step {self.step:,}"


#: A fall after the best point is mentioned if it exceeds this many nats per datum.
LEAST_FALL = 0.1
#: Durations that differ by less than this factor count as equal.
LEAST_FACTOR = 1.1


def judged_by(table: pd.DataFrame) -> tuple[Judged, Judged]:
    """Return the log-evidence and the ELBO that a table has."""
    return (DRAWN_EVIDENCE, DRAWN_ELBO) if is_bounded(table) else (EVIDENCE, ELBO)


def finding(rows: pd.DataFrame, judged: Judged | None = None, when: str = "At the end of training") -> Markup:
    """Say in one sentence which estimator is best, and by how much.

    The two best are compared on the seeds that every estimator has finished. They count as different if the mean of
    their paired differences exceeds two standard errors.

    Args:
        rows: One row for each finished (estimator, seed).
        judged: The column to compare; the log-evidence if None.
        when: The moment at which the rows were measured, which begins the sentence.

    Returns:
        Escaped HTML.
    """
    judged = judged or judged_by(rows)[0]
    shared = _shared(rows, judged)
    ranking = shared.groupby("estimator")[judged.column].mean().sort_values(ascending=False)
    if ranking.empty:
        return Markup("There is no finding yet: no seed has been finished by every estimator.")
    best = ranking.index[0]
    if len(ranking) == 1:
        values = shared[judged.column]
        is_alone = rows["estimator"].nunique() == 1
        others = "no other estimator has finished" if is_alone else "no other estimator has only finite numbers"
        return Markup("{}, <b>{}</b> has an {} of {} nats per datum ({}); {}, so there is no comparison.").format(
            when, best, judged.words, _mean(values), _count(values), others
        )
    second, superlative = ranking.index[1], "higher" if len(ranking) == 2 else "highest"
    difference = seed_differences(shared, best, second)[judged.column]
    if len(difference) == 1:
        return Markup(
            "{}, on the only finished seed, <b>{}</b> has the {} {}, "
            "{} nats per datum above <b>{}</b>; one seed has no standard error."
        ).format(when, best, superlative, judged.words, _mean(difference), second)
    evidence = f"paired over {_count(difference)}, ahead on {(difference > 0).sum()}"
    if difference.mean() > 2 * difference.sem():
        return Markup("{}, <b>{}</b> has the {} {}, {} nats per datum above <b>{}</b> ({}).").format(
            when, best, superlative, judged.words, _mean(difference), second, evidence
        )
    return Markup(
        "{}, <b>{}</b> and <b>{}</b> differ by less than two standard errors in {}: "
        "the first is {} nats per datum above the second ({})."
    ).format(when, best, second, judged.words, _mean(difference), evidence)


def further_findings(metrics: pd.DataFrame, final: pd.DataFrame) -> list[Markup]:
    """Say which estimator has the best ELBO, which is ahead after equal time, and which peaked before the end.

    Args:
        metrics: One row for each evaluation.
        final: One row for each finished (estimator, seed).

    Returns:
        Sentences of escaped HTML.
    """
    sentences = []
    evidence, elbo = judged_by(final)
    if _shared(final, elbo)["estimator"].nunique() > 1:
        sentences.append(finding(final, elbo))
    shared = _shared(final, evidence)
    durations = shared.groupby("estimator")["seconds"].mean()
    if len(durations) > 1 and durations.max() > LEAST_FACTOR * durations.min():
        seconds, fastest = durations.min(), durations.idxmin()
        then = at_seconds(metrics.merge(shared[CELL]), seconds)
        when = f"After equal time ({_few_digits(seconds)} s, which {fastest} took)"
        late = then.loc[~then["evaluated"] & (then["estimator"] != fastest), "estimator"].unique()
        if not len(late):
            sentences += [finding(then, judged, when) for judged in (evidence, elbo)]
        else:
            text = (
                "{}, nothing is known of {}, which had not been evaluated by then: try more <code>--evaluations</code>."
            )
            sentences.append(Markup(text).format(when, Markup(", ").join(Markup("<b>{}</b>").format(n) for n in late)))
    return sentences + _peaks(metrics, final)


def at_seconds(metrics: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """Interpolate each run's ELBO and log-evidence at a number of seconds of training, between its evaluations.

    Args:
        metrics: One row for each evaluation.
        seconds: The moment; after its end, a run keeps its last values.

    Returns:
        One row for each (estimator, seed); `evaluated` tells whether the run had been evaluated in training by then; if
        not, its numbers are mostly those of the untrained networks.

    Example:
        >>> rows = pd.DataFrame({"estimator": "exact", "seed": 0, "step": [0, 10], "seconds": [0.0, 4.0],
        ...                      "test_elbo": [-9.0, -5.0], "test_log_evidence": [-8.0, -4.0]})
        >>> at_seconds(rows, 1.0)["test_elbo"].tolist()
        [-8.0]
    """
    rows = []
    for (name, seed), run in metrics.groupby(CELL, sort=False):
        run = run.sort_values("step")
        values = {one.column: np.interp(seconds, run["seconds"], run[one.column]) for one in judged_by(metrics)}
        evaluated = bool((run["seconds"].iloc[1:] <= seconds).any()) or len(run) < 2
        rows.append({"estimator": name, "seed": seed, "seconds": seconds, "evaluated": evaluated} | values)
    return pd.DataFrame(rows)


def remarks(summary: pd.DataFrame) -> list[Markup]:
    """Say what else the table shows: the bound that is furthest from its model, the speeds, too few seeds.

    Args:
        summary: From `tables.summarize`.

    Returns:
        Sentences of escaped HTML; numbers that were not measured are left out.
    """
    sentences = []
    gaps = summary["gap"].dropna()
    if len(gaps) and gaps.abs().max() >= 0.01:
        name = gaps.abs().idxmax()
        side = "above" if gaps[name] > 0 else "below"
        text = "The bound that <b>{}</b> itself optimizes is {:.2f} nats per datum {} the ELBO of its discrete model"
        text = Markup(text).format(name, abs(gaps[name]), side)
        beyond = ""
        if not is_bounded(summary):
            excess = summary.loc[name, "test_objective"] - summary.loc[name, EVIDENCE.column]
            if excess >= 0.01:
                beyond = f", and {excess:.2f} above its log-evidence, which no bound of that model can exceed"
        sentences.append(text + beyond + ".")
    speeds = summary["steps_per_second"].dropna()
    if len(speeds) > 1:
        fast, slow = speeds.idxmax(), speeds.idxmin()
        text = "<b>{}</b> made {} steps per second and <b>{}</b> made {}, a factor of {}."
        numbers = (_few_digits(value) for value in (speeds[fast], speeds[slow], speeds[fast] / speeds[slow]))
        sentences.append(Markup(text).format(fast, next(numbers), slow, *numbers))
    if 1 < summary["seeds"].max() < 5:
        sentences.append(Markup("With so few seeds, the standard errors themselves are inaccurate."))
    return sentences


def best_points(metrics: pd.DataFrame, final: pd.DataFrame) -> dict[tuple[str, str], Best]:
    """Find the highest points of mean curves over the finished seeds, where they lie before the end.

    Args:
        metrics: One row for each evaluation.
        final: One row for each finished (estimator, seed).

    Returns:
        By estimator and column; estimators whose highest point is the last one are absent.
    """
    found = {}
    runs = metrics.merge(final[CELL])
    for judged in reversed(judged_by(runs)):
        for name in final["estimator"].unique():
            curves = runs[runs["estimator"] == name].pivot(index="step", columns="seed", values=judged.column).dropna()
            if len(curves) and (step := curves.mean(axis=1).idxmax()) != curves.index[-1]:
                best = Best(int(step), float(curves.loc[step].mean()), curves.loc[step] - curves.iloc[-1])
                found[name, judged.column] = best
    return found


def _peaks(metrics: pd.DataFrame, final: pd.DataFrame) -> list[Markup]:
    """Name the estimators whose mean curve was significantly higher before the end."""
    sentences = []
    words = {judged.column: judged.words for judged in judged_by(metrics)}
    for (name, column), best in best_points(metrics, final).items():
        falls = best.falls
        if falls.mean() > max(LEAST_FALL, 2 * falls.sem() if len(falls) > 1 else 0.0):
            text = (
                "The {} of <b>{}</b> was highest at step {}, and then fell by {} nats per datum: train for fewer "
                "epochs, or use <code>pyro-gvae train --patience</code>."
            )
            sentences.append(Markup(text).format(words[column], name, f"{best.step:,}", _mean(falls)))
    return sentences


def _shared(rows: pd.DataFrame, judged: Judged) -> pd.DataFrame:
    """Select the estimators whose numbers are all finite, on the seeds that all of them have."""
    sound = rows.groupby("estimator").filter(lambda group: group[judged.column].notna().all())
    present = sound.groupby("seed")["estimator"].transform("nunique")
    return sound[present == sound["estimator"].nunique()]


def _few_digits(value: float) -> str:
    """Format a positive number with three digits, or with all before the point, but without an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _mean(values: pd.Series) -> str:
    mean, error = values.mean(), values.sem()
    # An error that would round to 0.00 gets decimals up to its first digit.
    decimals = 2 if not 0 < error < 0.005 else min(4, math.ceil(-math.log10(error)))
    spread = f" ± {error:.{decimals}f}" if len(values) > 1 else ""
    return signed(mean, f".{decimals}f") + spread


def _count(values: pd.Series) -> str:
    return "one seed" if len(values) == 1 else f"{len(values)} seeds"
