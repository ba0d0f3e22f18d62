"""Judge one training run in sentences of escaped HTML: against a baseline, against its training data, by its codes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from ..config.names import ElboIs
from .findings import LEAST_FALL
from .pictures import perplexity
from .style import signed

#: A latent whose perplexity is below this hardly varies over the data.
LEAST_PERPLEXITY = 1.1
#: The share of a training, at its end, over which a rise of the ELBO shows that it has not converged.
LAST_SHARE = 0.2
#: What an evaluation draws, by what it is.
DRAWN: dict[ElboIs, str] = {
    "sampled": ", from one sample for each datum",
    "codes summed": ", with all codes summed and continuous latents drawn once for each",
}


class Baseline(NamedTuple):
    """The log-likelihood of the test data without a code.

    Attributes:
        words: what was fitted to the training data.
        value: nats per datum.
    """

    words: str
    value: float


def training_finding(last: Mapping[str, Any], baseline: Baseline | None = None) -> Markup:
    """Say in one sentence where a run's discrete ELBO ends, and whether that is more than the baseline.

    Args:
        last: the run's last evaluation.
        baseline: the log-likelihood of a distribution without a code.

    Returns:
        Escaped HTML.

    Example:
        >>> print(training_finding({"test_elbo": -17.25, "train_elbo": -16.5, "elbo_is": "exact"}))
        The discrete ELBO ends at <b>−17.25</b> nats per datum on test.
    """
    if last["elbo_is"] == "none":
        return Markup("The discrete ELBO is unknown: the program has no discrete model that could be evaluated.")
    part = "train" if pd.isna(last["test_elbo"]) else "test"
    elbo = last[f"{part}_elbo"]
    sampled = DRAWN.get(last["elbo_is"], "")
    text = Markup("The discrete ELBO ends at <b>{}</b> nats per datum on {}{}").format(signed(elbo), part, sampled)
    if baseline is None or not np.isfinite([elbo, baseline.value]).all():
        return text + "."
    side = "above" if elbo > baseline.value else "below"
    verdict = "" if elbo > baseline.value else ", so the model has learned less than that"
    return text + Markup(": <b>{} {}</b> {}, which reaches {} without a code{}.").format(
        signed(abs(elbo - baseline.value)), side, baseline.words, signed(baseline.value), verdict
    )


def training_remarks(metrics: pd.DataFrame, usage: np.ndarray | None, *, go_on: str) -> list[Markup]:
    """Say how far train is from test, whether training was too long or too short, and how many categories are in use.

    Args:
        metrics: one row for each evaluation.
        usage: the probability of each category, averaged over data, (N, K); None if unknown.
        go_on: the command that trains for longer.

    Returns:
        Sentences of escaped HTML.
    """
    last = metrics.iloc[-1]
    sentences = []
    if pd.notna(last["train_elbo"]) and pd.notna(last["test_elbo"]):
        gap = last["train_elbo"] - last["test_elbo"]
        text = Markup("On train it ends at {}, {} {} test.")
        sides = "above" if gap >= 0 else "below"
        sentences.append(text.format(signed(last["train_elbo"]), signed(abs(gap)), sides))
    part = "test_elbo" if pd.notna(last["test_elbo"]) else "train_elbo"
    sentences += _length(metrics[metrics[part].notna()], part, go_on)
    return sentences + ([] if usage is None else [_use(usage)])


def _length(metrics: pd.DataFrame, part: str, go_on: str) -> list[Markup]:
    """Say whether the ELBO fell after its best point, or was still rising at the end."""
    if len(metrics) < 3 or not np.isfinite(metrics[part].astype(float)).all():
        return []
    words, last = part.replace("_elbo", " ELBO"), metrics.iloc[-1]
    best = metrics.loc[metrics[part].astype(float).idxmax()]
    fall = best[part] - last[part]
    if fall > LEAST_FALL:
        text = (
            "The {} was highest at step {}, {}, and then fell by {}: train for fewer epochs, or stop earlier with "
            "<code>--patience</code>."
        )
        return [Markup(text).format(words, f"{best['step']:,.0f}", signed(best[part]), signed(fall))]
    before = metrics[metrics["step"] <= (1 - LAST_SHARE) * last["step"]]
    rise = 0.0 if before.empty else last[part] - before.iloc[-1][part]
    if rise <= LEAST_FALL:
        return []
    text = "The {} rose by {} in the last fifth of the training, so it may rise further: <code>{}</code>."
    return [Markup(text).format(words, signed(rise), go_on)]


def _use(usage: np.ndarray) -> Markup:
    """Say how many categories are in use, and which latents hardly vary."""
    each = perplexity(usage)
    text = Markup("On average {:.1f} of the {} categories of a latent are in use (perplexity)").format(
        each.mean(), usage.shape[1]
    )
    idle = np.flatnonzero(each < LEAST_PERPLEXITY)
    if not len(idle):
        return text + "; every latent varies over the data."
    numbers = ", ".join(map(str, idle[:10])) + (", .." if len(idle) > 10 else "")
    return text + Markup("; {} of {} latents hardly vary: {}.").format(len(idle), len(each), numbers)
