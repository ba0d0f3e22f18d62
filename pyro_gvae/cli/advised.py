"""The command that follows an advice."""

import shlex
from dataclasses import fields

from ..config.gradients import AdviseConfig
from ..config.models import MODELS
from ..config.train import TrainConfig


def train_by(config: AdviseConfig, stages: str) -> str:
    """Return the command that trains in these stages, with the settings of the advice that `train` has too."""
    words = ["pyro-gvae", "train", "--stages", stages]
    ours = {field.name: field.default for field in fields(TrainConfig)} | MODELS[config.model].sizes
    shared = {field.name for field in fields(config)} & ours.keys() - {"seed", "seconds", "output"}
    for name in sorted(shared):
        value = getattr(config, name)
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value != ours[name]:
            words += [option, *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)
