"""The registry: an estimator is a pair, a handler that says what one-hot sites are and an ELBO that forms the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from .distributions.concrete import check_temperature
from .elbos.exact import ExactELBO, ExactEvidence
from .exact import HasPair
from .handlers import discretize, relax
from .sites import Program


class Loss(Protocol):
    """What stock `SVI` asks of an ELBO."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float: ...
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float: ...


class Bound(NamedTuple):
    """A program and a loss that belong together: `SVI(model, guide, optim, loss=elbo)`."""

    model: Program
    guide: Program
    elbo: Loss


@dataclass(frozen=True)
class Estimator:
    """How the loss of a program with one-hot sites, and its gradient, are formed.

    Attributes:
        name: in the registry.
        handler: says what the one-hot sites of model and guide are.
        elbo: makes the Pyro loss.
        approximates: the objective.
        bias: of the loss and its gradient as an estimate of the discrete model's ELBO.
        reference: where it was published.
    """

    name: str
    handler: Callable[[Program], Program]
    elbo: Callable[[], Loss]
    approximates: str
    bias: str
    reference: str

    @property
    def is_exact(self) -> bool:
        """Whether the loss is a bound of the discrete model, with nothing sampled."""
        return self.bias == "none"

    def bind(self, pair: HasPair) -> Bound:
        """The handled model and guide, and the ELBO, ready for stock `SVI`.

        Example:
            >>> from pyro_gvae.models import CategoricalVAE
            >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
            >>> model, guide, elbo = estimator("exact").bind(vae)
            >>> import torch
            >>> elbo.loss(model, guide, torch.ones(4, 6)) > 0
            True
        """
        return Bound(self.handler(pair.model), self.handler(pair.guide), self.elbo())


def gumbel_softmax(*, kl: str = "relaxed", temperature: float | None = None, num_particles: int = 1) -> Estimator:
    """Soft Gumbel-Softmax samples in place of one-hots; gradients flow through them.

    *Approximates* the discrete ELBO. *With* `kl="relaxed"`: E_q[log p(x|z) + log p(z) - log q(z|x)] over Concrete
    densities, a bound of the relaxed model (Maddison et al. 2017, arXiv 1611.00712, eq. 20); with `kl="categorical"`:
    the analytic KL of the categoricals (Jang et al. 2017, arXiv 1611.01144), which is no bound of any model while
    samples are soft. *Requires* a decoder that takes points of the simplex. *Bias*: that of the relaxation, growing
    with the temperature; with the relaxed KL a part of it stays at temperature 0.

    Args:
        kl: "relaxed" or "categorical".
        temperature: of guide and model; None keeps the program's own.
        num_particles: P, samples per datum.

    Raises:
        ValueError: if `kl` or `temperature` is unknown or out of range.
    """
    elbos: dict[str, Callable[..., Loss]] = {"relaxed": Trace_ELBO, "categorical": TraceMeanField_ELBO}
    if kl not in elbos:
        raise ValueError(f"Expected kl to be one of {', '.join(elbos)}, but found '{kl}'.")
    if num_particles < 1:
        raise ValueError(f"Expected at least one particle, but found num_particles={num_particles}.")
    if temperature is not None:
        check_temperature(temperature)
    # Pyro guesses the nesting of plates where it needs to know it: here, for vectorized particles.
    particles = {"num_particles": num_particles, "vectorize_particles": num_particles > 1}
    return Estimator(
        name="gumbel-softmax",
        handler=relax(temperature=temperature),
        elbo=lambda: elbos[kl](**particles),
        approximates="a bound of the relaxed model" if kl == "relaxed" else "the discrete ELBO, at soft samples",
        bias="of the relaxation, grows with the temperature",
        reference="Maddison et al. 2017, arXiv 1611.00712" if kl == "relaxed" else "Jang et al. 2017, arXiv 1611.01144",
    )


def exact(*, max_memory: float | None = None, slice_size: int | None = None) -> Estimator:
    """The ELBO of the discrete model, summed over all K^N joint codes.

    *Approximates* nothing. *With* one decoder call for each code and one matrix product for all data. *Requires* K^N
    that the time allows; memory is bounded by `max_memory`. *Bias*: none, and no variance.
    """
    return Estimator(
        name="exact",
        handler=discretize,
        elbo=lambda: ExactELBO(max_memory=max_memory, slice_size=slice_size),
        approximates="the ELBO of the discrete model",
        bias="none",
        reference="enumeration; Jang et al. 2017, section 4.3, arXiv 1611.01144",
    )


def exact_evidence(*, max_memory: float | None = None, slice_size: int | None = None) -> Estimator:
    """log p(x) of the discrete model, summed over all K^N joint codes; the guide gets no gradient.

    *Approximates* nothing. *With* two passes over the codes, in bounded memory. *Requires* K^N that the time allows.
    *Bias*: none, and no variance.
    """
    return Estimator(
        name="exact-evidence",
        handler=discretize,
        elbo=lambda: ExactEvidence(max_memory=max_memory, slice_size=slice_size),
        approximates="the log-evidence of the discrete model",
        bias="none",
        reference="enumeration",
    )


#: name -> constructor; its keywords are the estimator's options.
ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "gumbel-softmax": gumbel_softmax,
    "exact": exact,
    "exact-evidence": exact_evidence,
}


def estimator(name: str, **options: Any) -> Estimator:
    """The estimator of that name.

    Args:
        name: a key of `ESTIMATORS`.
        **options: keywords of its constructor.

    Raises:
        ValueError: if there is no such estimator or option.

    Example:
        >>> estimator("gumbel-softmax", kl="categorical").approximates
        'the discrete ELBO, at soft samples'
    """
    if name not in ESTIMATORS:
        raise ValueError(f"Expected an estimator among {', '.join(ESTIMATORS)}, but found '{name}'.")
    try:
        return ESTIMATORS[name](**options)
    except TypeError as error:
        raise ValueError(f"Expected options that '{name}' has, but {error}.") from error
