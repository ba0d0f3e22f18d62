"""Fill the missing cells of a table from the posterior predictive p(missing cells | known cells)."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config.checks import MOST_OPERATIONS, check_particles
from ..config.models import Labels
from ..data.cells import text_of
from ..data.labels import judged, use_of_labels
from ..data.tables import decoded, encoded
from ..models.base import VAE
from ..models.table import Column, TableObservation
from ..programs.look import look
from ..programs.rows import in_parts
from ..programs.runs import bind_pair
from ..runtime.rng import own_randomness
from .bounds import is_summable
from .importance import FEW_EFFECTIVE_SAMPLES, WARNING_FRACTION
from .predictive import Predictive, origin, predictive_means, sampled_predictive_means

if TYPE_CHECKING:
    import pandas as pd

#: Rows in one exact sum.
ROWS_AT_A_TIME = 10_000
#: Columns of the returned tables.
OF_CELLS = ["row", "column", "value", "probability", "standard_deviation"]
OF_LEVELS = ["row", "column", "level", "probability"]
#: How latents are averaged over: by a sum over all codes, by weighted samples of the guide, or (auto) by the sum if it
#: is feasible.
Averaging = Literal["auto", "exact", "sampled"]


class Imputed(NamedTuple):
    """A table whose missing cells are filled, and the uncertainty of the filled values.

    Attributes:
        table: all cells in the units of the table; a missing cell has its most probable level, or its mean.
        cells: a row for each cell that was missing: `row` (from 1), `column`, `value`, the `probability` of a level, or
            the `standard_deviation` of a number.
        levels: the probability of each level of such a cell: `row`, `column`, `level`, `probability`.
        effective_sample_size: that of the weighted samples of each row with a missing cell, also a column of `cells`;
            None if the result is exact.
        num_particles: the number of samples of each row; None if the result is exact.
    """

    table: "pd.DataFrame"
    cells: "pd.DataFrame"
    levels: "pd.DataFrame"
    effective_sample_size: np.ndarray | None = None
    num_particles: int | None = None

    def frames(self) -> "dict[str, pd.DataFrame]":
        """Return the tables by their names."""
        return {"table": self.table, "cells": self.cells, "levels": self.levels}

    def notes(self) -> list[str]:
        """List notes on the accuracy of approximate values; there are none for exact values.

        The second note appears if more than one row in a hundred has fewer than 10 effective samples.
        """
        sizes = self.effective_sample_size
        if sizes is None:
            return []
        found = [
            f"approximate: {self.num_particles:,} weighted samples of the guide for each row, of which "
            f"{sizes.mean():,.0f} are effective on average and {sizes.min():,.1f} at least"
        ]
        few = int((sizes < FEW_EFFECTIVE_SAMPLES).sum())
        if few > WARNING_FRACTION * len(sizes):
            found.append(
                f"{few} of {len(sizes)} rows have fewer than {FEW_EFFECTIVE_SAMPLES} effective samples: their values "
                "may be far from the posterior's. Try more particles."
            )
        return found


def impute(
    vae: VAE,
    data: Any,
    *,
    labels: Tensor | None = None,
    averaging: Averaging = "auto",
    num_particles: int = 1000,
    max_memory: float | None = None,
    seed: int = 0,
) -> Imputed:
    r"""Fill the missing cells of each row from the known ones.

    Given the code, cells are independent, so a missing cell v of a row whose known cells are x has

    .. math:: p(v | x) = \sum_z p(z | x) \, p(v | z)

    with the exact posterior of all codes. The guide is not used. If there are too many codes to sum over, or continuous
    latents, samples of the guide replace the posterior, weighted by p(x, z) / q(z | x): see
    :func:`~pyro_gvae.evaluate.predictive.sampled_predictive_means`. The result then says that it is approximate. The
    mean of a number minimizes the expected squared error, and the most probable level the probability of an error.

    Args:
        vae: a ready-made program of a table.
        data: a `pandas.DataFrame` with the columns of the table, or rows (M, D) as the program takes them.
        labels: integers (M,), for a program of data given their labels; all probabilities are then given the labels.
        averaging: "exact", "sampled", or "auto": the exact sum if it takes about a minute at most.
        num_particles: P, the number of samples of each row with a missing cell, if samples are used.
        max_memory: bytes that the exact sum may use.
        seed: seed of the samples; the random state of the caller is not changed.

    Returns:
        The filled table, with the uncertainty of each filled cell.

    Raises:
        ValueError: if the program is not one of a table, the table has other columns or levels, or there are too many
            codes for the requested sum.

    Example:
        >>> import pandas as pd
        >>> from pyro_gvae import CategoricalVAE
        >>> from pyro_gvae.models.table import Column
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
    filled = data.copy() if isinstance(data, pd.DataFrame) else decoded(x, columns)
    lacking = x.isnan().any(-1).nonzero().squeeze(-1)
    if not len(lacking):
        return Imputed(filled, _by_row([], OF_CELLS), _by_row([], OF_LEVELS))
    own = None if labels is None else labels[lacking]
    found = _predictive(vae, x[lacking], own, averaging, num_particles=num_particles, max_memory=max_memory, seed=seed)
    means, places = found.means.cpu().numpy(), np.full(len(x), -1)
    places[lacking.cpu().numpy()] = np.arange(len(lacking))
    of_columns = _of_columns(x, columns, means, places)
    for column, choices in zip(columns, of_columns, strict=True):
        if len(choices.rows):
            _fill(filled, column.name, choices.rows, choices.values)
    of_cells = _by_row([cell for choices in of_columns for cell in choices.cells], OF_CELLS)
    of_levels = _by_row([level for choices in of_columns for level in choices.levels], OF_LEVELS)
    if found.effective_sample_size is None:
        return Imputed(filled, of_cells, of_levels)
    sizes = found.effective_sample_size.cpu().numpy()
    of_cells["effective_sample_size"] = sizes[places[of_cells["row"].to_numpy(int) - 1]]
    return Imputed(filled, of_cells, of_levels, sizes, num_particles)


class _Choices(NamedTuple):
    """The missing cells of a column: their rows, the values to fill in, and the rows of both lists."""

    rows: np.ndarray
    values: np.ndarray
    cells: list[tuple[Any, ...]]
    levels: list[tuple[Any, ...]]


def _of_columns(x: Tensor, columns: tuple[Column, ...], means: np.ndarray, places: np.ndarray) -> list[_Choices]:
    """Choose values for the missing cells of each column; row i of the data is row `places[i]` of the means."""
    found, start = [], 0
    for place, column in enumerate(columns):
        width = len(column.levels) or 2
        rows = np.flatnonzero(x[:, place].isnan().cpu().numpy())
        found.append(_choices(column, rows, means[places[rows], start : start + width]))
        start += width
    return found


def _choices(column: Column, rows: np.ndarray, means: np.ndarray) -> _Choices:
    """Choose the most probable level, or the mean, of each row.

    Args:
        column: a column of the table.
        rows: numbers of the rows (R,) whose cell is missing.
        means: the probabilities of levels, (R, L), or the mean and the mean square from the column's origin, (R, 2).
    """
    if not column.levels:
        offsets, squares = means.T
        values, spreads = origin(column) + offsets, np.sqrt(np.maximum(squares - offsets**2, 0.0))
        cells = [(row + 1, column.name, value, None, sd) for row, value, sd in zip(rows, values, spreads, strict=True)]
        return _Choices(rows, values, cells, [])
    best = means.argmax(1)
    values = np.array(column.levels, object)[best]
    probabilities = means[np.arange(len(rows)), best]
    cells = [(row + 1, column.name, *rest, None) for row, *rest in zip(rows, values, probabilities, strict=True)]
    levels = [
        (row + 1, column.name, level, probability)
        for row, probs in zip(rows, means, strict=True)
        for level, probability in zip(column.levels, probs, strict=True)
    ]
    return _Choices(rows, values, cells, levels)


def _predictive(
    vae: VAE,
    x: Tensor,
    labels: Tensor | None,
    averaging: Averaging,
    *,
    num_particles: int,
    max_memory: float | None,
    seed: int,
) -> Predictive:
    """Return the moments of rows with missing cells, by the requested kind of averaging."""
    check_particles(num_particles)
    chunks = list(in_parts(vae, judged(vae, x, labels), ROWS_AT_A_TIME))
    if averaging == "auto":
        seen = look(bind_pair(vae, next(in_parts(vae, chunks[0], 1))))
        averaging = "exact" if is_summable(vae, chunks, seen, MOST_OPERATIONS, max_memory) else "sampled"
    own = labels if use_of_labels(vae) is Labels.GIVEN else None
    if averaging == "sampled":
        with own_randomness(seed):
            return sampled_predictive_means(vae, x, num_particles, labels=own)
    if own is None:
        means = [predictive_means(vae, rows, max_memory).means for rows in x.split(ROWS_AT_A_TIME)]
        return Predictive(torch.cat(means), None)
    places = [(own == label).nonzero().squeeze(1) for label in own.unique()]  # one label at a time
    parts = [(int(own[rows[0]]), part) for rows in places for part in rows.split(ROWS_AT_A_TIME)]
    found = [predictive_means(vae, x[rows], max_memory, label=label).means for label, rows in parts]
    return Predictive(torch.cat(found)[torch.cat([rows for _, rows in parts]).argsort()], None)


def _by_row(records: list[Any], names: list[str]) -> "pd.DataFrame":
    import pandas as pd

    numbers = {name: float for name in names if name in ("probability", "standard_deviation")}
    return pd.DataFrame(records, columns=names).astype(numbers).sort_values("row", kind="stable", ignore_index=True)


def _fill(table: "pd.DataFrame", name: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Put values into the cells of a column; write levels as the column does, such as 1.0 for the level "1"."""
    import pandas as pd

    place = [str(column) for column in table.columns].index(name)
    cells = table.iloc[:, place]
    written = {text_of(level): level for level in cells.dropna().unique()}
    new = cells.astype(object)
    new.iloc[rows] = [written.get(value, value) for value in values]
    table.isetitem(place, new if cells.dtype == object else pd.Series(new).infer_objects())
