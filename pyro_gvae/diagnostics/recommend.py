"""Which estimator to take, from what was measured of each: a pure function of a table, in plain sentences."""

import math
from typing import Any, NamedTuple

import pandas as pd

from ..runtime.memory import in_words

#: Estimators whose speeds are closer than this are equal.
TIE = 1.1


class Advice(NamedTuple):
    """What to train with.

    Attributes:
        estimator: its name.
        temperature: of its relaxation, or None.
        finish: an estimator without bias for the last epochs, or None where the first has none, or there is none.
        reasons: plain sentences with the measured numbers.
    """

    estimator: str
    temperature: float | None
    finish: str | None
    reasons: tuple[str, ...]

    def in_words(self) -> str:
        """The recommendation and its reasons, a line each."""
        heat = "" if self.temperature is None else f" at temperature {self.temperature:g}"
        finish = "" if self.finish is None else f", then '{self.finish}' for the last epochs"
        return "\n".join([f"Train with '{self.estimator}'{heat}{finish}.", *(f"- {one}" for one in self.reasons)])


def recommend(table: pd.DataFrame, obstacle: str | None = None) -> Advice:
    """What a measured table says; nothing is measured here.

    The best estimator is the one with the most progress per second: `progress`, what a step along its gradient can
    lower the loss by, as a share of what a step along the exact gradient can, over `seconds` of a step. Where speeds
    are within a tenth or two standard errors, an unbiased estimator goes first, then the exact one, then the one of
    smaller bias, then the faster. Noise of minibatches, which all share, is not counted. Without a reference it is the
    one with the least noise in equal time, relative s.d. * sqrt(seconds), each at its smallest temperature, since bias
    grows with it unseen.

    Args:
        table: the rows of :func:`~pyro_gvae.diagnostics.advise.advise`.
        obstacle: why there is no exact gradient, if there is none.

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
    best = _first_of(ties)
    others = rows[rows["estimator"] != best["estimator"]]
    finish = _finish(best, others)
    reference = str(rows["reference"].iloc[0])
    reasons = (
        f"{_called(best)}: a step takes {_ms(best)} and is worth {best['progress']:.2g} of a step along the exact "
        f"gradient.",
        _beside_enumeration(best, others),
        _beside_the_next(best, others, ties),
        _temperatures(rows[rows["estimator"] == best["estimator"]]),
        _bias(best, finish),
        _memory(best, rows[rows["estimator"] == "exact"]),
        obstacle,
        f"The exact gradient is stood in for by {reference}, whose noise is taken off." * (reference != "exact"),
        *refusals,
    )
    return Advice(str(best["estimator"]), _heat(best), finish, tuple(filter(None, reasons)))


def _ties(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose speed cannot be told from the highest."""
    top = rows.loc[rows["speed"].idxmax()]
    margin = 2 * (rows["speed_se"] ** 2 + top["speed_se"] ** 2) ** 0.5
    return rows[(rows["speed"] * TIE >= top["speed"]) | (rows["speed"] + margin >= top["speed"])]


def _first_of(ties: pd.DataFrame) -> Any:
    known = ties["unbiased"].astype(bool)
    order = ties.assign(exact=ties["estimator"] == "exact", bias=ties["relative_bias"].where(~known, 0.0)).sort_values(
        ["unbiased", "exact", "bias", "seconds"], ascending=[False, False, True, True], kind="stable"
    )
    return order.iloc[0]


def _finish(best: Any, others: pd.DataFrame) -> str | None:
    """An estimator without bias after one that has some: the exact one, or else the fastest."""
    unbiased = others[others["unbiased"].astype(bool)]
    if best["unbiased"] or unbiased.empty:
        return None
    return (
        "exact" if "exact" in set(others["estimator"]) else str(unbiased.loc[unbiased["speed"].idxmax()]["estimator"])
    )


def _beside_enumeration(best: Any, others: pd.DataFrame) -> str | None:
    exact_rows = others[others["estimator"] == "exact"]
    if exact_rows.empty:
        return None
    truth = exact_rows.iloc[0]
    return (
        f"Enumerating all codes takes {_ms(truth)} a step, {truth['seconds'] / best['seconds']:.2g} times as long: "
        f"in equal time {_called(best)} makes {best['speed'] / truth['speed']:.2g} times the progress."
    )


def _beside_the_next(best: Any, others: pd.DataFrame, ties: pd.DataFrame) -> str | None:
    rivals = others[others["estimator"] != "exact"].sort_values("speed", ascending=False)
    if rivals.empty:
        return None
    rival = rivals.iloc[0]
    tied = ", a tie" if rival.name in ties.index else ""
    return (
        f"Next is {_called(rival)}, {_ms(rival)} a step, worth {rival['progress']:.2g}: "
        f"{rival['speed'] / best['speed']:.2g} times the progress in equal time{tied}."
    )


def _temperatures(rows: pd.DataFrame) -> str | None:
    heats = rows[rows["temperature"].notna()]
    if len(heats) < 2:
        return None
    told = ", ".join(
        f"{row.temperature:g}: bias {row.relative_bias:.2g}, s.d. {row.relative_std:.2g}, progress {row.progress:.2g}"
        for row in heats.itertuples()
    )
    return f"Its temperatures, relative to the gradient's length: {told}."


def _bias(best: Any, finish: str | None) -> str | None:
    if best["unbiased"]:
        return None
    bias = f"{best['relative_bias']:.2g} ± {best['relative_bias_se']:.1g}"
    mended = "" if finish is None else f"; '{finish}' has no bias"
    return f"Its gradient is off by {bias} of the exact one's length, which no number of samples mends{mended}."


def _by_noise(rows: pd.DataFrame, obstacle: str | None, refusals: list[str]) -> Advice:
    coolest = rows.sort_values("temperature", kind="stable").drop_duplicates("estimator")
    coolest = coolest.assign(noise=coolest["relative_std"] * coolest["seconds"] ** 0.5)
    best = coolest.loc[coolest["noise"].idxmin()]
    reasons = [
        f"{_called(best)}: a step takes {_ms(best)}, and its noise is {best['relative_std']:.2g} times the gradient's "
        "length, the least of all in equal time.",
        "Neither bias nor the best temperature could be measured: there was no exact gradient, and no mean of an "
        "unbiased estimator with noise small enough to take its place.",
        _memory(best, rows.iloc[:0]),
        obstacle,
    ]
    return Advice(str(best["estimator"]), _heat(best), None, (*filter(None, reasons), *refusals))


def _memory(best: Any, exact_rows: pd.DataFrame) -> str | None:
    if math.isnan(best.get("memory", math.nan)):
        return None
    told = f"A step holds {in_words(best['memory'])}"
    if best["estimator"] != "exact" and not exact_rows.empty and exact_rows["memory"].notna().all():
        told += f", enumeration {in_words(exact_rows['memory'].iloc[0])}"
    return f"{told}."


def _called(row: Any) -> str:
    return f"'{row['estimator']}'" + ("" if _heat(row) is None else f" at temperature {row['temperature']:g}")


def _heat(row: Any) -> float | None:
    return None if pd.isna(row["temperature"]) else float(row["temperature"])


def _ms(row: Any) -> str:
    return f"{1e3 * row['seconds']:.3g} ms"
