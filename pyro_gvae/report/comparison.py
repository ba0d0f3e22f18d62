"""Write the report of a comparison, one self-contained HTML page.

The page shows only the results in the run folder. It lists unfinished, damaged and missing results, and leaves them out
of the finding and the tables.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..config.compare import CompareConfig, default_estimators
from ..config.models import MODELS, code_in_words
from ..config.names import ModelName
from ..config.units import codes_in_words
from ..runs.config import commands_of
from ..runs.contents import Run, read_run
from ..runs.folder import check_writable
from ..runs.tables import (
    NUM_DRAWS,
    choose_baseline,
    is_bounded,
    measures_of,
    paired_differences,
    paired_measures_of,
    summarize,
    table_text,
)
from . import comparison_figures as plots
from . import pictures
from .findings import best_points, finding, further_findings, remarks
from .pages import embedded, link_to_explorer, printable, write_page
from .settings import Settings, defaults_of, documentation, files_beside, sort_settings
from .style import Style, estimator_styles, save_figure

#: Entries of a config.json that describe the data.
OF_DATA = frozenset({"columns_of_data", "data_in_slices", "data_sha256", "image_shape", "label_of_data"})


def write_report(run: Path) -> Path:
    """Draw the figures of a run folder and write its report.

    This reads `config.json`, `metrics.jsonl` and `cells/`, and writes `figures/*.png`, `figures/*.svg` and
    `report.html`, a page that needs no network and no script. The same results give the same bytes.

    Args:
        run: The run folder, finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: If the folder is not a run folder; the message names what is absent or unreadable.
    """
    contents = read_run(run)
    check_writable(run)
    estimators = contents.estimators
    summary = summarize(contents.final).reindex(estimators).fillna({"seeds": 0}).astype({"seeds": int})
    styles = estimator_styles(estimators)
    figures = _draw(contents, summary, styles)
    sizes = contents.config["num_latents"], contents.config["num_categories"]
    model: ModelName = contents.config["model"] if contents.config.get("model") else "categorical"
    num_layers = contents.config.get("num_layers") or 1  # older folders lack it
    return write_page(
        run / "report.html",
        "report.html.j2",
        name=printable(run.resolve().name),
        config=contents.config,
        data_name=printable(Path(contents.config.get("data") or contents.config["dataset"]).name),
        code=code_in_words(model, *sizes, num_layers, contents.config.get("latent_dim") or 0),
        codes=codes_in_words(sizes[0] * num_layers, sizes[1]),
        estimators=estimators,
        finding=finding(contents.final),
        remarks=[*further_findings(contents.metrics, contents.final), *remarks(summary)],
        missing=contents.missing,
        explorer=link_to_explorer(run),
        best=best_points(contents.metrics, contents.final),
        settings=_settings(contents, model),
        command=commands_of(contents.config),
        documentation=documentation("howto/compare.md"),
        summary=summary,
        summary_text=table_text(summary, measures_of(summary)),
        measures=measures_of(summary),
        paired_measures=paired_measures_of(summary),
        num_draws=NUM_DRAWS if is_bounded(summary) else None,
        **_paired(contents.final),
        figures={name: embedded(save_figure(figure, run / "figures", name)) for name, figure in figures.items()},
        colors={name: style.color for name, style in styles.items()},
        category_pictures=pictures.has_category_pictures(contents.pictures),
        files=files_beside(run),  # after the figures were saved
    )


def _settings(contents: Run, model: ModelName) -> Settings:
    """Sort the settings; those of an older folder may lack the estimators, which its cells name."""
    given = {name: value for name, value in contents.config.items() if name not in OF_DATA}
    if given.get("estimators") is None:
        given["estimators"] = list(dict.fromkeys(cell["estimator"] for cell in contents.config["cells"]))
    usual = {"estimators": default_estimators(model, contents.config["epochs"])}
    defaults = defaults_of(CompareConfig, MODELS[model].sizes) | usual
    seconds = float(contents.final["seconds"].sum()) if len(contents.final) else None
    return sort_settings(given, defaults, contents.config, seconds=seconds)


def _paired(final: pd.DataFrame) -> dict[str, Any]:
    """Compute the paired differences from the baseline, or None if there is only one estimator."""
    if final["plan"].nunique() < 2:
        return {"paired": None}
    baseline = choose_baseline(final)
    paired = paired_differences(final, baseline)
    return {
        "paired": paired,
        "baseline": baseline,
        "paired_text": table_text(paired, paired_measures_of(paired), sign="+"),
    }


# -------------------------------------------------------------------------------------------- figures


def _draw(run: Run, summary: pd.DataFrame, styles: Mapping[str, Style]) -> dict[str, Figure]:
    """Draw the figures that the results allow."""
    figures = {}
    if len(run.final):
        figures["final-values"] = plots.final_values(summary, styles)
    if len(run.metrics):
        figures["learning-curves"] = plots.learning_curves(run.metrics, styles)
        figures["training-gap"] = plots.training_gap(run.metrics, styles)
    if run.pictures:
        if "columns_of_data" not in run.config:  # tables have no pictures
            height, width = run.config["image_shape"]
            figures["reconstructions"] = pictures.reconstructions(run.pictures, (height, width))
            figures["prior-samples"] = pictures.prior_samples(run.pictures, (height, width))
        figures["code-usage"] = pictures.code_usage(run.pictures, run.config["image_shape"])
    return figures
