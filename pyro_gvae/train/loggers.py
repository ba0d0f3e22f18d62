"""Loggers: send the evaluations of a run to TensorBoard, Weights & Biases or MLflow."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor

from ..config.checks import nearest
from ..config.names import LoggerName
from ..config.train import OUTSIDE
from ..runs.inside import in_place
from ..runtime.extras import import_extra

#: Images per row of a picture.
IN_A_ROW = 8


class Logger(Protocol):
    """Takes the evaluations of a run. `fit` calls `begin` first and `end` last, also after an error."""

    def begin(self, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Begin with the settings of the configuration, or continue after the evaluations in the history."""

    def record(self, line: Mapping[str, Any]) -> None:
        """Record an evaluation, a line of the history; `step` is its position."""

    def show(self, images: Mapping[str, Tensor], codes: Tensor, step: int) -> None:
        """Record pictures and codes; only runs of a ready-made program on a `Dataset` have them.

        Args:
            images: pixels (M, 1, H, W) in [0, 1], by name; of reconstructions, rows of data and of their
                reconstructions in turn.
            codes: one-hots (M', N, K).
            step: the step they belong to.
        """

    def end(self) -> None:
        """Write what is still in buffers."""


def numbers_in(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an evaluation, without step and epoch.

    Example:
        >>> numbers_in({"step": 9, "estimator": "exact", "test_elbo": -2.5, "train_elbo": None})
        {'test_elbo': -2.5}
    """
    return {
        name: value for name, value in line.items() if isinstance(value, int | float) and name not in ("step", "epoch")
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


#: The groups in which TensorBoard shows numbers of the parts of the data, such as test_elbo.
GROUPS = ("elbo", "objective", "log_evidence")
TIMES = ("seconds", "steps_per_second")
#: What the groups hold, with units.
UNITS = (
    "elbo, objective: nats per datum, higher is better; the ELBO is that of the discrete model. time: seconds of "
    "training, and steps per second. settings: what follows a schedule. run: the stage, and steps that were skipped. "
    "perplexity: the number of categories that a latent uses."
)


def tag_of(name: str) -> str:
    """Return the tag under which TensorBoard shows a number of an evaluation, which begins with its group.

    Example:
        >>> [tag_of(name) for name in ("test_elbo", "train_objective", "steps_per_second", "beta", "skipped")]
        ['elbo/test', 'objective/train', 'time/steps_per_second', 'settings/beta', 'run/skipped']
    """
    for group in GROUPS:
        if name.endswith(f"_{group}"):
            return f"{group}/{name.removesuffix(f'_{group}')}"
    group = "time" if name in TIMES else "run" if name in ("stage", "skipped") else "settings"
    return f"{group}/{name}"


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


#: The charts of TensorBoard's page of custom scalars: curves that belong together.
CHARTS = {
    "nats per datum": {
        "discrete ELBO": ["Multiline", ["elbo/train", "elbo/test"]],
        "ELBO and objective on train": ["Multiline", ["elbo/train", "objective/train"]],
    }
}


#: The curves whose last values stand in the tab HPARAMS.
SCORES = ("elbo/test", "elbo/train", "objective/train", "time/seconds")


@final
class TensorBoardLogger:
    """Writes TensorBoard's event files, with pictures and the use of codes; needs the extra tensorboard.

    Tags are in groups: `elbo/test`, `objective/train`, `time/steps_per_second`, `perplexity/latent 0`; the text "units"
    has their units. The tab HPARAMS compares the settings and final scores of runs.

    Args:
        folder: the folder of the files.

    Raises:
        ValueError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer = folder, board_writer()
        self._board: Any = None
        self._last: Mapping[str, Any] | None = None  # the last evaluation

    def begin(self, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open the files; for a resumed run, discard entries after its checkpoint."""
        self._last = history[-1] if history else None
        # The writer opens its files by name, repeatedly.
        self._place = in_place(self._folder / "events", make=True)
        self._board = self._writer(
            str(self._place.__enter__().parent), purge_step=self._last["step"] + 1 if self._last else None
        )
        if self._last is None:
            self._board.add_text("units", UNITS, 0)
            self._board.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()), 0)
            self._board.add_custom_scalars(CHARTS)
        self._tabulate(settings)

    def _tabulate(self, settings: Mapping[str, Any]) -> None:
        """Give the tab HPARAMS a row with the settings, and with the last values of the main curves."""
        from torch.utils.tensorboard.summary import hparams

        known = {name: value for name, value in settings.items() if value is not None and name not in OUTSIDE}
        plain = {name: value if _is_number(value) else str(value) for name, value in known.items()}
        experiment, row, _ = hparams(plain, dict.fromkeys(SCORES, 0.0))  # the values are those of the curves
        for summary in (experiment, row):
            self._board.file_writer.add_summary(summary)

    def record(self, line: Mapping[str, Any]) -> None:
        """Add each number to its curve, and a text at the start of a stage."""
        # The first line of a stage is its first evaluation; the stage started where the last one ended.
        if self._last is None or self._last["stage"] != line["stage"]:
            begun = (self._last or line)["step"]
            self._board.add_text("stage", f"{line['stage']}: {line['estimator']}, from step {begun}", begun)
        self._last = line
        for name, value in numbers_in(line).items():
            self._board.add_scalar(tag_of(name), value, line["step"])

    def show(self, images: Mapping[str, Tensor], codes: Tensor, step: int) -> None:
        """Add one picture of each kind, and the perplexity of each latent: how many categories it uses."""
        for name, pixels in images.items():
            self._board.add_image(name, mosaic(pixels), step, dataformats="HW")
        shares = codes.double().mean(0)  # (N, K)
        for latent, entropy in enumerate(-torch.xlogy(shares, shares).sum(-1)):
            self._board.add_scalar(f"perplexity/latent {latent}", entropy.exp().item(), step)

    def end(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()
            self._place.__exit__(None, None, None)


@final
class WandbLogger:
    """Sends evaluations and pictures to Weights & Biases; needs the extra wandb.

    Args:
        **options: of `wandb.init`, such as `project`, `name`, `mode="offline"`, or `id` and `resume` to continue a run.
            Options that are not given come from its environment variables, such as WANDB_PROJECT and WANDB_RUN_ID.

    Raises:
        ValueError: if wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._wandb = import_extra("wandb", extra="wandb", purpose="Weights & Biases")
        self._options = {"project": os.environ.get("WANDB_PROJECT", "pyro-gvae")} | options
        self._run: Any = None

    def begin(self, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Begin a run with the settings as its configuration."""
        self._run = self._wandb.init(**{"config": dict(settings)} | self._options)

    def record(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of an evaluation."""
        self._run.log(numbers_in(line), step=line["step"])

    def show(self, images: Mapping[str, Tensor], codes: Tensor, step: int) -> None:
        """Log pictures."""
        pictures = {name: self._wandb.Image(mosaic(pixels).numpy()) for name, pixels in images.items()}
        self._run.log(pictures, step=step)

    def end(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()


@final
class MlflowLogger:
    """Sends evaluations and pictures to MLflow; needs the extra mlflow.

    Args:
        **options: of `mlflow.start_run`, such as `run_name`, or `run_id` to continue a run. Options that are not given
            come from its environment variables, such as MLFLOW_TRACKING_URI and MLFLOW_RUN_ID.

    Raises:
        ValueError: if mlflow is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._mlflow = import_extra("mlflow", extra="mlflow", purpose="MLflow")
        self._options = options
        self._begun = False

    def begin(self, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Start a run with the settings as its parameters; a resumed run has them already."""
        self._mlflow.start_run(**self._options)
        self._begun = True
        if not history:
            self._mlflow.log_params({name: value for name, value in settings.items() if value is not None})

    def record(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of an evaluation."""
        self._mlflow.log_metrics(numbers_in(line), step=line["step"])

    def show(self, images: Mapping[str, Tensor], codes: Tensor, step: int) -> None:
        """Log pictures."""
        for name, pixels in images.items():
            self._mlflow.log_image(mosaic(pixels).numpy(), f"{name}/{step}.png")

    def end(self) -> None:
        """End the run."""
        if self._begun:
            self._mlflow.end_run()


#: Name -> a function that makes the logger for a run folder.
LOGGERS: dict[LoggerName, Callable[[Path], Logger]] = {
    "tensorboard": lambda run: TensorBoardLogger(run / "tensorboard"),
    "wandb": lambda run: WandbLogger(name=os.environ.get("WANDB_NAME", run.name)),
    "mlflow": lambda run: MlflowLogger(run_name=os.environ.get("MLFLOW_RUN_NAME", run.name)),
}


def loggers_of(names: Sequence[LoggerName], run: Path | None) -> list[Logger]:
    """Make loggers by their names.

    Args:
        names: keys of `LOGGERS`.
        run: the run folder; the loggers name the run after it.

    Raises:
        ValueError: if there is no such logger, a package is missing, or there is no folder.
    """
    if names and run is None:
        raise ValueError(
            f"Expected an output folder for the loggers {', '.join(names)}, but found none. Try output=..."
        )
    for name in names:
        if name not in LOGGERS:
            raise ValueError(
                f"Expected loggers among {', '.join(LOGGERS)}, but found '{name}'.{nearest(name, LOGGERS)}"
            )
    return [LOGGERS[name](run) for name in names if run is not None]


def mosaic(images: Tensor) -> Tensor:
    """Return images (M, 1, H, W) in [0, 1] as one picture of bytes, in rows of eight.

    Example:
        >>> mosaic(torch.ones(10, 1, 2, 3)).shape
        torch.Size([4, 24])
    """
    lacking = -len(images) % IN_A_ROW
    full = torch.cat([images, images.new_zeros(lacking, *images.shape[1:])])
    height, width = images.shape[-2:]
    rows = full.reshape(-1, IN_A_ROW, height, width).transpose(1, 2).reshape(-1, IN_A_ROW * width)
    return (rows * 255).round().to(torch.uint8).cpu()
