"""Make the grid of a comparison: one cell, a training run, for each combination of its settings."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..config.compare import CompareConfig
from ..config.stages import Amount, Stage, parse_stages
from ..config.train import TrainConfig
from ..runs.folder import cell_folder
from ..runs.tables import label
from ..train.checks import keeps_temperatures, lacks


class Cell(NamedTuple):
    """One training run of a comparison.

    Args:
        estimator: as in the configuration: a name with options, or a training plan.
        setting: the other varied settings in words, such as "8x4, temperature 0.5"; empty if only estimators vary.
        seed: seed of weights and batches.
        values: its place in the grid: num_categories, num_latents, temperature, learning_rate.
        train: the configuration of its training run.
    """

    estimator: str
    setting: str
    seed: int
    values: dict[str, Any]
    train: TrainConfig

    @property
    def label(self) -> str:
        """Estimator and setting, which the cells of all seeds share."""
        return label(self.estimator, self.setting)

    @property
    def coordinates(self) -> dict[str, Any]:
        """The first columns of every row of its results."""
        return {"estimator": self.estimator, "setting": self.setting, "seed": self.seed} | self.values


def make_cells(config: CompareConfig, num_data: int, *, begun_with: int | None = None) -> list[Cell]:
    """Make the cells of a comparison, seed by seed, so that paired differences are available early.

    An estimator whose stages have no temperature, or set their own, does not depend on `temperatures` and has only one
    cell for all of them.

    Args:
        config: the comparison.
        num_data: M, the number of training images.
        begun_with: the epochs with which the comparison was begun, if it has more now: `evaluations` refers to them.

    Raises:
        ValueError: if two cells would have the same folder.

    Example:
        >>> config = CompareConfig(estimators=("gumbel-softmax", "exact"), seeds=(0,), temperatures=(0.5, 1.0))
        >>> [cell.label for cell in make_cells(config, num_data=1000)]
        ['gumbel-softmax, temperature 0.5', 'gumbel-softmax, temperature 1', 'exact']
    """
    cells = []
    for seed, size, rate, estimator in product(
        config.seeds, config.each_size(), config.each_learning_rate(), config.each_estimator()
    ):
        stages = config.plan(estimator)
        first = stages if begun_with is None else parse_stages(estimator, Amount.parse(begun_with))
        own = {"num_categories": size[0], "num_latents": size[1], "learning_rate": rate, "seed": seed}
        own["evaluate_every"] = _evaluate_every(first, config, num_data)
        temperatures = config.temperatures if any(map(_takes_temperature, stages)) else ()
        for temperature in temperatures or (None,):
            placed = [_at_temperature(stage, temperature) for stage in stages]
            # A temperature schedule that no stage reads would be refused.
            unread = {} if any(map(keeps_temperatures, placed)) else {"temperature": None, "prior_temperature": None}
            train = config.training(**own, stages=",".join(map(str, placed)), **unread)
            values = {
                "num_categories": size[0],
                "num_latents": size[1],
                "temperature": temperature,
                "learning_rate": rate,
            }
            cells.append(Cell(estimator, _setting(config, values), seed, values, train))
    names = {cell_folder(Path(), cell.label, cell.seed) for cell in cells}
    if len(names) < len(cells):
        raise ValueError(
            "Expected estimators whose names differ in letters or digits, but found two that share a folder name."
        )
    return cells


def _setting(config: CompareConfig, values: dict[str, Any]) -> str:
    """Name the place of a cell in the grid, by the settings that vary."""
    temperature = values["temperature"]
    parts = [
        f"{values['num_categories']}x{values['num_latents']}" if len(config.sizes) > 1 else "",
        f"learning rate {values['learning_rate']:g}" if len(config.learning_rates) > 1 else "",
        f"temperature {temperature:g}" if temperature is not None and len(config.temperatures) > 1 else "",
    ]
    return ", ".join(filter(None, parts))


def _takes_temperature(stage: Stage) -> bool:
    return any(lacks(one, "temperature") for one in stage.estimators)


def _at_temperature(stage: Stage, temperature: float | None) -> Stage:
    if temperature is None:
        return stage
    return stage.with_options(lambda one: {"temperature": temperature} if lacks(one, "temperature") else {})


def _evaluate_every(stages: tuple[Stage, ...], config: CompareConfig, num_data: int) -> str:
    """Divide the length of the plan, in steps or in seconds, by the number of evaluations; one epoch if it has both."""
    steps = [stage.amount.steps(-(-num_data // config.batch_size)) for stage in stages]
    known = [number for number in steps if number is not None]
    if len(known) == len(steps):
        return f"{-(-sum(known) // config.evaluations)}steps"
    return "1epochs" if known else f"{sum(stage.amount.number for stage in stages) / config.evaluations:g}s"
