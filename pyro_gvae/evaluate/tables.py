"""Format an evaluation as a table for the terminal."""

from collections import defaultdict

from .metrics import Evaluation


def evaluation_table(found: Evaluation) -> str:
    """Format the metrics for the terminal, one per row with the parts side by side, followed by the warnings."""
    by_metric: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in found.rows:
        name = row["metric"].replace("_", " "), row["unit"], row["method"]
        by_metric[name][row["part"]] = _in_words(row["value"], row["standard_error"], row["unit"])
    parts = list(dict.fromkeys(row["part"] for row in found.rows))
    cells = [("metric", "unit", "method", *parts)]
    cells += [(*name, *(texts.get(part, "") for part in parts)) for name, texts in by_metric.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.append("The discrete model, per datum, mean ± standard error over data.")
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in found.warnings)])


def _in_words(value: float, standard_error: float | None, unit: str) -> str:
    if unit == "latents":
        return f"{value:.0f}"
    return f"{value:.3f}" + ("" if standard_error is None else f" ± {standard_error:.3f}")
