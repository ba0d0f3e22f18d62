"""Gather the cells of a comparison: curves, one table of results, means over seeds, paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..runs.config import read_train_config
from ..runs.files import write_json_lines
from ..runs.folder import PICTURES, cell_error, cell_folder, holder
from ..runs.frames import read_json_lines, write_csv
from ..runs.records import TrainLine
from ..runs.tables import choose_baseline, labelled, paired_differences, summarize
from .grid import Cell

#: Columns of an evaluation that describe a moment of the training, not the result of the run.
MOMENTARY = {"stage", "elbo_is", "finished", "prior_temperature"}


def is_finished(run: Path, cell: Cell) -> bool:
    """Tell whether a cell was trained to the end of its plan, and all of its files were written."""
    folder = cell_folder(run, cell.label, cell.seed)
    return (folder / PICTURES).exists() and bool(_history(folder)) and _stages(folder) == cell.train.stages


def _stages(folder: Path) -> str | None:
    """Return the stages that a cell was trained with; None if they are not known."""
    try:
        return read_train_config(folder).stages
    except ValueError:
        return None


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return read_json_lines(path, TrainLine).to_dict("records") if path.exists() else []


def gather(run: Path, cells: Sequence[Cell]) -> pd.DataFrame:
    """Write the results of all cells of a run folder.

    - metrics.jsonl: every evaluation of every cell, with the cell's place in the grid; `finished` is true for the last
      evaluation of a cell that was trained to its end.
    - results.csv: one row for each cell: its place in the grid, `status` (finished, failed, unfinished), `error` (its
      error message, or which process trains it), and the last evaluation if it is finished.
    - summary.csv: means and standard errors over seeds. differences.csv: means and standard errors of the differences
      from the baseline with the same seed and setting.

    Returns:
        The results.
    """
    lines: list[dict[str, Any]] = []
    rows = []
    for cell in cells:
        history = _history(cell_folder(run, cell.label, cell.seed))
        of_cell = [line | cell.coordinates | {"finished": False} for line in history]
        row = cell.coordinates | {"status": "unfinished", "error": ""}
        if is_finished(run, cell):
            of_cell[-1]["finished"] = True
            row |= {name: value for name, value in of_cell[-1].items() if name not in MOMENTARY}
            row |= {"status": "finished", "steps_per_second": row["step"] / row["seconds"]}
        elif error := cell_error(run, cell.label, cell.seed):
            row |= {"status": "failed", "error": error}
        elif (by := holder(cell_folder(run, cell.label, cell.seed))) is not None:
            row |= {"error": f"held by {by}"}
        lines += of_cell
        rows.append(row)
    results = pd.DataFrame(rows)
    write_json_lines(run / "metrics.jsonl", lines)
    write_csv(run / "results.csv", results)
    final = labelled(results[results["status"] == "finished"])
    if len(final):
        write_csv(run / "summary.csv", _with_names(summarize(final), final))
        write_csv(run / "differences.csv", _with_names(paired_differences(final, choose_baseline(final)), final))
    return results


def read_results(run: Path) -> pd.DataFrame:
    """Read the results that `gather` wrote.

    Args:
        run: The run folder of a comparison.

    Returns:
        One row for each cell.
    """
    texts = ("setting", "error")  # pandas would read empty texts as NaN
    return pd.read_csv(run / "results.csv", dtype=dict.fromkeys(texts, str)).fillna(dict.fromkeys(texts, ""))


def _with_names(table: pd.DataFrame, final: pd.DataFrame) -> pd.DataFrame:
    """Replace the labels in a table's index by the columns estimator and setting."""
    names = final.drop_duplicates("estimator").set_index("estimator")[["plan", "setting"]]
    return names.join(table, how="inner").rename(columns={"plan": "estimator"})
