"""What an estimator claims: its objective and its bias, as types from which all sentences are derived."""

from dataclasses import dataclass
from enum import Enum, unique
from typing import final

from torch import Tensor


@unique
class Objective(Enum):
    """What a loss estimates, with the opposite sign; the value is its name in reports."""

    #: sum_z q(z|x) log(p(x, z) / q(z|x)).
    ELBO = "the ELBO of the discrete model"
    #: The same, by samples that a surrogate makes differentiable.
    SURROGATE_ELBO = "the discrete ELBO"
    #: The categorical KL, and a reconstruction term of soft samples; no bound of any model.
    SOFT_ELBO = "the discrete ELBO, at soft samples"
    #: The ELBO of the model whose latents are Concrete variables.
    RELAXED_ELBO = "a bound of the relaxed model"
    #: log p(x).
    EVIDENCE = "the log-evidence of the discrete model"
    #: E log (1/P) sum_p p(x, z_p) / q(z_p|x), between the ELBO and log p(x).
    MULTI_SAMPLE_BOUND = "the importance-weighted bound of the discrete model"
    #: log p(x) for the model and KL(p(z|x) || q(z|x)) for the guide, which are two objectives.
    EVIDENCE_AND_INCLUSIVE_KL = "the log-evidence of the discrete model, and the inclusive KL for the guide"

    @property
    def is_elbo(self) -> bool:
        """Whether it is an ELBO, of one kind or another.

        It then has a KL(q || p), which may be weighed or free in part. log p(x) has none, nor has a bound of it by
        several samples; and where their gradients differ from that of the ELBO, it is no bias.
        """
        return self in (Objective.ELBO, Objective.SURROGATE_ELBO, Objective.SOFT_ELBO, Objective.RELAXED_ELBO)


@unique
class Bias(Enum):
    """What is wrong with a loss or its gradient as an estimate of the objective; the value is its name in reports."""

    NONE = "none"
    RELAXATION = "of the relaxation, grows with the temperature"
    SURROGATE = "none of the loss; of the surrogate gradient"
    OTHER_TEMPERATURE = "of codes drawn at another temperature, and of the surrogate gradient"
    NORMALIZED_WEIGHTS = "of normalized importance weights, of order 1/P"


@final
@dataclass(frozen=True)
class Samples:
    """Of a bound that their number makes tighter."""

    number: int

    def __str__(self) -> str:
        return f" with {self.number} samples"


@final
@dataclass(frozen=True)
class WeighedKL:
    """An objective whose KL is weighed."""

    beta: float | Tensor

    def __str__(self) -> str:
        return ", with its KL weighed by beta"


@final
@dataclass(frozen=True)
class FreeNats:
    """An objective whose KL is free below a threshold for each latent."""

    nats: float

    def __str__(self) -> str:
        return f", with {self.nats:g} free nats for each latent"


#: What an objective is known by besides its kind.
Detail = Samples | WeighedKL | FreeNats
