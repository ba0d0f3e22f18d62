"""Checks that need no torch, so that mistakes show before its import, which takes seconds."""

import os
from typing import Any

from ..config.checks import check_files
from ..config.train import TrainConfig
from ..runs.config import read_config_of_models
from ..runs.folder import check_new

#: Variables that torchrun sets in its processes; one of them creates or continues the common run folder.
OF_A_GROUP = {"RANK", "TORCHELASTIC_RESTART_COUNT"}


def check_early(config: Any) -> None:
    """Refuse a run folder or data set that does not exist, and an output folder that does.

    Raises:
        ValueError: if the folder is not a run folder, or that of a new run exists already.
        FileNotFoundError: if the files of a data set are missing.
    """
    run = getattr(config, "run", None)
    if run is not None:
        read_config_of_models(run)
    elif hasattr(config, "dataset") and getattr(config, "data", None) is None and not config.download:
        check_files(str(config.dataset), config.data_dir)
    if isinstance(config, TrainConfig) and config.output is not None and not OF_A_GROUP & os.environ.keys():
        check_new(config.output)
