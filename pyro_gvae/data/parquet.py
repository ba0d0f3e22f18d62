"""Read a table in a Parquet file, one row group after another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from ..runtime.extras import import_extra
from .files import damaged, file_digest

if TYPE_CHECKING:
    import pandas as pd

#: Rows of a group that are decoded at a time.
DECODED_AT_A_TIME = 2**14
#: Bytes of a cell as a number.
BYTES_OF_A_CELL = 4


class Frame(NamedTuple):
    """Some rows of a table, and their numbers from 0."""

    cells: "pd.DataFrame"
    rows: np.ndarray


@final
class ParquetTable:
    """A table in a Parquet file, read by row groups.

    Args:
        path: the file.

    Attributes:
        path: the file.
        names: the names of its columns.
        sizes: the number of rows of each group.
        starts: the number of the first row of each group.

    Raises:
        ValueError: if it is not a Parquet file, or the extra is not installed.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import_extra("pyarrow", extra="parquet", purpose="Parquet files")
        self.path = path.expanduser()
        with self._opened() as file:
            metadata, schema = file.metadata, file.schema_arrow
            self.sizes = np.array([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self.starts = np.cumsum(self.sizes) - self.sizes
        index = (schema.pandas_metadata or {}).get("index_columns", [])
        self.names = [name for name in schema.names if name not in index]
        self._texts = [field.name for field in schema if str(field.type) in ("string", "large_string")]

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self.sizes.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of all cells as numbers."""
        return self.num_rows * len(self.names) * BYTES_OF_A_CELL

    @cached_property
    def digest(self) -> str:
        """The hash of the file."""
        return file_digest(self.path)

    def frames(
        self,
        groups: Iterable[int] | None = None,
        names: Sequence[str] | None = None,
        kept: Callable[[int, int], np.ndarray] | None = None,
    ) -> Iterator[Frame]:
        """Read row groups, a few thousand rows at a time. Texts become categories.

        Args:
            groups: the numbers of the groups, in reading order; all if None.
            names: the columns to read; all if None.
            kept: a function of the first row's number and the number of rows, that returns a mask of the rows to keep;
                all if None.
        """
        arrow: Any = import_module("pyarrow")
        with self._opened(read_dictionary=self._texts) as file:
            for group in range(len(self.sizes)) if groups is None else groups:
                start = int(self.starts[group])
                for batch in file.iter_batches(
                    DECODED_AT_A_TIME,
                    row_groups=[group],
                    columns=self.names if names is None else list(names),
                    use_threads=False,
                ):
                    rows = np.arange(start, start + len(batch))
                    start += len(batch)
                    if kept is not None:
                        mask = kept(int(rows[0]), len(rows))
                        batch, rows = batch.filter(arrow.array(mask)), rows[mask]
                    if len(rows):
                        yield Frame(batch.replace_schema_metadata(None).to_pandas(use_threads=False), rows)

    def may_lack(self, name: str) -> bool:
        """Tell whether a column may have missing cells, from the file's statistics alone."""
        with self._opened() as file:
            place = file.schema.names.index(name)
            said = [file.metadata.row_group(group).column(place).statistics for group in range(len(self.sizes))]
        return any(one is None or not one.has_null_count or one.null_count > 0 for one in said)

    @contextmanager
    def _opened(self, **options: Any) -> Iterator[Any]:
        arrow: Any = import_module("pyarrow")
        try:
            with import_module("pyarrow.parquet").ParquetFile(self.path, buffer_size=2**20, **options) as file:
                yield file
        except arrow.ArrowException as error:
            raise damaged(self.path, error) from error
