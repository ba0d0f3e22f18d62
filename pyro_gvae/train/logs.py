"""Logs of a training run: JSON lines, progress, and loggers."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

import torch

from ..config.train import TrainConfig
from ..data.columns import Data, columns, first
from ..data.labels import shown
from ..data.sliced import AnyDataset
from ..evaluate.generate import digits_of, encode, reconstruct, sample
from ..models.base import VAE
from ..runs.files import append_json_line, read_records
from ..runs.records import TrainLine
from ..runtime.progress import Progress
from ..runtime.rng import own_randomness
from .loggers import IN_A_ROW, Logger

NUM_PICTURED = 16  # images shown, and latents whose use is shown


@final
class Logs:
    """Writes the lines and pictures of a run; it does not read from the training.

    Args:
        run: the run folder; None keeps the history only in memory.
        total: number of steps of the whole run, if known.
        step: number of steps already taken.
        progress: show the progress.
        loggers: further receivers of the evaluations.

    Attributes:
        history: all lines so far, including those before the run was resumed.
    """

    def __init__(
        self, run: Path | None, *, total: int | None, step: int, progress: bool, loggers: Sequence[Logger] = ()
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self._path = None if run is None else run / "metrics.jsonl"
        if self._path is not None and self._path.exists():
            self.history, torn = read_records(self._path, TrainLine)
            if torn:
                warnings.warn(f"{self._path}: left out torn lines {torn}.", RuntimeWarning, stacklevel=2)
        self._bar = Progress(
            total=total, initial=step, unit="step", disable=not progress, leave=None
        )  # may not be inside another bar
        self._loggers = loggers
        self._until_the_end = ExitStack()

    def begin(self, config: TrainConfig) -> None:
        """Begin the loggers; they end when these logs are closed."""
        for logger in self._loggers:
            self._until_the_end.callback(logger.end)
            logger.begin(config.as_json(), self.history)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._until_the_end.close()

    def advance(self) -> None:
        """Move the progress by one step."""
        self._bar.update()

    def record(self, line: dict[str, Any]) -> None:
        """Record an evaluation in the history, and pass it on to the loggers."""
        self.history.append(line)
        if self._path is not None:
            append_json_line(self._path, line)
        part = "test" if line["test_elbo"] is not None else "train"
        elbo = line[f"{part}_elbo"]
        said = "no discrete ELBO" if elbo is None else f"{part} ELBO {elbo:.2f} ({line['elbo_is']})"
        self._bar.set_description_str(line["estimator"])
        self._bar.set_postfix_str(said)
        for logger in self._loggers:
            logger.record(line)

    def picture(self, vae: Any, data: AnyDataset | Data, step: int) -> None:
        """Give loggers reconstructions, prior samples and codes. Random states do not change.

        Does nothing unless there are a ready-made program and a data set.
        """
        if not self._loggers or not isinstance(vae, VAE) or not isinstance(data, AnyDataset):
            return
        shape = (1, *data.image_shape)
        rows: Any = shown(vae, data)
        pictured = first(rows, NUM_PICTURED)
        with own_randomness(0):
            pairs = [columns(pictured)[0], reconstruct(vae, pictured)]
            # A row of data, below it a row of their reconstructions, and so on.
            images = torch.cat(
                [row for pair in zip(*(each.split(IN_A_ROW) for each in pairs), strict=True) for row in pair]
            )
            samples = sample(vae, NUM_PICTURED)
        drawn_as_images = data.columns is None
        pixels = {
            name: vae.observation.to_pixels(drawn).reshape(-1, *shape)
            for name, drawn in (("reconstructions", images), ("samples", samples))
            if drawn_as_images
        }
        with torch.no_grad():
            found = encode(vae, rows)
            named = found if isinstance(found, dict) else {"": found}
            codes = digits_of({name: own for name, own in named.items() if own.dim() == 3})  # (M', N, K) of all digits
        for logger in self._loggers:
            logger.show(pixels, codes[:, :NUM_PICTURED], step)
