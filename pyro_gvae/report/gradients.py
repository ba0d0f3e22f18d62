"""Write the table of the gradient laboratory as figures and one self-contained page."""

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from ..config.gradients import GradientsConfig
from ..config.models import MODELS
from ..runs.config import read_config
from ..runs.tables import with_errors
from .gradient_figures import draw_against_temperature, draw_along_training
from .pages import Shown, embedded, printable, write_page
from .settings import defaults_of, documentation, files_beside, sort_settings
from .style import save_figure

#: The columns that identify a row.
CELL = ["trained_by", "seed", "epoch", "estimator", "temperature", "wrt"]
MEASURES = ("relative_bias", "relative_std", "cosine", "snr", "mse", "mse_at_budget", "progress")
WRT = {"logits": "gradients of the guide's logits", "parameters": "gradients of all parameters"}
FIGURES = {
    "temperature": (
        draw_against_temperature,
        "Against temperature",
        "Bias, standard deviation, direction, and error at equal seconds, against temperature. Horizontal lines: "
        "estimators without one. The gradient of a sum over all codes has neither bias nor variance, and is left out.",
    ),
    "training": (
        draw_along_training,
        "Along training",
        "The same against epochs of training, each estimator at its best temperature.",
    ),
}


def write_gradients_report(folder: Path, table: pd.DataFrame) -> Path:
    """Draw the figures of measured gradients, and write report.html.

    Args:
        folder: the laboratory's folder, with its config.json.
        table: the rows of gradients.jsonl.

    Returns:
        The path of the page.
    """
    figures = []
    for kind in table["wrt"].unique():
        for name, (draw, title, caption) in FIGURES.items():
            figure = draw(table, kind)
            if figure is not None:
                svg = save_figure(figure, folder / "figures", f"{name}-{kind}")
                figures.append(Shown(svg.stem, embedded(svg), f"{title}: {WRT[kind]}", caption))
    written = read_config(folder)
    sizes = MODELS[written["model"]].sizes if written.get("model") in MODELS else {}
    settings = sort_settings(written, defaults_of(GradientsConfig, sizes), written)
    return write_page(
        folder / "report.html",
        "measured.html.j2",
        title=f"Gradients of estimators: {printable(folder.resolve().name)}",
        kicker="pyro-gvae gradients",
        lead="Each estimator's gradient compared with the exact one, a sum over all codes.",
        finding=gradients_finding(table),
        remarks=replacements(table),
        left_out=refusals(table),
        command=None,
        figures=figures,
        table=gradients_text(table),
        note="Mean ± standard error. Bias and standard deviation are relative to the norm of the exact gradient; the "
        "squared error, to its square. Equal seconds: those of one exact gradient.",
        reproduce=written.get("command"),
        settings=settings,
        files=files_beside(folder),
        documentation=documentation("howto/gradients.md"),
    )


def gradients_finding(table: pd.DataFrame) -> Markup:
    """Say in one sentence which estimator is nearest to the exact gradient in equal time, late in training.

    Args:
        table: the rows of gradients.jsonl.

    Returns:
        Escaped HTML.
    """
    judged = "mse_at_budget" if "mse_at_budget" in table else "relative_bias"
    rows = table[(table["estimator"] != "exact") & table.get(judged, pd.Series(dtype=float)).notna()]
    if rows.empty:
        return Markup("No estimator except the exact one has been measured.")
    last = rows[rows["epoch"] == rows["epoch"].max()]
    last = last[last["wrt"] == last["wrt"].iloc[0]]
    best = last.loc[last[judged].idxmin()]
    when = "At initialization" if best["epoch"] == 0 else f"After {best['epoch']:g} epochs of {best['trained_by']}"
    what = {
        "mse_at_budget": "the smallest squared error in the time of one exact gradient, {:.2g} of its squared norm",
        "relative_bias": "the smallest bias, {:.2g} of the norm of the exact gradient",
    }[judged].format(best[judged])
    at = "" if pd.isna(best["temperature"]) else f" at temperature {best['temperature']:g}"
    bias = "" if judged == "relative_bias" else f", and a bias of {best['relative_bias']:.2g} of its norm"
    return Markup("{}, <b>{}</b>{} has {}{}.").format(when, best["estimator"], at, what, bias)


def gradients_text(table: pd.DataFrame) -> pd.DataFrame:
    """Format the rows that have numbers, each with its standard error if it has one."""
    text = table[CELL].drop(columns="temperature").join(with_errors(table, ("temperature", *MEASURES)))
    if "seconds" in table:
        text["ms per step"] = (1e3 * table["seconds"]).map("{:.3g}".format)
    text = text[~table["refused"].notna()].rename(columns={"trained_by": "trained by"})
    return text[["estimator", *(name for name in text if name != "estimator")]]


def replacements(table: pd.DataFrame) -> list[str]:
    """Say what replaces the exact gradient if it cannot be summed."""
    names = table.get("reference", pd.Series(dtype=str)).dropna().unique()
    return [f"The exact gradient is replaced by {name}." for name in sorted(names) if name != "exact"]


def refusals(table: pd.DataFrame) -> list[str]:
    """List the estimators that refused the program, and why."""
    return sorted(
        {f"{row['estimator']}: {row['refused']}" for row in table.to_dict("records") if pd.notna(row.get("refused"))}
    )
