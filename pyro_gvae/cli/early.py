"""Checks that need no torch, so that a mistake is told before seconds of imports."""

import os
from typing import Any

from ..config.checks import check_files
from ..config.train import TrainConfig
from ..runs.config import read_config_of_models
from ..runs.folder import check_new

#: What torchrun tells its processes, of which one makes the folder of all, or goes on in it after a restart.
OF_A_GROUP = {"RANK", "TORCHELASTIC_RESTART_COUNT"}


def check_early(config: Any) -> None:
    """Refuse folders and data sets that are not there, or an output that is.

    Raises:
        ValueError: if a run folder is none, or that of a new run is taken.
        FileNotFoundError: if a data set has no files.
    """
    run = getattr(config, "run", None)
    if run is not None:
        read_config_of_models(run)
    elif hasattr(config, "dataset") and getattr(config, "data", None) is None and not config.download:
        check_files(str(config.dataset), config.data_dir)
    if isinstance(config, TrainConfig) and config.output is not None and not OF_A_GROUP & os.environ.keys():
        check_new(config.output)
