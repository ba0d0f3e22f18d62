"""load_run: a run folder with its configuration, tables, models and data, for Python and notebooks."""

from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, TypeVar, final

import pandas as pd

from ..config.compare import CompareConfig
from ..config.train import TrainConfig
from ..data.columns import Data, first
from ..data.sliced import AnyDataset
from ..evaluate.metrics import Evaluation, evaluate
from ..models.base import VAE
from ..programs.pair import HasPair
from ..runs.config import read_compare_config, read_config_of_models, read_train_config
from ..runs.contents import read_run
from ..runs.folder import cell_folder
from ..runs.frames import read_json_lines
from ..runs.records import TrainLine
from ..runs.weights import from_parts
from .described import program_of, untrained
from .files import METRICS, WEIGHTS
from .kept_data import read_data
from .pairs import trainable
from .prune import shrink_to
from .source import read_again
from .trained import load_model, read_weights, trained_models

P = TypeVar("P", bound=HasPair)

#: Columns of the short table of evaluations.
SHORT = ["estimator", "seed", "step", "seconds", "train_elbo", "test_elbo", "test_log_evidence"]


@final
@dataclass(frozen=True)
class LoadedRun:
    """A run folder of `train`, `compare` or `fit`. Its parts are read when they are used.

    Attributes:
        folder: the run folder.
        settings: the contents of its config.json.
        data_dir: the folder of the data sets that have files.
    """

    folder: Path
    settings: dict[str, Any]
    data_dir: Path

    @property
    def is_comparison(self) -> bool:
        """Whether the folder is one of `compare`."""
        return "cells" in self.settings

    @cached_property
    def config(self) -> TrainConfig | CompareConfig:
        """The configuration; settings of the machine, such as the device, have their defaults."""
        return read_compare_config(self.folder) if self.is_comparison else read_train_config(self.folder)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row for each evaluation; in a comparison, `estimator` and `seed` identify the cell."""
        if self.is_comparison:
            return read_run(self.folder).metrics
        try:
            return read_json_lines(self.folder / METRICS, TrainLine)
        except OSError as error:
            raise ValueError(f"Expected evaluations in '{self.folder}', but found none. Try resume.") from error

    @cached_property
    def results(self) -> pd.DataFrame:
        """The last evaluation of each stage, or of each finished cell of a comparison."""
        if self.is_comparison:
            return read_run(self.folder).final.reset_index(drop=True)
        return self.curves.drop_duplicates("stage", keep="last").reset_index(drop=True)

    @property
    def is_finished(self) -> bool:
        """Whether the run, or all cells of the comparison, were trained to the end."""
        if self.is_comparison:
            return len(self.results) == len(self.settings["cells"])
        return (self.folder / WEIGHTS).exists()

    @cached_property
    def data(self) -> AnyDataset | Data:
        """The data, in the form that `fit` was given, or as configured."""
        if self.is_comparison:
            assert isinstance(self.config, CompareConfig)
            return read_again(self.folder, replace(self.config.training(), data_dir=self.data_dir))
        if program_of(self.folder) is not None:
            return read_data(self.folder, self.data_dir)
        assert isinstance(self.config, TrainConfig)
        return read_again(self.folder, replace(self.config, data_dir=self.data_dir))

    @property
    def models(self) -> list[tuple[str, int]]:
        """Estimator and seed of each model that :meth:`model` can load."""
        return [(which.estimator, which.seed) for which in trained_models(self.folder)]

    def model(self, estimator: str | None = None, seed: int | None = None) -> VAE:
        """Build a ready-made program with its trained weights, on the CPU.

        Args:
            estimator: the estimator that trained it, if there are several; a name of :attr:`models`.
            seed: its seed, if there are several.

        Returns:
            The program, with its weights.

        Raises:
            ValueError: if there is not exactly one such model, or the program is the caller's own code.
        """
        if self.is_comparison:
            return load_model(self.folder, estimator, seed, data_dir=self.data_dir).vae
        assert isinstance(self.config, TrainConfig)
        if (estimator, seed) != (None, None):
            return load_model(self.folder, estimator, seed, data_dir=self.data_dir).vae
        vae, _ = untrained(self.folder, replace(self.config, data_dir=self.data_dir))
        return self.load_into(vae)

    def evaluate(self, estimator: str | None = None, seed: int | None = None, **options: Any) -> Evaluation:
        """Evaluate one of the models as a discrete model, on the data of the run.

        Args:
            estimator: the estimator that trained it, if there are several; a name of :attr:`models`.
            seed: its seed, if there are several.
            **options: of :func:`~pyro_gvae.evaluate.metrics.evaluate`.

        Returns:
            As :func:`~pyro_gvae.evaluate.metrics.evaluate`.

        Raises:
            ValueError: if there is not exactly one such model, or the program is the caller's own code.
        """
        found = load_model(self.folder, estimator, seed, data_dir=self.data_dir)
        return evaluate(found.vae, found.data, **options)

    def load_into(self, program: P, estimator: str | None = None, seed: int | None = None) -> P:
        """Load the trained weights of the run into the caller's program.

        Args:
            program: a module, or a pair of functions, with the same parameters as the trained one; parameters of
                `pyro.param` change in Pyro's store.
            estimator: the label of a cell, if the run is a comparison.
            seed: the seed of the cell.

        Returns:
            The program.

        Raises:
            ValueError: if its parameters have other names or shapes.
        """
        folder = self.folder
        if self.is_comparison:
            models = [one for one in self.models if estimator in (None, one[0]) and seed in (None, one[1])]
            if len(models) != 1:
                raise ValueError(
                    f"Expected one matching model in '{folder}', but found {models}. Try one of {self.models}."
                )
            folder = cell_folder(folder, *models[0])
        weights, _ = read_weights(folder)
        module: Any = program
        if not hasattr(program, "parameters"):
            data = self.data
            module = trainable(program, first(data.train if isinstance(data, AnyDataset) else data, 2))
        if isinstance(self.config, TrainConfig) and self.config.pruning is not None:
            shrink_to(module, weights)
        try:
            module.load_state_dict(from_parts(weights, module.state_dict()))
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected a program with the parameters of the run in '{folder}', but found a "
                f"{type(program).__name__} with others. Try it with the sizes that it was trained with."
            ) from error
        return program

    @property
    def _title(self) -> str:
        program = None if self.is_comparison else self.settings.get("program")
        kind = "compare" if self.is_comparison else "train" if program is None else "fit"
        state = "finished" if self.is_finished else "unfinished"
        assert isinstance(self.config, TrainConfig | CompareConfig)
        if program is None:
            return f"{kind} on {self.config.dataset}, {state}"
        return f"{kind} of {program['name']}, {state}"

    @property
    def _short(self) -> pd.DataFrame:
        known = [name for name in SHORT if name in self.results and self.results[name].notna().any()]
        return self.results[known]

    def __repr__(self) -> str:
        return f"Run '{self.folder}': {self._title}\n{self._short.round(3).to_string(index=False)}"

    def _repr_html_(self) -> str:
        table = self._short.round(3).to_html(index=False, border=0)
        return f"<p><b>{escape(str(self.folder))}</b>: {escape(self._title)}</p>{table}"


def load_run(folder: Path | str, *, data_dir: Path | str = "data") -> LoadedRun:
    """Read a run folder of `train`, `compare` or `fit`: its configuration, curves, results, models and data.

    Args:
        folder: the run folder, finished or not. Nothing of it is run as code, whoever made it.
        data_dir: the folder of the data sets that have files.

    Returns:
        The run; its parts are read when they are used.

    Raises:
        ValueError: if the folder is not one of these.

    Example:
        >>> import tempfile, torch
        >>> from pyro_gvae import CategoricalVAE, TrainConfig, fit, load_run
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> folder = tempfile.mkdtemp()
        >>> config = TrainConfig(stages="exact:2steps", batch_size=4)
        >>> done = fit(vae, torch.ones(8, 6), config, output=folder, progress=False)
        >>> run = load_run(folder)
        >>> run.curves["step"].tolist(), run.model().num_latents, tuple(run.data.shape)
        ([0, 2], 2, (8, 6))
    """
    folder = Path(folder)
    return LoadedRun(folder, read_config_of_models(folder), Path(data_dir))
