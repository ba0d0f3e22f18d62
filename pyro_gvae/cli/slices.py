"""Commands on data that are read in slices; they write their files slice by slice."""

from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config.commands import EncodeConfig, ImputeConfig
from ..config.models import Labels
from ..config.units import in_bytes
from ..data import tables
from ..data.cells import check_labelled
from ..data.labels import judged, use_of_labels
from ..data.parquet import ParquetTable
from ..data.rows import Rows
from ..evaluate.encoded import Encoded, encoded
from ..evaluate.generate import numbers_of
from ..evaluate.impute import impute
from ..models.table import Column
from ..runs.files import replacing
from ..train.trained import Trained, label_among
from .said import Said

if TYPE_CHECKING:
    import pandas as pd

#: Rows of a slice.
ROWS_AT_A_TIME = 10_000


def encode_rows(trained: Trained, rows: Rows, config: EncodeConfig, path: Path) -> Said:
    """Write the codes of rows as CSV and as Parquet, both slice by slice."""
    arrow: Any = import_module("pyarrow")
    writer: Any = None
    kinds: set[bytes] = set()
    shown = None
    with ExitStack() as stack, torch.random.fork_rng():
        csv, parquet = (stack.enter_context(replacing(path.with_name(f"{path.name}.{end}"))) for end in ENDS)
        torch.manual_seed(config.seed)
        if use_of_labels(trained.vae) is Labels.GIVEN:
            rows = rows.labelled(every=True)  # refuses a row without a label
        for frame, codes in _encoded(trained, rows, config):
            kinds |= {code.tobytes() for code in codes.unique(dim=0).numpy()}
            frame.to_csv(csv, mode="a", header=shown is None, index=False)
            found = arrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            if writer is None:
                writer = stack.enter_context(import_module("pyarrow.parquet").ParquetWriter(parquet, found.schema))
            writer.write_table(found)
            shown = frame.head() if shown is None else shown
    assert shown is not None
    count = len(rows) if config.num_data is None else min(len(rows), config.num_data)
    text = f"{shown.to_string()}\n{count} data, {len(kinds)} different codes."
    content = {"model": trained.name, "different_codes": len(kinds), "data": count, "codes": f"{path}.csv"}
    return Said(f"{text}\n\nfiles: {path}.csv, .parquet", content)


#: Name endings of the files that codes are written to.
ENDS = ("csv", "parquet")


def _encoded(trained: Trained, rows: Rows, config: EncodeConfig) -> "Iterator[tuple[pd.DataFrame, torch.Tensor]]":
    """Yield the table of codes of each slice, and its discrete codes."""
    left = len(rows) if config.num_data is None else config.num_data
    for x, labels in rows.parts(ROWS_AT_A_TIME):
        x, labels = x[:left], None if labels is None else labels[:left]
        given: Any = judged(trained.vae, x, labels)
        found = encoded(trained.vae, given, config.kind, max_memory=in_bytes(config.max_memory))
        frame, codes = code_table(found, labels)
        if labels is not None:  # the same type in all slices
            frame["label"] = frame["label"].astype("Int64").mask(frame["label"] < 0)
        yield frame, codes
        left -= len(frame)
        if left <= 0:
            return


def code_table(found: Encoded, labels: torch.Tensor | None) -> "tuple[pd.DataFrame, torch.Tensor]":
    """Return codes as a table, with their numbers, probabilities and labels, and the categories as one tensor."""
    numbers, joint = numbers_of(found.codes), found.numbers()
    columns = {f"{name}_{n}": column for name, own in numbers.items() for n, column in enumerate(own.T.numpy())}
    import pandas as pd  # imported here, since most commands on a model need none

    frame = pd.DataFrame(columns)
    if joint is not None:
        frame["code"] = joint.numpy()
    if found.probs is not None:
        frame["p(code)"] = found.probs.numpy()
    if labels is not None:
        frame["label"] = labels.numpy()
    return frame, torch.cat([own for own in numbers.values() if not own.is_floating_point()], 1)


def impute_rows(trained: Trained, table: ParquetTable, config: ImputeConfig, path: Path) -> Said:
    """Fill the missing cells of a table slice by slice."""
    count, shown = 0, None
    notes: dict[str, None] = {}
    with ExitStack() as stack:
        kinds = ("table", "cells", "levels")
        files = {kind: stack.enter_context(replacing(path.with_name(f"{path.name}-{kind}.csv"))) for kind in kinds}
        label = label_among(trained, table.names) if use_of_labels(trained.vae) is Labels.GIVEN else None
        lacking = [name for name in table.names if table.may_lack(name)]
        for cells, rows in table.frames():
            found = impute(
                trained.vae,
                _as_read_whole(cells, lacking),
                labels=None if label is None else _labels_of(cells, label, rows),
                averaging=config.averaging,
                num_particles=config.num_particles,
                max_memory=in_bytes(config.max_memory),
                seed=config.seed + count,  # other samples in each slice
            )
            notes |= dict.fromkeys(found.notes())
            for kind, frame in found.frames().items():
                if "row" in frame and kind != "table":
                    frame["row"] += rows[0]
                frame.to_csv(files[kind], mode="a", header=shown is None, index=False)
            count += len(found.cells)
            shown = found.cells.head(10) if shown is None else shown
    assert shown is not None
    told = [f"{count} cells of {table.num_rows} rows filled.", *notes]
    text = "\n".join([shown.to_string(index=False), *told])
    files_text = f"files: {path}-table.csv, -cells.csv, -levels.csv"
    return Said(
        f"{text}\n\n{files_text}",
        {"model": trained.name, "filled": count, "table": f"{path}-table.csv", "notes": list(notes)},
    )


def _labels_of(cells: "pd.DataFrame", label: Column, rows: np.ndarray) -> torch.Tensor:
    labels = tables.encoded(cells, [label], rows)[:, 0]
    check_labelled(labels.isnan().numpy(), rows)
    return labels.long()


def _as_read_whole(cells: "pd.DataFrame", lacking: list[str]) -> "pd.DataFrame":
    """Convert a slice to the types of the whole table: a column of whole numbers with missing cells has floats.

    Args:
        cells: some rows.
        lacking: columns with missing cells.
    """
    types: dict[str, Any] = {name: object for name, kind in cells.dtypes.items() if kind == "category"}
    import pandas as pd

    types |= {name: float for name in lacking if pd.api.types.is_integer_dtype(cells[name].dtype)}
    return cells.astype(types)
