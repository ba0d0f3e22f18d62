"""Logs of a training run: JSON lines, a progress bar, TensorBoard."""

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

import torch

from ..data.columns import Data
from ..data.dataset import Dataset
from ..evaluate.generate import digits_of, encode, reconstruct, sample
from ..models.base import VAE
from ..runs.files import append_json_line, read_records
from ..runs.inside import in_place
from ..runs.records import TrainLine
from ..runtime.extras import import_extra
from ..runtime.progress import Progress
from ..runtime.rng import own_randomness

NUM_PICTURED = 16  # images shown, and latents with a histogram


def board_writer() -> Any:
    """Import TensorBoard's writer of event files, which takes a second.

    Returns:
        torch's class `SummaryWriter`.

    Raises:
        ValueError: if TensorBoard is not installed.
    """
    import_extra("tensorboard", extra="tensorboard", purpose="event files")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


@final
class Logs:
    """Writes the lines and pictures of a run; it does not read from the training.

    Args:
        run: the run folder; None keeps the history only in memory.
        total: number of steps of the whole run, if known.
        step: number of steps already taken.
        progress: show a progress bar.
        tensorboard: write TensorBoard's event files into the run folder.

    Attributes:
        history: all lines so far, including those before the run was resumed.

    Raises:
        ValueError: if TensorBoard's files are requested, and it is not installed.
    """

    def __init__(self, run: Path | None, *, total: int | None, step: int, progress: bool, tensorboard: bool) -> None:
        self.history: list[dict[str, Any]] = []
        writer = board_writer() if tensorboard else None  # in every process, so that all raise alike
        self._path = None if run is None else run / "metrics.jsonl"
        if self._path is not None and self._path.exists():
            self.history, torn = read_records(self._path, TrainLine)
            if torn:
                warnings.warn(f"{self._path}: left out torn lines {torn}.", RuntimeWarning, stacklevel=2)
        self._bar = Progress(
            total=total, initial=step, unit="step", disable=not progress, leave=None
        )  # not inside another
        self._board: Any = None
        self._until_the_end = ExitStack()
        if writer is not None and run is not None:  # which opens its files by their names, again and again
            place = self._until_the_end.enter_context(in_place(run / "tensorboard" / "events", make=True))
            self._board = writer(str(place.parent), purge_step=step or None)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()
        self._until_the_end.close()

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def record(self, line: dict[str, Any]) -> None:
        """Record an evaluation: a line of the history, and its numbers as curves."""
        self.history.append(line)
        if self._path is not None:
            append_json_line(self._path, line)
        part = "test" if line["test_elbo"] is not None else "train"
        elbo = line[f"{part}_elbo"]
        said = "no discrete ELBO" if elbo is None else f"{part} ELBO {elbo:.2f} ({line['elbo_is']})"
        self._bar.set_description_str(line["estimator"])
        self._bar.set_postfix_str(said)
        if self._board is not None:
            if (
                len(self.history) < 2 or self.history[-2]["stage"] != line["stage"]
            ):  # the first line of a stage is its first evaluation; the stage started where the last one ended
                begun = self.history[-2]["step"] if len(self.history) > 1 else line["step"]
                self._board.add_text("stage", f"{line['stage']}: {line['estimator']}, from step {begun}", begun)
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, line["step"])

    def picture(self, vae: Any, data: Dataset | Data, step: int) -> None:
        """Add reconstructions, prior samples and code usage to TensorBoard. Random states do not change.

        Only for a ready program and a `Dataset`, whose images have a shape.
        """
        if self._board is None or not isinstance(vae, VAE) or not isinstance(data, Dataset):
            return
        shape = (1, *data.image_shape)
        shown = data.test[:NUM_PICTURED]
        with own_randomness(0):
            images = torch.stack([shown, reconstruct(vae, shown)], 1).flatten(0, 1)  # each next to its original
            samples = sample(vae, NUM_PICTURED)
        for name, x in (("reconstructions", images), ("samples", samples)):
            self._board.add_images(name, vae.observation.to_pixels(x).reshape(-1, *shape), step)
        with torch.no_grad():
            found = encode(vae, data.test)
            named = found if isinstance(found, dict) else {"": found}
            codes = digits_of({name: own for name, own in named.items() if own.dim() == 3})  # (M', N, K) of all digits
        edges = torch.arange(codes.shape[-1] + 1) - 0.5
        for latent, categories in enumerate(codes.argmax(-1).T[:NUM_PICTURED]):
            self._board.add_histogram(f"code usage/latent {latent}", categories, step, bins=edges.tolist())
