"""From a configuration to a run folder: data, networks, fit."""

from dataclasses import replace
from pathlib import Path

from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..runs.config import CONFIG, read_train_config, write_config
from ..runs.folder import new_run_folder
from ..runtime.distributed import from_main, may_restart, restarts
from .checks import check_training
from .fit import Fit, fit
from .logs import board_writer
from .monitor import judge_of
from .setup import initial_model, load_data


def train(config: TrainConfig) -> tuple[Path, Fit]:
    """Train as a configuration says, in a new run folder.

    The processes of a group train together. Where torchrun has started them again, because one has died, they go on in
    the run folder from its last checkpoint.

    Returns:
        The run folder, and what was done.

    Raises:
        ValueError: if a setting, the data or the run folder is unusable; nothing has been written then.
        OSError: if data files are absent or the folder cannot be written.
    """
    if may_restart() and config.output is None:
        raise ValueError(
            "Expected an output folder, where processes find their run again when torchrun restarts them, but found "
            "none. Try --output NAME."
        )
    if config.tensorboard:
        board_writer()  # before the data are read
    data = load_data(config)
    vae = initial_model(config, data)
    check_training(vae, data, config)  # before a folder is made
    config = replace(config, judge=judge_of(vae, data, config))  # and written into it, so that it is chosen once
    again = restarts() > 0
    folder, begun = from_main(lambda: _run_folder(config, data, again))
    run = Path(folder)
    return run, fit(vae, data, config, output=run, resume=begun)


def _run_folder(config: TrainConfig, data: Dataset, again: bool) -> tuple[str, bool]:
    """Where a run is kept, and whether it had begun before torchrun restarted its processes."""
    output = config.output
    if again and output is not None and (output / CONFIG).exists():
        if read_train_config(output) != config:
            raise ValueError(f"Expected the run of this configuration, but found that '{output}' has another.")
        return str(output), True
    run = new_run_folder(output, prefix="train")
    write_config(run, {"train": config.as_json(), "image_shape": data.image_shape})
    return str(run), False


def resume(run: Path) -> tuple[Path, Fit]:
    """Go on with a run that was interrupted, as if nothing had happened.

    Raises:
        ValueError: if there is no such run, or its checkpoint is unusable; the folder is as it was then.
    """
    config = read_train_config(run)
    data = load_data(config)
    return run, fit(initial_model(config, data), data, config, output=run, resume=True)
