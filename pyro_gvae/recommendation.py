"""Which estimator to take, from what was measured of each: a pure function of a table, in plain sentences."""

import math
from typing import Any, NamedTuple

import pandas as pd

from .memory import in_words

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
        table: the rows of :func:`advise`.
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
    top = rows.loc[rows["speed"].idxmax()]
    margin = 2 * (rows["speed_se"] ** 2 + top["speed_se"] ** 2) ** 0.5
    ties = rows[(rows["speed"] * TIE >= top["speed"]) | (rows["speed"] + margin >= top["speed"])]
    known = ties["unbiased"].astype(bool)
    order = ties.assign(exact=ties["estimator"] == "exact", bias=ties["relative_bias"].where(~known, 0.0)).sort_values(
        ["unbiased", "exact", "bias", "seconds"], ascending=[False, False, True, True], kind="stable"
    )
    best = order.iloc[0]
    others = rows[(rows["estimator"] != best["estimator"]) & rows["unbiased"].astype(bool)]
    exact_rows = rows[rows["estimator"] == "exact"]
    reasons = [
        f"{_called(best)}: a step takes {_ms(best)} and is worth {best['progress']:.2g} of a step along the exact "
        f"gradient."
    ]
    if best["estimator"] != "exact" and not exact_rows.empty:
        truth = exact_rows.iloc[0]
        reasons.append(
            f"Enumerating all codes takes {_ms(truth)} a step, {truth['seconds'] / best['seconds']:.2g} times as long: "
            f"in equal time {_called(best)} makes {best['speed'] / truth['speed']:.2g} times the progress."
        )
    rivals = rows[rows["estimator"] != best["estimator"]].sort_values("speed", ascending=False)
    rivals = rivals[rivals["estimator"] != "exact"] if best["estimator"] != "exact" else rivals
    if not rivals.empty:
        rival = rivals.iloc[0]
        tied = rival.name in ties.index
        reasons.append(
            f"Next is {_called(rival)}, {_ms(rival)} a step, worth {rival['progress']:.2g}: "
            f"{rival['speed'] / best['speed']:.2g} times the progress in equal time{', a tie' if tied else ''}."
        )
    heats = rows[(rows["estimator"] == best["estimator"]) & rows["temperature"].notna()]
    if len(heats) > 1:
        told = ", ".join(
            f"{row.temperature:g}: bias {row.relative_bias:.2g}, s.d. {row.relative_std:.2g}, progress "
            f"{row.progress:.2g}"
            for row in heats.itertuples()
        )
        reasons.append(f"Its temperatures, relative to the gradient's length: {told}.")
    finish = None
    if not best["unbiased"]:
        bias = f"{best['relative_bias']:.2g} ± {best['relative_bias_se']:.1g}"
        left = f"Its gradient is off by {bias} of the exact one's length, which no number of samples mends"
        if not others.empty:
            chosen = others.loc[others["speed"].idxmax()] if exact_rows.empty else exact_rows.iloc[0]
            finish = str(chosen["estimator"])
            left += f"; '{finish}' has no bias"
        reasons.append(f"{left}.")
    reasons += filter(None, [_memory(best, exact_rows), obstacle])
    reference = str(rows["reference"].iloc[0])
    if reference != "exact":
        reasons.append(f"The exact gradient is stood in for by {reference}, whose noise is taken off.")
    return Advice(str(best["estimator"]), _heat(best), finish, (*reasons, *refusals))


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
