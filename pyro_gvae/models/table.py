"""Define the observation of tables: a family for each kind of column, and the networks' view of the cells."""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..config.names import ColumnKind
from ..distributions.blocks import BinaryBlock, Block, CategoricalBlock, CountBlock, GaussianBlock, WordBlock
from ..distributions.exponential_family import ExponentialFamily
from ..distributions.table import TableRow
from .observations import Observation

#: The smallest standard deviation of a column given the code, in units of the column's standard deviation. Without it,
#: a column that repeats one number would have an unbounded density.
LEAST_SCALE = 0.01
#: The smallest mean number of times that a word occurs in a row, for words that training rows do not have.
LEAST_MEAN = 1e-6


class Column(NamedTuple):
    """A column of a table, and how its cells are encoded as numbers.

    A binary or categorical cell is the number of its level. A real cell is (value - centre) / spread, and a positive
    cell is (log value - centre) / spread. Counts are not changed. The centre and spread of a "count" are those of
    log(1 + count), and of a "word" those of its count.

    Attributes:
        name: its name.
        kind: the kind of its cells.
        levels: the levels of a binary or categorical column, as text.
        centre: the mean of its training cells.
        spread: the standard deviation of its training cells.
    """

    name: str
    kind: ColumnKind
    levels: tuple[str, ...] = ()
    centre: float = 0.0
    spread: float = 1.0


@final
class TableObservation(Observation):
    """Rows of a table: each column has a family of its kind, and NaN marks a missing cell.

    Binary cells are Bernoulli and categorical cells categorical. Real cells are normal and positive cells log-normal,
    with a learned standard deviation for each column. Counts are negative binomial, with a learned dispersion for each
    column. All columns of the kind "word" together are multinomial, given the number of words in the row. Log-densities
    are those of the values in their original units: see :class:`~pyro_gvae.distributions.blocks.GaussianBlock`. A
    missing cell is integrated out of the likelihood; counts of words may not be missing.

    Networks see one-hots, standardized numbers, log(1 + count) of words and, for each column that is not a word,
    whether its cell is missing.

    Args:
        columns: the columns.

    Raises:
        ValueError: if there are no columns, or a binary or categorical column has too few levels.

    Example:
        >>> table = TableObservation([Column("sex", "binary", ("f", "m")), Column("age", "positive", (), 3.6, 0.4)])
        >>> table(torch.zeros(5, 1, table.natural_dim(2))).log_prob(torch.tensor([[1.0, math.nan]])).shape
        torch.Size([5, 1])
    """

    takes_missing = True
    data_range = (0.0, 0.0)  # a row of zeros is possible in every table
    expected = "of cells of their columns' kinds, or NaN"

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        if not columns:
            raise ValueError("Expected a table with columns, but found none.")
        self.columns = tuple(columns)
        for column in self.columns:
            _check_levels(column)
        kinds = [column.kind for column in self.columns]
        self._numbers = {
            "binary": _where(kinds, "binary"),
            "categorical": _where(kinds, "categorical"),
            "gaussian": _where(kinds, "real", "positive"),
            "count": _where(kinds, "count"),
            "word": _where(kinds, "word"),
        }
        self._numbers["optional"] = sorted({*range(len(kinds))} - {*self._numbers["word"]})
        for name, numbers in self._numbers.items():
            self._keep(name, torch.tensor(numbers, dtype=torch.long))
        categorical, gaussian, counts, words = map(self._of_kind, ("categorical", "gaussian", "count", "word"))
        is_level, levels = _places_of_levels([len(one.levels) for one in categorical])
        self._keep("is_level", is_level)
        self._keep("levels", levels)
        self._length = max(1, round(sum(one.centre for one in words)))  # of a row, in words
        for name, values in {
            "units": [math.log(one.spread) + (one.centre if one.kind == "positive" else 0.0) for one in gaussian],
            "slopes": [one.spread if one.kind == "positive" else 0.0 for one in gaussian],
            "count_centres": [one.centre for one in counts],
            "count_spreads": [one.spread for one in counts],
            "word_log_means": [math.log(max(one.centre, LEAST_MEAN)) for one in words],
        }.items():
            self._keep(name, torch.tensor(values, dtype=torch.float64))
        if gaussian:
            self.log_scale = nn.Parameter(torch.zeros(len(gaussian)))
        if counts:
            self.log_dispersion = nn.Parameter(torch.zeros(len(counts)))

    def _of_kind(self, name: str) -> list[Column]:
        return [self.columns[place] for place in self._numbers[name]]

    def _keep(self, name: str, values: Tensor) -> None:
        """Keep values in a buffer; they follow from the columns, so the state does not have them."""
        self.register_buffer(f"_{name}", values, persistent=False)

    @property
    def scale(self) -> Tensor:
        """Standard deviations of real and positive columns given the code, in units of the columns' own."""
        return (self.log_scale.mul(2).exp() + LEAST_SCALE**2).sqrt()

    def blocks(self) -> list[Block]:
        """Return one block for each family that the table has, with the columns of its kinds."""
        found: list[Block] = []
        if self._numbers["binary"]:
            found.append(BinaryBlock(self._buffer("binary")))
        if self._numbers["categorical"]:
            found.append(CategoricalBlock(*map(self._buffer, ("categorical", "is_level", "levels"))))
        if self._numbers["gaussian"]:
            units, slopes = (self._buffer(name).to(self.log_scale.dtype) for name in ("units", "slopes"))
            found.append(GaussianBlock(self._buffer("gaussian"), self.scale, units, slopes))
        if self._numbers["count"]:
            found.append(CountBlock(self._buffer("count"), self.log_dispersion))
        if self._numbers["word"]:
            found.append(WordBlock(self._buffer("word"), self._length))
        return found

    @override
    def natural_dim(self, data_dim: int) -> int:
        self._check_width(data_dim)
        return sum(block.width for block in self.blocks())

    @override
    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Build the distribution of rows from natural parameters, block by block."""
        blocks = self.blocks()
        centres = self.log_means().to(natural.dtype)
        if len(centres):  # the decoder returns the difference from the mean of the column
            natural = torch.cat([natural[..., : -len(centres)], natural[..., -len(centres) :] + centres], -1)
        return TableRow(natural, blocks)

    def log_means(self) -> Tensor:
        """Return the logarithms of typical counts (C,), of the count columns and then of the words."""
        return torch.cat([self._buffer("count_centres"), self._buffer("word_log_means")])

    @override
    def input_dim(self, data_dim: int) -> int:
        return self.natural_dim(data_dim) + len(self._numbers["optional"])

    @override
    def inputs(self, x: Tensor) -> Tensor:
        parts = []
        for block in self.blocks():
            cells = x.index_select(-1, block.places)
            kept = ~cells.isnan()
            cells = torch.where(kept, cells, 0.0)
            match block:
                case CategoricalBlock():
                    parts.append(block.one_hots(cells, kept))
                case BinaryBlock():
                    parts.append(torch.where(kept, 2 * cells - 1, 0.0))
                case CountBlock():
                    centres, spreads = (self._buffer(f"count_{name}").to(x.dtype) for name in ("centres", "spreads"))
                    parts.append(torch.where(kept, (cells.log1p() - centres) / spreads, 0.0))
                case WordBlock():
                    parts.append(cells.log1p())
                case _:
                    parts.append(cells)
        return torch.cat([*parts, x.index_select(-1, self._buffer("optional")).isnan().to(x.dtype)], -1)

    @override
    def check(self, x: Tensor, name: str = "data") -> None:
        """Refuse cells that are impossible in their columns; the message names the first.

        Raises:
            ValueError: if a cell is impossible.
        """
        self._check_width(x.shape[-1])
        for block in self.blocks():
            cells = x.index_select(-1, block.places)
            bad = ~block.accepts(cells)
            if bool(bad.any()):
                *rows, place = bad.nonzero()[0].tolist()
                column = self.columns[int(block.places[place])]
                raise ValueError(
                    f"Expected {name} with {column.kind} cells in column '{column.name}', but found "
                    f"{cells[(*rows, place)].item():g} in row {rows[0] + 1 if rows else 1}."
                )

    def _check_width(self, data_dim: int) -> None:
        if data_dim != len(self.columns):
            raise ValueError(f"Expected rows of {len(self.columns)} cells, but found {data_dim}.")

    def _buffer(self, name: str) -> Tensor:
        return self.get_buffer(f"_{name}")


def _check_levels(column: Column) -> None:
    least = {"binary": 2, "categorical": 1}.get(column.kind, 0)
    if len(column.levels) < least:
        raise ValueError(f"Expected the levels of the {column.kind} column '{column.name}', but found {column.levels}.")


def _places_of_levels(widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the arguments `is_level` and `levels` of `CategoricalBlock`, for columns of these numbers of levels."""
    # From lists, since sizes are also computed on the device "meta", whose tensors have no values.
    most = max(widths, default=0)
    is_level = torch.tensor([[place < width for place in range(most)] for width in widths], dtype=torch.bool)
    levels = [row * most + place for row, width in enumerate(widths) for place in range(width)]
    return is_level.reshape(len(widths), most), torch.tensor(levels, dtype=torch.long)


def _where(kinds: Sequence[ColumnKind], *wanted: ColumnKind) -> list[int]:
    return [place for place, kind in enumerate(kinds) if kind in wanted]
