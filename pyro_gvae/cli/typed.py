"""Rewrite an error's advice from Python arguments to command-line options; no torch."""

import re
from dataclasses import fields
from typing import Any

from ..config.commands import EncodeConfig, EvaluateConfig, GapsConfig, ImputeConfig, ReconstructConfig, ResumeConfig
from ..config.compare import CompareConfig
from ..config.gradients import GradientsConfig
from ..config.train import TrainConfig
from .words import option_of

QUOTE = "'"
#: A setting as written in Python, with or without a value; and an option that is named twice.
SETTING = re.compile(r"(?<![\w.'-])(?P<name>[a-z]+(?:_[a-z]+)*)(?:=(?P<value>'[^']*'|[\w.:+-]*\w))?(?![\w(=])")
REPEATED = re.compile(r"(--[\w-]+) \(\1\)")
_SMALLER = "smaller --num-latents or --num-categories"
#: Configuration of a command -> what to try if there are too many codes for a sum.
OF_TOO_MANY: dict[type[Any], str] = {
    TrainConfig: f"--stages gumbel-softmax:20 with --judge auto, which sample, or {_SMALLER}",
    CompareConfig: f"{_SMALLER}; or pyro-gvae train --stages gumbel-softmax:20, which needs no sum over codes",
    GradientsConfig: f"{_SMALLER}; or pyro-gvae advise, which needs no exact gradient",
    ResumeConfig: "--more gumbel-softmax:20, which samples",
    EvaluateConfig: "--evidence importance-weighted, which samples",
    EncodeConfig: "--kind map, the code that the encoder finds most probable",
    ReconstructConfig: "--kind map, the code that the encoder finds most probable",
    ImputeConfig: "--averaging sampled",
    GapsConfig: "pyro-gvae evaluate --evidence importance-weighted, which samples",
}


def as_typed(sentence: str, config: type[Any], *, is_of_too_many_codes: bool = False) -> str:
    """Return an error message whose advice names command-line options instead of Python arguments.

    Args:
        sentence: the message.
        config: the configuration of the command.
        is_of_too_many_codes: whether a sum over codes was refused; each command has its own advice for that.

    Example:
        >>> as_typed("Expected x, but found y. Try model='joint', or a larger max_memory.", TrainConfig)
        'Expected x, but found y. Try --model joint, or a larger --max-memory.'
        >>> as_typed("Expected few codes, but found K^N. Try relax().", EvaluateConfig, is_of_too_many_codes=True)
        'Expected few codes, but found K^N. Try --evidence importance-weighted, which samples.'
    """
    found, tried, rest = sentence.partition(" Try ")
    if is_of_too_many_codes and config in OF_TOO_MANY:
        return f"{found} Try {OF_TOO_MANY[config]}."
    if not tried or rest.startswith("Python"):
        return sentence
    names = {field.name for field in fields(config)}

    def typed(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in names or (value is None and "_" not in name):  # an ordinary word
            return match[0]
        switches = {None: option_of(name), "True": option_of(name), "False": f"--no-{option_of(name)[2:]}"}
        switches["None"] = f"no {option_of(name)}"
        return switches.get(value) or f"{option_of(name)} {value.strip(QUOTE)}"

    return REPEATED.sub(r"\1", f"{found}{tried}{SETTING.sub(typed, rest)}")
