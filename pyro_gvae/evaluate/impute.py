"""Fill the missing cells of a table from the exact posterior predictive p(missing cells | known cells)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import exact
from ..config.models import Labels
from ..data.cells import text_of
from ..data.labels import judged, use_of_labels
from ..data.tables import decoded, encoded
from ..distributions.blocks import BinaryBlock, CategoricalBlock, CountBlock, GaussianBlock
from ..distributions.table import TableRow
from ..models.base import VAE
from ..models.table import Column, TableObservation
from ..programs.modes import judging
from .generate import given_codes

if TYPE_CHECKING:
    import pandas as pd

#: Rows in one exact sum.
ROWS_AT_A_TIME = 10_000


class Imputed(NamedTuple):
    """A table whose missing cells are filled, and how certain that is.

    Attributes:
        table: all cells in the units of the table; a missing one has its most probable level, or its mean.
        cells: a row for each cell that was missing: `row` (from 1), `column`, `value`, the `probability` of a level, or
            the `standard_deviation` of a number.
        levels: the probability of each level of such a cell: `row`, `column`, `level`, `probability`.
    """

    table: "pd.DataFrame"
    cells: "pd.DataFrame"
    levels: "pd.DataFrame"


def impute(vae: VAE, data: Any, *, labels: Tensor | None = None, max_memory: float | None = None) -> Imputed:
    r"""Fill the missing cells of each row from the known ones.

    Given the code, cells are independent, so a missing cell v of a row whose known cells are x has

    .. math:: p(v | x) = \sum_z p(z | x) \, p(v | z)

    with the exact posterior of all codes. The guide is not used. The mean of a number is its prediction of least
    squared error, and the most probable level that of fewest errors.

    Args:
        vae: a ready program of a table, whose latents are all discrete.
        data: a `pandas.DataFrame` with the columns of the table, or rows (M, D) as the program takes them.
        labels: integers (M,), of a program of data given their labels, which all probabilities are then given.
        max_memory: bytes that the exact sum may use.

    Raises:
        ValueError: if the program is not one of a table, the table has other columns or levels, or there are too many
            codes.

    Example:
        >>> import pandas as pd
        >>> from pyro_gvae import CategoricalVAE
        >>> columns = Column("sex", "binary", ("f", "m")), Column("age", "real", (), 40.0, 10.0)
        >>> vae = CategoricalVAE(2, 2, 3, (5,), TableObservation(columns))
        >>> found = impute(vae, pd.DataFrame({"sex": ["f", None], "age": [30.0, 51.0]}))
        >>> found.cells["column"].tolist(), len(found.levels), found.table.isna().any().any()
        (['sex'], 2, np.False_)
    """
    import pandas as pd

    observation = vae.observation
    if not isinstance(observation, TableObservation):
        raise ValueError(
            f"Expected a program of a table, but found data {observation.expected} of {type(observation).__name__}. "
            "Try a run with --data TABLE."
        )
    columns = observation.columns
    x = encoded(data, columns) if isinstance(data, pd.DataFrame) else data
    x = x.to(next(vae.parameters()))
    means = _means(vae, x, labels, max_memory).cpu().numpy()
    filled = data.copy() if isinstance(data, pd.DataFrame) else decoded(x, columns)
    cells: list[Any] = []
    levels: list[Any] = []
    start = 0
    for place, column in enumerate(columns):
        width = len(column.levels) or 2
        of_column, start = means[:, start : start + width], start + width
        rows = np.flatnonzero(x[:, place].isnan().cpu().numpy())
        if column.levels:
            best = of_column[rows].argmax(1)
            values: Any = np.array(column.levels, object)[best]
            probabilities = of_column[rows, best]
            cells += [
                (row + 1, column.name, *rest, None) for row, *rest in zip(rows, values, probabilities, strict=True)
            ]
            levels += [
                (row + 1, column.name, level, of_column[row, number])
                for row in rows
                for number, level in enumerate(column.levels)
            ]
        else:
            values = of_column[rows, 0]
            spreads = np.sqrt(np.maximum(of_column[rows, 1] - values**2, 0.0))
            cells += [
                (row + 1, column.name, value, None, sd) for row, value, sd in zip(rows, values, spreads, strict=True)
            ]
        if len(rows):
            _fill(filled, column.name, rows, values)
    return Imputed(
        filled,
        _by_row(cells, ["row", "column", "value", "probability", "standard_deviation"]),
        _by_row(levels, ["row", "column", "level", "probability"]),
    )


def _means(vae: VAE, x: Tensor, labels: Tensor | None, max_memory: float | None) -> Tensor:
    """Return :func:`predictive_means` of all rows; those of one label at a time, if the program is given labels."""
    judged(vae, x, labels)  # refuses rows without the label that they need
    if use_of_labels(vae) is not Labels.GIVEN or labels is None:
        return torch.cat([predictive_means(vae, rows, max_memory) for rows in x.split(ROWS_AT_A_TIME)])
    places = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    parts = [(int(labels[rows[0]]), part) for rows in places for part in rows.split(ROWS_AT_A_TIME)]
    found = [predictive_means(vae, x[rows], max_memory, label=label) for label, rows in parts]
    return torch.cat(found)[torch.cat([rows for _, rows in parts]).argsort()]


def _by_row(records: list[Any], names: list[str]) -> "pd.DataFrame":
    import pandas as pd

    numbers = {name: float for name in names if name in ("probability", "standard_deviation")}
    return pd.DataFrame(records, columns=names).astype(numbers).sort_values("row", kind="stable", ignore_index=True)


def _fill(table: "pd.DataFrame", name: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Put values into the cells of a column; levels as the column writes them, such as 1.0 where its text is 1."""
    import pandas as pd

    place = [str(column) for column in table.columns].index(name)
    cells = table.iloc[:, place]
    written = {text_of(level): level for level in cells.dropna().unique()}
    new = cells.astype(object)
    new.iloc[rows] = [written.get(value, value) for value in values]
    table.isetitem(place, new if cells.dtype == object else pd.Series(new).infer_objects())


@judging
@torch.no_grad()
def predictive_means(vae: VAE, x: Tensor, max_memory: float | None = None, *, label: int | None = None) -> Tensor:
    """Compute moments of each column under the posterior predictive, given the cells of x (B, D) that are there.

    Returns:
        Side by side, in float64, for each column: the probabilities of its levels, or the mean and the mean square of
        its values in their own units.
    """
    assert isinstance(vae.observation, TableObservation)
    columns = vae.observation.columns

    def statistic(codes: dict[str, Tensor]) -> Tensor:
        row = given_codes(vae, codes, label=label)
        assert isinstance(row, TableRow)
        return moments(row, columns).flatten(0, -2)

    given = (x,) if label is None else (x, torch.full((len(x),), label, device=x.device))
    return exact.posterior_mean(vae, *given, statistic=statistic, max_memory=max_memory)


def moments(row: TableRow, columns: tuple[Column, ...]) -> Tensor:
    """Return the probabilities of levels, or the mean and the mean square of values, of each column side by side."""
    found: dict[int, Tensor] = {}
    for block, natural in row.by_block():
        block = block.double()
        places = block.places.tolist()
        match block:
            case BinaryBlock():
                p = natural.sigmoid()
                found |= {place: torch.stack([1 - p[..., i], p[..., i]], -1) for i, place in enumerate(places)}
            case CategoricalBlock():
                probs = block.log_probs(natural).exp()
                found |= {place: probs[..., i, : len(columns[place].levels)] for i, place in enumerate(places)}
            case CountBlock():
                mean = natural.exp()
                square = mean.square() * (1 + (-block.log_dispersion).exp()) + mean
                found |= {place: torch.stack([mean[..., i], square[..., i]], -1) for i, place in enumerate(places)}
            case GaussianBlock():
                for i, place in enumerate(places):
                    found[place] = _of_numbers(columns[place], natural[..., i], block.scale[i])
    return torch.cat([found[place] for place in range(len(columns))], -1)


def _of_numbers(column: Column, loc: Tensor, scale: Tensor) -> Tensor:
    mean, variance = column.centre + column.spread * loc, (column.spread * scale).square()
    if column.kind == "positive":  # log-normal
        return torch.stack([(mean + variance / 2).exp(), (2 * mean + 2 * variance).exp()], -1)
    return torch.stack([mean, mean.square() + variance], -1)
