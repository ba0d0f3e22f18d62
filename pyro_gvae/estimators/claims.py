"""The claims of an estimator, its objective and its bias, as types. Sentences in reports are derived from them."""

from dataclasses import dataclass
from enum import Enum, unique
from typing import final

from torch import Tensor


@unique
class Objective(Enum):
    """The quantity whose negative a loss estimates. The value of a member is its name in reports."""

    #: sum_z q(z|x) log(p(x, z) / q(z|x)).
    ELBO = "the ELBO of the discrete model"
    #: The same, from samples with a surrogate gradient.
    SURROGATE_ELBO = "the ELBO of the discrete model, with a surrogate gradient"
    #: The categorical KL with a reconstruction term of soft samples. It is not a bound for any model.
    SOFT_ELBO = "the ELBO of the discrete model, at soft samples"
    #: The ELBO of the model whose latents are Concrete variables.
    RELAXED_ELBO = "a bound of the relaxed model"
    #: log p(x).
    EVIDENCE = "the log-evidence of the discrete model"
    #: E log (1/P) sum_p p(x, z_p) / q(z_p|x), between the ELBO and log p(x).
    MULTI_SAMPLE_BOUND = "the importance-weighted bound of the discrete model"
    #: A left Riemann sum over E log w under q w^beta, which is the ELBO for one part, and log p(x) for infinitely many.
    THERMODYNAMIC = "the thermodynamic bound of the discrete model"
    #: log p(x) for the model, and KL(q(z|x) || p(z|x)), and so the ELBO, for the guide.
    EVIDENCE_AND_EXCLUSIVE_KL = "the log-evidence of the discrete model, and the exclusive KL for the guide"
    #: log p(x) for the model, and KL(p(z|x) || q(z|x)) for the guide.
    EVIDENCE_AND_INCLUSIVE_KL = "the log-evidence of the discrete model, and the inclusive KL for the guide"

    #: The same ELBO for the model, and sum_p w_p log q(z_p|x) for the guide, with weights of a target distribution.
    ELBO_AND_WEIGHTED_LIKELIHOOD = "the ELBO of the discrete model, and a weighted likelihood for the guide"

    @property
    def is_elbo(self) -> bool:
        """Whether it is an ELBO of any kind, so that it has a KL(q || p) that can be weighted or partly free.

        log p(x) and its multi-sample bounds have no such KL. That their gradients differ from the ELBO's is not a bias.
        """
        return self in (Objective.ELBO, Objective.SURROGATE_ELBO, Objective.SOFT_ELBO, Objective.RELAXED_ELBO)


@unique
class Bias(Enum):
    """The bias of a loss or its gradient as an estimate of the objective. A member's value is its name in reports."""

    NONE = "none"
    RELAXATION = "of the relaxation, grows with the temperature"
    SURROGATE = "none of the loss; of the surrogate gradient"
    OTHER_TEMPERATURE = "of codes drawn at another temperature, and of the surrogate gradient"
    RELAXATION_AND_SURROGATE = "of the relaxation, grows with the temperature, and of the surrogate gradient"
    NORMALIZED_WEIGHTS = "of normalized importance weights, of order 1/P"
    WEIGHTED_LIKELIHOOD = "none of the loss; of the guide's gradient, which is that of a weighted likelihood"
    TOWARDS_INCLUSIVE_KL = "none of the loss; of the guide's gradient, towards the inclusive KL"


@final
@dataclass(frozen=True)
class Samples:
    """The number of samples of a multi-sample bound."""

    number: int

    def __str__(self) -> str:
        return f" with {self.number} samples"


@final
@dataclass(frozen=True)
class WeightedKL:
    """The weight of the objective's KL."""

    beta: float | Tensor

    def __str__(self) -> str:
        return ", with its KL weighted by beta"


@final
@dataclass(frozen=True)
class FreeNats:
    """The threshold below which the KL of each latent is free: one number for all, or one for each name."""

    nats: float | tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        if isinstance(self.nats, tuple):
            return ", with " + " and ".join(f"{nats:g} free nats for '{name}'" for name, nats in self.nats)
        return f", with {self.nats:g} free nats for each latent"


@final
@dataclass(frozen=True)
class MixedGuide:
    """The share of the uniform distribution that is mixed into the guide."""

    share: float | Tensor

    def __str__(self) -> str:
        return ", of the guide mixed with the uniform"


@final
@dataclass(frozen=True)
class RewardedUse:
    """The weight of the entropy of the codes' use in a batch."""

    weight: float | Tensor

    def __str__(self) -> str:
        return ", with a reward for the entropy of the codes' use"


@final
@dataclass(frozen=True)
class EvidenceShare:
    """The weight of the log-evidence in a mean with the ELBO."""

    weight: float

    def __str__(self) -> str:
        return f", with weight {self.weight:g}, and the ELBO with the rest"


#: A detail of an objective, which its name in reports includes.
Detail = Samples | WeightedKL | FreeNats | MixedGuide | RewardedUse | EvidenceShare
