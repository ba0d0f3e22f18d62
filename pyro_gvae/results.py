"""A run folder and its numbers: atomic files, a JSON line per evaluation, and the table over seeds.

A run folder survives a crash at any moment: whole files are replaced atomically, and `metrics.jsonl` only grows,
so that at worst its last line is torn. Everything here reads and writes results; nothing here trains.
"""

import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd


class Measure(NamedTuple):
    """One column of the results table: its name in `summarize`, and how people read it."""

    name: str
    heading: str
    unit: str
    decimals: int


MEASURES = (
    Measure("test_elbo", "test ELBO", "nats", 2),
    Measure("test_log_evidence", "test log p(x)", "nats", 2),
    Measure("test_objective", "own bound", "nats", 2),
    Measure("gap", "gap", "nats", 2),
    Measure("seconds", "seconds", "s", 1),
    Measure("steps_per_second", "steps/s", "1/s", 1),
)
CELL = ["estimator", "seed"]
PAIRED_MEASURES = tuple(m for m in MEASURES if m.name in ("test_elbo", "test_log_evidence", "seconds"))


# ---------------------------------------------------------------------------------------------- files


def new_run_folder(path: Path | None = None, *, prefix: str = "compare") -> Path:
    """Creates a folder that did not exist before, so that no run ever writes over another.

    Args:
        path: The folder to create, with its parents; by default `runs/PREFIX-YYYYmmdd-HHMMSS`, with a
            suffix `-2`, `-3`, ... where that name is taken.
        prefix: The first word of the default name.

    Returns:
        The new, empty folder.

    Raises:
        ValueError: If `path` exists, or if the folder cannot be created; the sentence names the folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> new_run_folder(Path(mkdtemp()) / "first").name
        'first'
    """
    for candidate in _fresh_names(prefix) if path is None else [Path(path)]:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(
                f"Expected a folder that can be created, but found that '{candidate}' cannot: {error.strerror}. "
                "Try another place."
            ) from error
        return candidate
    raise ValueError(f"Expected a new run folder, but found that '{path}' exists. Try another name.")


def _fresh_names(prefix: str) -> Iterator[Path]:
    name = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    yield Path("runs") / name
    for number in itertools.count(2):
        yield Path("runs") / f"{name}-{number}"


def cell_path(run: Path, estimator: str, seed: int) -> Path:
    """Where the arrays of one (estimator, seed) lie in a run folder.

    Example:
        >>> cell_path(Path("run"), "exact", 0).as_posix()
        'run/cells/exact-seed0.safetensors'
    """
    return run / "cells" / f"{estimator}-seed{seed}.safetensors"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    If the block raises, the temporary file is removed and the old file stays as it was. The data reach the disk
    before the name does, so that a reader sees the old file or the new one and never half of either.

    Args:
        path: The file to write or to replace; its folder is made if it is absent.

    Yields:
        The path to write to, in the same folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> target = Path(mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8: wholly or not at all (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented, strict JSON, atomically; a number that is not finite becomes `null`."""
    write_text_atomic(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Writes the columns of `frame` (not its index) as CSV, atomically."""
    write_text_atomic(path, frame.to_csv(index=False))


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Appends `record` as one line of strict JSON, on the disk when this returns.

    A number that is not finite becomes `null`. If a crash left the last line torn, the record starts a new one, so
    that only the torn line is lost.

    Args:
        path: The file, made if it is absent.
        record: Names to numbers, strings, `None`, or NumPy and torch scalars.
    """
    line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """The same value in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_lines(path: Path) -> pd.DataFrame:
    """Reads a file of JSON lines into a table; a line that a crash tore is left out, and that is said.

    Args:
        path: A file that `append_json_line` wrote.

    Returns:
        One row for each complete line, in order; `null` is NaN. `frame.attrs["torn_lines"]` lists the numbers
        (from 1) of the lines left out.

    Warns:
        RuntimeWarning: If a line was left out.
    """
    records, torn = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            torn.append(number)
        else:
            records.append(record)
    if torn:
        numbers = ", ".join(map(str, torn))
        warnings.warn(f"{path}: left out torn line {numbers} (an interrupted write).", RuntimeWarning, stacklevel=2)
    frame = pd.DataFrame(records)
    # A column of nothing but null would be of type object, and arithmetic on it would fail.
    frame = frame.astype({name: float for name in frame if frame[name].isna().all()})
    frame.attrs["torn_lines"] = torn
    return frame


# -------------------------------------------------------------------------------------------- numbers


def final_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of each (estimator, seed).

    Args:
        metrics: One row for each evaluation, with the columns of `metrics.jsonl`.

    Returns:
        One row for each (estimator, seed) in order of appearance, with the same columns;
        `steps_per_second` is that of the whole training, step / seconds (NaN if there was none).

    Example:
        >>> rows = [{"estimator": "exact", "seed": 0, "step": s, "seconds": s / 8, "steps_per_second": None}
        ...         for s in (0, 10, 20)]
        >>> final_rows(pd.DataFrame(rows))[["step", "seconds", "steps_per_second"]].values.tolist()
        [[20.0, 2.5, 8.0]]
    """
    # A stable sort: of two evaluations at one step (a resumed run) the later line counts.
    last = metrics.sort_values("step", kind="stable").drop_duplicates(CELL, keep="last")
    last = metrics[CELL].drop_duplicates().merge(last, on=CELL)  # in order of appearance
    return last.assign(steps_per_second=last["step"] / last["seconds"].where(last["seconds"] > 0))


def summarize(final: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error over seeds, for each estimator.

    The standard error is s.d. / sqrt(n), with the s.d. that divides by n - 1; NaN with one seed. A seed whose number is
    not finite makes the mean NaN: leaving it out would flatter the estimator.

    Args:
        final: One row for each (estimator, seed), from `final_rows`.

    Returns:
        Indexed by estimator, in order of appearance: `seeds` (their number) and, for each measure M, `M` (the
        mean) and `M_se`. The measures are `test_elbo`, `test_log_evidence`, `test_objective` (the estimator's own
        bound), `gap` = test_objective - test_elbo, how much that bound claims beyond the discrete ELBO (all nats per
        datum), `seconds` and `steps_per_second`.

    Example:
        >>> final = pd.DataFrame({"estimator": ["exact"] * 2, "seed": [0, 1], "test_elbo": [-20.0, -22.0],
        ...                       "test_log_evidence": -19.0, "test_objective": -18.0, "seconds": 3.0,
        ...                       "steps_per_second": 9.0})
        >>> summarize(final).loc["exact", ["test_elbo", "test_elbo_se", "gap"]].tolist()
        [-21.0, 1.0, 3.0]
    """
    final = final.assign(gap=final["test_objective"] - final["test_elbo"])
    by_estimator = final.groupby("estimator", sort=False)
    columns = {"seeds": by_estimator["seed"].nunique()}
    for measure in MEASURES:
        by_measure = by_estimator[measure.name]
        columns[measure.name] = by_measure.agg(lambda values: values.mean(skipna=False))
        columns[f"{measure.name}_se"] = by_measure.agg(lambda values: values.sem(skipna=False))
    return pd.DataFrame(columns)


def seed_differences(final: pd.DataFrame, estimator: str, baseline: str) -> pd.DataFrame:
    """`estimator` minus `baseline` on each seed that both have.

    Args:
        final: One row for each (estimator, seed), from `final_rows`.
        estimator: The one subtracted from.
        baseline: The one subtracted.

    Returns:
        Indexed by seed: the differences of `test_elbo`, `test_log_evidence` (nats per datum) and `seconds`.
    """
    names = [measure.name for measure in PAIRED_MEASURES]
    one, other = (final[final["estimator"] == name].set_index("seed")[names] for name in (estimator, baseline))
    seeds = one.index.intersection(other.index)
    return one.loc[seeds] - other.loc[seeds]


def paired_differences(final: pd.DataFrame, baseline: str = "exact") -> pd.DataFrame:
    """Mean and standard error of each estimator's differences from `baseline` on the same seeds.

    The same seed means the same initial weights and batches, so what they share cancels in the difference, and its
    standard error is as a rule much smaller than those of the two means.

    Args:
        final: One row for each (estimator, seed), from `final_rows`.
        baseline: The estimator that the others are compared with.

    Returns:
        Indexed by every other estimator: `seeds` (those that both have) and the mean and `_se` of the
        differences of `test_elbo`, `test_log_evidence` (nats per datum) and `seconds`.

    Raises:
        ValueError: If `baseline` is not among the estimators.

    Example:
        >>> final = pd.DataFrame({"estimator": ["a", "a", "exact", "exact"], "seed": [0, 1, 0, 1], "seconds": 1.0,
        ...                       "test_elbo": [-5.0, -8.0, -4.0, -5.0], "test_log_evidence": -3.0})
        >>> paired_differences(final).loc["a", ["test_elbo", "test_elbo_se"]].tolist()
        [-2.0, 1.0]
    """
    estimators = list(final["estimator"].unique())
    if baseline not in estimators:
        found = ", ".join(estimators) or "none"
        raise ValueError(
            f"Expected the baseline '{baseline}' among the estimators, but found {found}. Try one of them."
        )
    rows = {}
    for estimator in estimators:
        if estimator != baseline:
            difference = seed_differences(final, estimator, baseline)
            rows[estimator] = {"seeds": len(difference)}
            for name in difference:
                rows[estimator][name] = difference[name].mean(skipna=False)
                rows[estimator][f"{name}_se"] = difference[name].sem(skipna=False)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("estimator")


# ---------------------------------------------------------------------------------------------- words


def table_text(summary: pd.DataFrame, measures: tuple[Measure, ...] = MEASURES, *, sign: str = "-") -> pd.DataFrame:
    """The numbers of a summary as text, "mean ± standard error", padded so that the columns align.

    Args:
        summary: From `summarize` or `paired_differences`.
        measures: The columns to show.
        sign: The `format` sign option: "-" for values, "+" for differences.

    Returns:
        The same index, one column of strings for each measure, all of one width; a dash where there is no number.
    """
    columns = {}
    for measure in measures:
        means = [_number(value, measure.decimals, sign) for value in summary[measure.name]]
        errors = [_number(value, measure.decimals, "-") for value in summary[f"{measure.name}_se"]]
        left, right = (max(map(len, texts), default=0) for texts in (means, errors))
        if not any(errors):
            columns[measure.name] = [(mean or "–").rjust(left) for mean in means]
        else:
            columns[measure.name] = [
                (mean or "–").rjust(left) + (f" ± {error.rjust(right)}" if error else " " * (right + 3))
                for mean, error in zip(means, errors, strict=True)
            ]
    return pd.DataFrame(columns, index=summary.index)


def _number(value: float, decimals: int, sign: str) -> str:
    # z: a value that rounds to zero has no sign.
    return "" if math.isnan(value) else f"{value:{sign}z.{decimals}f}"


def format_table(summary: pd.DataFrame) -> str:
    """The results table for the terminal: a row for each estimator, aligned, with its units.

    Args:
        summary: From `summarize`.

    Returns:
        Lines of text, with a note that explains the columns.
    """
    text = table_text(summary)
    columns = [
        ["estimator", "", *map(str, summary.index)],
        ["seeds", "", *map(str, summary["seeds"])],
        *([measure.heading, measure.unit, *text[measure.name]] for measure in MEASURES),
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in zip(*columns, strict=True)
    ]
    spread = "mean ± standard error over seeds" if (summary["seeds"] > 1).any() else "one seed, so no standard error"
    return "\n".join(
        [
            *lines,
            f"Discrete model on the test set, nats per datum, higher is better; {spread}.",
            "own bound: what the estimator itself optimizes; gap: own bound - test ELBO.",
        ]
    )
