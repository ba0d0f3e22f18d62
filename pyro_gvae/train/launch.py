"""Start or resume a training run from its configuration: data, networks, run folder, fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..config.commands import ResumeConfig
from ..config.stages import with_more
from ..config.train import OUTSIDE, TrainConfig
from ..data.sliced import AnyDataset
from ..models.base import VAE
from ..models.widths import networks_in_words
from ..runs.config import CONFIG, allowed_memory, read_train_config, write_config
from ..runs.folder import new_run_folder
from ..runs.frames import read_lines
from ..runs.records import TrainLine
from ..runtime.distributed import from_main, may_restart, restarts
from .checks import check_training
from .described import program_of, untrained
from .files import CHECKPOINT, METRICS
from .fit import fit
from .loggers import loggers_of
from .monitor import judge_of
from .prune import check_prunable
from .result import Fit
from .revive import check_revivable
from .setup import initial_model, load_or_slice, read_in_words, with_classes, with_widths
from .source import source_of


class Prepared(NamedTuple):
    """The parts of a run before it begins.

    Attributes:
        config: the configuration, with the settings that follow from data and program.
        vae: the program, with its initial weights.
        data: its data.
    """

    config: TrainConfig
    vae: VAE
    data: AnyDataset


def prepare(config: TrainConfig, *, tell: Callable[[str], None] = lambda text: None) -> Prepared:
    """Read the data of a configuration, build its program, and check that they can be trained. Nothing is written.

    Args:
        config: the configuration.
        tell: a function called with a description of the data.

    Raises:
        ValueError: if a setting or the data are unusable.
        OSError: if data files are missing.
    """
    loggers_of(config.loggers, Path())  # refuses one whose package is missing, before data are read
    data = load_or_slice(config)
    tell(read_in_words(config, data))
    config = with_widths(with_classes(config, data), data)
    vae = initial_model(config, data)
    check_training(vae, data, config)
    if config.revive is not None:
        check_revivable(vae)
    if config.pruning is not None:
        check_prunable(vae)
    return Prepared(replace(config, judge=judge_of(vae, data, config)), vae, data)


def train(config: TrainConfig, *, tell: Callable[[str], None] = lambda text: None) -> tuple[Path, Fit]:
    """Train with a configuration in a new run folder.

    The processes of a group train together. If torchrun restarts them because one died, they continue in the run folder
    from its last checkpoint.

    Args:
        config: the configuration.
        tell: a function called with a description of the data, and with one of the networks.

    Returns:
        The run folder, and the result of `fit`.

    Raises:
        ValueError: if a setting, the data or the run folder is unusable. Nothing is written in that case.
        OSError: if data files are missing or the folder cannot be written.
    """
    if may_restart() and config.output is None:
        raise ValueError(
            "Expected an output folder, so that processes can find their run when torchrun restarts them, but found "
            "none. Try --output NAME."
        )
    config, vae, data = prepare(config, tell=tell)  # `judge` is chosen once, and written into the folder
    tell(f"networks: {networks_in_words(vae)}")
    again = restarts() > 0
    folder, begun = from_main(lambda: _run_folder(config, data, again))
    run = Path(folder)
    return run, fit(vae, data, config, output=run, resume=begun)


def _run_folder(config: TrainConfig, data: AnyDataset, again: bool) -> tuple[str, bool]:
    """Return the run folder, and whether the run started before torchrun restarted its processes."""
    output = config.output
    if again and output is not None and (output / CONFIG).exists():
        inside = {name: value for name, value in config.as_json().items() if name not in OUTSIDE}
        if read_train_config(output) != TrainConfig.from_json(inside):
            raise ValueError(
                f"Expected a run with this configuration, but found one with another in '{output}'. Try the same "
                "settings, or another output."
            )
        return str(output), True
    run = new_run_folder(output, prefix="train")
    write_config(run, {"train": config.as_json()} | source_of(config, data))
    return str(run), False


def resume(asked: ResumeConfig) -> tuple[Path, Fit]:
    """Resume an interrupted run; the result is the same as without the interruption.

    A finished run continues if it is given more; the result is the same as if it had been begun with all stages.

    Args:
        asked: the folder of the run, and what to change.

    Returns:
        The folder, and the result of `fit`.

    Raises:
        ValueError: if there is no such run, or its checkpoint is unusable. The folder is unchanged in that case.
    """
    run, more = asked.run, asked.more
    written = read_train_config(run)
    config = replace(
        written,
        data_dir=asked.data_dir,
        download=asked.download,
        device=asked.device,
        compile=asked.compile,
        max_memory=allowed_memory(written.max_memory) if asked.max_memory is None else asked.max_memory,
        log=asked.log,
        stages=written.stages if more is None else with_more(written.stages, more),
        steps=written.steps if asked.steps is None else asked.steps,
        seconds=written.seconds if asked.seconds is None else asked.seconds,
    )
    if more is not None:
        config.check_estimators()
        _check_budget(run, config)
    if program_of(run) is not None and not (run / CHECKPOINT).exists():  # the caller's initial weights are lost
        raise ValueError(f"Expected a checkpoint of fit in '{run}', but found none. Try the same call of fit again.")
    vae, data = untrained(run, config)
    if more is not None:
        check_training(vae, data, config)  # before config.json is changed
    return run, fit(vae, data, config, output=run, resume=True)


def _check_budget(run: Path, config: TrainConfig) -> None:
    """Refuse further stages if the run has already used all of its steps or seconds."""
    lines = read_lines(run / METRICS, TrainLine)[0] if (run / METRICS).exists() else []
    last = lines[-1] if lines else {"step": 0, "seconds": 0.0}
    for name, used in (("steps", last["step"]), ("seconds", last["seconds"])):
        bound = getattr(config, name)
        if bound is not None and used >= bound:
            raise ValueError(
                f"Expected {name} left for more stages, but found that '{run}' has used all of its {bound:g}. Try "
                f"--{name} {2 * bound:g} as well, the {name} of the whole run."
            )
