"""A comparison's grid: estimators, seeds, sizes, temperatures and learning rates -> cells, one training run each."""

import inspect
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..config.compare import CompareConfig
from ..config.stages import Stage
from ..config.train import TrainConfig
from ..estimators import ESTIMATORS
from ..runs.folder import cell_folder
from ..runs.tables import label
from ..train.checks import keeps_temperatures


class Cell(NamedTuple):
    """One training run of a comparison.

    Args:
        estimator: as it was given: a name, with options, or a plan.
        setting: what else distinguishes it, in words; empty where the grid has nothing else.
        seed: of weights and batches.
        values: where it lies in the grid: num_categories, num_latents, temperature, learning_rate.
        train: how it is trained.
    """

    estimator: str
    setting: str
    seed: int
    values: dict[str, Any]
    train: TrainConfig

    @property
    def label(self) -> str:
        """Estimator and setting: what the seeds of a comparison have in common."""
        return label(self.estimator, self.setting)

    @property
    def coordinates(self) -> dict[str, Any]:
        """The columns that begin every row of its results."""
        return {"estimator": self.estimator, "setting": self.setting, "seed": self.seed} | self.values


def make_cells(config: CompareConfig, num_data: int) -> list[Cell]:
    """The cells of a comparison, all of a seed together, so that pairs are finished early.

    An estimator whose stages have no temperature, or say it themselves, does not depend on `temperatures`: it stands
    in the grid once for all of them.

    Args:
        config: the comparison.
        num_data: M, training data.

    Raises:
        ValueError: if two cells would have the same folder.

    Example:
        >>> config = CompareConfig(estimators=("gumbel-softmax", "exact"), seeds=(0,), temperatures=(0.5, 1.0))
        >>> [cell.label for cell in make_cells(config, num_data=1000)]
        ['gumbel-softmax, temperature 0.5', 'gumbel-softmax, temperature 1', 'exact']
    """
    cells = []
    for seed, size, rate, estimator in product(
        config.seeds, config.each_size(), config.each_learning_rate(), config.estimators
    ):
        stages = config.plan(estimator)
        heats = config.temperatures if any(map(_takes_temperature, stages)) else ()
        for heat in heats or (None,):
            values = {"num_categories": size[0], "num_latents": size[1], "temperature": heat, "learning_rate": rate}
            parts = [
                f"{size[0]}x{size[1]}" if len(config.sizes) > 1 else "",
                f"learning rate {rate:g}" if len(config.learning_rates) > 1 else "",
                f"temperature {heat:g}" if heat is not None and len(config.temperatures) > 1 else "",
            ]
            placed = [_at(stage, heat) for stage in stages]
            # Schedules of temperatures are for stages that read them.
            unread = {} if any(map(keeps_temperatures, placed)) else {"temperature": None, "prior_temperature": None}
            train = config.training(
                num_categories=size[0],
                num_latents=size[1],
                learning_rate=rate,
                seed=seed,
                stages=",".join(map(str, placed)),
                evaluate_every=_evaluate_every(stages, config, num_data),
                **unread,
            )
            cells.append(Cell(estimator, ", ".join(filter(None, parts)), seed, values, train))
    names = {cell_folder(Path(), cell.label, cell.seed) for cell in cells}
    if len(names) < len(cells):
        raise ValueError("Expected estimators whose names differ in letters or digits, but found two that do not.")
    return cells


def _takes_temperature(stage: Stage) -> bool:
    known = inspect.signature(ESTIMATORS[stage.estimator]).parameters
    return "temperature" in known and "temperature" not in stage.options


def _at(stage: Stage, temperature: float | None) -> Stage:
    if temperature is None or not _takes_temperature(stage):
        return stage
    return stage._replace(options=stage.options | {"temperature": temperature})


def _evaluate_every(stages: tuple[Stage, ...], config: CompareConfig, num_data: int) -> str:
    """The whole plan divided by the number of evaluations, in steps or in seconds; an epoch where it has both."""
    steps = [stage.amount.steps(-(-num_data // config.batch_size)) for stage in stages]
    known = [number for number in steps if number is not None]
    if len(known) == len(steps):
        return f"{-(-sum(known) // config.evaluations)}steps"
    return "1epochs" if known else f"{sum(stage.amount.number for stage in stages) / config.evaluations:g}s"
