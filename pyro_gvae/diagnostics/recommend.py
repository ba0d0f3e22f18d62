"""Recommend an estimator from a table of measurements, with reasons; a pure function."""

import math
from typing import Any, NamedTuple

import pandas as pd

from ..config.stages import Named
from ..runtime.memory import in_words

#: Two estimators are tied if the ratio of their speeds is below this.
TIE = 1.1


class Advice(NamedTuple):
    """A recommended estimator, and the reasons.

    Attributes:
        estimator: name of the estimator to train with, which may have options in brackets.
        temperature: temperature of its relaxation, or None.
        finish: an unbiased estimator for the last epochs; None if `estimator` is unbiased itself, or there is none.
        reasons: sentences with the measured numbers.
    """

    estimator: str
    temperature: float | None
    finish: str | None
    reasons: tuple[str, ...]

    @property
    def stages(self) -> str:
        """The recommendation as `stages` of a training run: 20 epochs, and 3 more to finish.

        Example:
            >>> Advice("gumbel-softmax", 0.5, "exact", ()).stages
            'gumbel-softmax[temperature=0.5]:20,exact:3'
        """
        named = self.estimator
        if self.temperature is not None:
            name, options = Named.parse(named)
            named = str(Named(name, options | {"temperature": f"{self.temperature:g}"}))
        return f"{named}:20" + ("" if self.finish is None else f",{self.finish}:3")

    def in_words(self) -> str:
        """Format the recommendation and its reasons, one line each."""
        temperature = "" if self.temperature is None else f" at temperature {self.temperature:g}"
        finish = "" if self.finish is None else f", then '{self.finish}' for the last epochs"
        return "\n".join(
            [f"Train with '{self.estimator}'{temperature}{finish}.", *(f"- {one}" for one in self.reasons)]
        )


def recommend(table: pd.DataFrame, obstacle: str | None = None) -> Advice:
    """Recommend an estimator from a measured table; nothing is measured here.

    The best estimator makes the most progress per second. `progress` is how much a step along its gradient can lower
    the loss, as a fraction of what a step along the exact gradient can; it is divided by `seconds` of a step. If speeds
    are within a tenth or two standard errors of the best, an unbiased estimator is preferred, then the exact one, then
    the one with smaller bias, then the faster one. The noise of minibatches, which all estimators share, is not
    counted.

    Without a reference, the best estimator has the least noise in equal time, relative s.d. * sqrt(seconds). Each is
    then taken at its lowest temperature, because bias grows with temperature and is not measured.

    Args:
        table: the rows of :func:`~pyro_gvae.diagnostics.advise.advise`.
        obstacle: why there is no exact gradient, or None.

    Returns:
        The recommendation with its reasons.

    Raises:
        ValueError: if no row has numbers.
    """
    measured = table[table["refused"].isna() & table["relative_std"].notna()]
    compared = measured[measured["progress"] > 0]
    refusals = [
        f"'{name}' was left out: {why}"
        for name, why in table.loc[table["refused"].notna(), ["estimator", "refused"]].drop_duplicates().values
    ]
    if not compared.empty:
        return _by_progress(compared, obstacle, refusals)
    if not measured.empty:
        return _by_noise(measured, obstacle, refusals)
    raise ValueError("Expected an estimator that accepts the problem, but found none. " + " ".join(refusals))


def _by_progress(rows: pd.DataFrame, obstacle: str | None, refusals: list[str]) -> Advice:
    rows = rows.assign(speed=rows["progress"] / rows["seconds"], speed_se=rows["progress_se"] / rows["seconds"])
    ties = _ties(rows)
    best = _preferred(ties)
    others = rows[rows["estimator"] != best["estimator"]]
    finish = _finish(best, others)
    reference = str(rows["reference"].iloc[0])
    reasons = (
        f"{_label(best)}: a step takes {_ms(best)} and makes {best['progress']:.2g} times the progress of a step along "
        f"the exact gradient.",
        _compare_with_exact(best, others),
        _compare_with_next(best, others, ties),
        _tie_rule(ties),
        _compare_temperatures(rows[rows["estimator"] == best["estimator"]]),
        _bias(best, finish),
        _memory(best, rows[rows["estimator"] == "exact"]),
        obstacle,
        f"The exact gradient is replaced by {reference}, corrected for its noise." * (reference != "exact"),
        *refusals,
    )
    return Advice(str(best["estimator"]), _temperature(best), finish, tuple(filter(None, reasons)))


def _ties(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose speed does not differ clearly from the highest."""
    top = rows.loc[rows["speed"].idxmax()]
    margin = 2 * (rows["speed_se"] ** 2 + top["speed_se"] ** 2) ** 0.5
    return rows[(rows["speed"] * TIE >= top["speed"]) | (rows["speed"] + margin >= top["speed"])]


def _preferred(ties: pd.DataFrame) -> Any:
    known = ties["unbiased"].astype(bool)
    order = ties.assign(exact=ties["estimator"] == "exact", bias=ties["relative_bias"].where(~known, 0.0)).sort_values(
        ["unbiased", "exact", "bias", "seconds"], ascending=[False, False, True, True], kind="stable"
    )
    return order.iloc[0]


def _finish(best: Any, others: pd.DataFrame) -> str | None:
    """Choose an unbiased estimator to follow a biased one: the exact one, or else the fastest."""
    unbiased = others[others["unbiased"].astype(bool)]
    if best["unbiased"] or unbiased.empty:
        return None
    return (
        "exact" if "exact" in set(others["estimator"]) else str(unbiased.loc[unbiased["speed"].idxmax()]["estimator"])
    )


def _compare_with_exact(best: Any, others: pd.DataFrame) -> str | None:
    exact_rows = others[others["estimator"] == "exact"]
    if exact_rows.empty:
        return None
    truth = exact_rows.iloc[0]
    return (
        f"Summing over all codes takes {_ms(truth)} per step, {truth['seconds'] / best['seconds']:.2g} times as long: "
        f"in equal time, {_label(best)} makes {best['speed'] / truth['speed']:.2g} times the progress."
    )


def _compare_with_next(best: Any, others: pd.DataFrame, ties: pd.DataFrame) -> str | None:
    rivals = others[others["estimator"] != "exact"].sort_values("speed", ascending=False)
    if rivals.empty:
        return None
    rival = rivals.iloc[0]
    tied = ", a tie" if rival.name in ties.index else ""
    return (
        f"Next is {_label(rival)}: a step takes {_ms(rival)} and makes {rival['progress']:.2g} times the exact "
        f"progress, which in equal time is {rival['speed'] / best['speed']:.2g} times that of {_label(best)}{tied}."
    )


def _tie_rule(ties: pd.DataFrame) -> str | None:
    if len(ties) < 2:
        return None
    return (
        f"{len(ties)} measurements tie with the fastest: within a tenth, or two standard errors. Of these, an unbiased "
        "estimator is preferred, then the exact one, then the one with the smallest bias, then the fastest."
    )


def _compare_temperatures(rows: pd.DataFrame) -> str | None:
    temperatures = rows[rows["temperature"].notna()]
    if len(temperatures) < 2:
        return None
    text = ", ".join(
        f"{row.temperature:g}: bias {row.relative_bias:.2g}, s.d. {row.relative_std:.2g}, progress {row.progress:.2g}"
        for row in temperatures.itertuples()
    )
    return f"By temperature, relative to the norm of the gradient: {text}."


def _bias(best: Any, finish: str | None) -> str | None:
    if best["unbiased"]:
        return None
    bias = f"{best['relative_bias']:.2g} ± {best['relative_bias_se']:.1g}"
    mended = "" if finish is None else f"; '{finish}' has no bias"
    return f"The bias of its gradient is {bias} times the exact gradient's norm; more samples do not reduce it{mended}."


def _by_noise(rows: pd.DataFrame, obstacle: str | None, refusals: list[str]) -> Advice:
    coolest = rows.sort_values("temperature", kind="stable").drop_duplicates("estimator")
    coolest = coolest.assign(noise=coolest["relative_std"] * coolest["seconds"] ** 0.5)
    best = coolest.loc[coolest["noise"].idxmin()]
    reasons = [
        f"{_label(best)}: a step takes {_ms(best)}, and the noise of its gradient is {best['relative_std']:.2g} times "
        "the gradient's norm, the least of all estimators in equal time.",
        "Neither bias nor the best temperature could be measured: the exact gradient was not available, and no "
        "unbiased estimator had noise small enough for its mean to replace it.",
        _memory(best, rows.iloc[:0]),
        obstacle,
    ]
    return Advice(str(best["estimator"]), _temperature(best), None, (*filter(None, reasons), *refusals))


def _memory(best: Any, exact_rows: pd.DataFrame) -> str | None:
    if math.isnan(best.get("memory", math.nan)):
        return None
    text = f"A step uses {in_words(best['memory'])} of memory"
    if best["estimator"] != "exact" and not exact_rows.empty and exact_rows["memory"].notna().all():
        text += f", a sum over all codes {in_words(exact_rows['memory'].iloc[0])}"
    return f"{text}."


def _label(row: Any) -> str:
    return f"'{row['estimator']}'" + ("" if _temperature(row) is None else f" at temperature {row['temperature']:g}")


def _temperature(row: Any) -> float | None:
    return None if pd.isna(row["temperature"]) else float(row["temperature"])


def _ms(row: Any) -> str:
    return f"{1e3 * row['seconds']:.3g} ms"
