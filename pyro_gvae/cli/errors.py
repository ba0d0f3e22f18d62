"""Errors that a command reports in addition to its result."""

from typing import final

from ..config.commands import EncodeConfig, EvaluateConfig, GapsConfig, ImputeConfig, ReconstructConfig, ResumeConfig
from ..config.compare import CompareConfig
from ..config.gradients import GradientsConfig
from ..config.train import TrainConfig
from .said import Said

_SMALLER = "smaller --num-latents or --num-categories"
#: What to type where there are too many codes for a sum, by the configuration of the command.
OF_TOO_MANY = {
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


def as_typed(sentence: str, config: object) -> str:
    """Return what is said of too many codes, with what to type in place of what to call in Python.

    Example:
        >>> as_typed("Expected few codes, but found K^N = 8^30. Try relax().", EvaluateConfig("run"))
        'Expected few codes, but found K^N = 8^30. Try --evidence importance-weighted, which samples.'
    """
    tried = OF_TOO_MANY.get(type(config))  # type: ignore[call-overload]
    return sentence if tried is None else f"{sentence.partition(' Try ')[0]} Try {tried}."


@final
class PartlyFailedError(Exception):
    """A command came to its end, but not all of its work succeeded: cells failed, or training diverged.

    Attributes:
        report: what to print about what was done.
    """

    def __init__(self, message: str, report: Said) -> None:
        super().__init__(message)
        self.report = report
