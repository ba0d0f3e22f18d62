"""Format an evaluation as a table for the terminal."""

import math

from .metrics import Evaluation


def evaluation_table(found: Evaluation) -> str:
    """Format the metrics for the terminal, one per row with the parts side by side, followed by the warnings."""
    metrics = found.metrics.assign(
        text=[_in_words(row.value, row.standard_error, row.unit) for row in found.metrics.itertuples()],
        metric=found.metrics["metric"].str.replace("_", " "),
    )
    order = ["metric", "unit", "method"]
    parts = metrics["part"].unique().tolist()
    table = metrics.pivot(index=order, columns="part", values="text")[parts].fillna("")
    table = table.loc[list(dict.fromkeys(metrics[order].itertuples(index=False, name=None)))].reset_index()
    lines = [table.to_string(index=False), "The discrete model, per datum, mean ± standard error over data."]
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in found.warnings)])


def _in_words(value: float, standard_error: float, unit: str) -> str:
    if unit == "latents":
        return f"{value:.0f}"
    return f"{value:.3f}" + ("" if math.isnan(standard_error) else f" ± {standard_error:.3f}")
