"""The training command that an advice suggests, and the page that shows both."""

import shlex
from dataclasses import fields
from pathlib import Path

import pandas as pd

from ..config.gradients import AdviseConfig
from ..config.json import plain_settings
from ..config.models import MODELS
from ..config.train import TrainConfig
from ..diagnostics.recommend import Advice
from ..report.advice import write_advice_report
from ..report.settings import defaults_of, sort_settings
from ..runs.config import circumstances, typed


def train_by(config: AdviseConfig, stages: str) -> str:
    """Return the command that trains with these stages and the advice's settings, as far as `train` has them."""
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


def advice_page(config: AdviseConfig, table: pd.DataFrame, advice: Advice) -> Path:
    """Write the page of an advice into the folder that the configuration names."""
    assert config.output is not None
    return write_advice_report(
        config.output,
        table,
        advice.in_words().splitlines()[0],
        advice.reasons,
        train_by=train_by(config, advice.stages),
        settings=sort_settings(
            plain_settings(config), defaults_of(AdviseConfig, MODELS[config.model].sizes), circumstances()
        ),
        command=typed(),
    )
