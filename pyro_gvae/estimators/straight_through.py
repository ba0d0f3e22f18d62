"""Straight-through estimators: exact one-hots with a surrogate gradient. The loss is the discrete ELBO's."""

from collections.abc import Callable
from functools import partial

from pyro.infer import Trace_ELBO
from torch import Tensor

from ..config.checks import check_particles
from ..distributions.surrogates import (
    KINDS,
    DecoupledSTGumbelSoftmax,
    GappedStraightThrough,
    GumbelRao,
    Kind,
    ReinMaxRao,
)
from ..elbos.mean_field import MeanFieldELBO
from ..handlers import straight_through as handler
from .base import Estimator, Loss, Pathwise
from .claims import Bias, Objective

# Default temperatures are those that Liu et al. 2023, arXiv 2304.08612, found best for K = 8, N = 4 on MNIST.


def straight_through(
    *, temperature: float | Tensor | None = 1.3, kl: str = "categorical", num_particles: int = 1
) -> Estimator:
    """Straight-through: one-hots with the gradient of the softmax.

    *Approximates* the discrete ELBO, without bias in its value. *With* z = D + s - stop_gradient(s), D ~
    softmax(logits) and s = softmax(logits / t) (Bengio et al. 2013, arXiv 1308.3432). *Requires* a decoder that is
    differentiable in its codes; it only sees one-hots. *Bias*: that of the surrogate gradient, which at t = 1 is exact
    for functions that are linear in z.

    Args:
        temperature: the surrogate's temperature; None keeps the program's own.
        kl: "categorical" for the analytic KL of `TraceMeanField_ELBO`; "sampled" for log q(z) - log p(z), as in
            `Trace_ELBO`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> model, guide, elbo = straight_through().bind(vae)
    """
    reference = "Bengio et al. 2013, arXiv 1308.3432"
    return _estimator("straight-through", reference, temperature, kl, num_particles)


def st_gumbel_softmax(
    *, temperature: float | Tensor | None = 0.5, kl: str = "categorical", num_particles: int = 1
) -> Estimator:
    """ST-Gumbel-Softmax: one-hots with the gradient of the soft Gumbel-Softmax sample.

    *Approximates* the discrete ELBO, without bias in its value. *With* D = one_hot(argmax(logits + g)) and s =
    softmax((logits + g) / t) (Jang et al. 2017, arXiv 1611.01144). *Requires* a decoder that is differentiable in its
    codes. *Bias*: that of the surrogate gradient; a lower temperature reduces it and increases the variance.

    Args:
        temperature: the surrogate's temperature; None keeps the program's own.
        kl: "categorical" or "sampled", as in :func:`straight_through`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> st_gumbel_softmax(temperature=0.3).bias.value
        'none of the loss; of the surrogate gradient'
    """
    return _estimator("st-gumbel-softmax", "Jang et al. 2017, arXiv 1611.01144", temperature, kl, num_particles)


def decoupled_st_gumbel_softmax(
    *,
    temperature: float | Tensor | None = 1.0,
    forward_temperature: float = 1.0,
    kl: str = "categorical",
    num_particles: int = 1,
) -> Estimator:
    """ST-Gumbel-Softmax with separate temperatures for draw and gradient.

    *Approximates* the discrete ELBO. *With* D = one_hot(argmax u) and s = softmax(u / t), u = logits / f + g (Shah et
    al. 2024, arXiv 2410.13331). *Requires* a decoder that is differentiable in its codes. *Bias*: that of the surrogate
    gradient. At f = 1 this is ST-Gumbel-Softmax, whose draw does not depend on t. At other f, codes are not drawn from
    the q that scores them, so the loss is biased too.

    Args:
        temperature: t, the surrogate's temperature in the backward pass; None keeps the program's own. The paper has no
            tuned value for this model.
        forward_temperature: f > 0, the temperature of the draw.
        kl: "categorical" or "sampled", as in :func:`straight_through`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> decoupled_st_gumbel_softmax(forward_temperature=1.0).bias.value
        'none of the loss; of the surrogate gradient'
    """
    return _estimator(
        "decoupled-st-gumbel-softmax",
        "Shah et al. 2024, arXiv 2410.13331",
        temperature,
        kl,
        num_particles,
        kind=DecoupledSTGumbelSoftmax(forward_temperature),
        bias=Bias.SURROGATE if forward_temperature == 1 else Bias.OTHER_TEMPERATURE,
    )


def gumbel_rao(
    *,
    temperature: float | Tensor | None = 0.5,
    num_draws: int = 100,
    kl: str = "categorical",
    num_particles: int = 1,
) -> Estimator:
    """Gumbel-Rao: the gradient of ST-Gumbel-Softmax, averaged over the noise that gives the same one-hot.

    *Approximates* the discrete ELBO, without bias in its value. *With* D ~ softmax(logits) and the mean over M draws of
    softmax((logits + g') / t), g' given D (Paulus et al. 2021, arXiv 2010.04838). *Requires* a decoder that is
    differentiable in its codes; it runs once. *Bias*: that of `st-gumbel-softmax`, with less variance.

    Args:
        temperature: the surrogate's temperature; None keeps the program's own.
        num_draws: M, draws of the conditional noise.
        kl: "categorical" or "sampled", as in :func:`straight_through`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> gumbel_rao(num_draws=10).temperature
        0.5
    """
    reference = "Paulus et al. 2021, arXiv 2010.04838"
    return _estimator("gumbel-rao", reference, temperature, kl, num_particles, kind=GumbelRao(num_draws))


def gapped_straight_through(
    *, temperature: float | Tensor | None = 1.0, gap: float = 1.0, kl: str = "categorical", num_particles: int = 1
) -> Estimator:
    """Gapped straight-through: one-hots with the gradient of a softmax in which D leads by a gap.

    *Approximates* the discrete ELBO, without bias in its value. *With* D ~ softmax(logits) and s = softmax(u / t), u_D
    = max_k logits_k and u_k = min(logits_k, u_D - gap) (Fan et al. 2022, arXiv 2206.07235): it has the properties of
    ST-Gumbel-Softmax without its noise. *Requires* a decoder that is differentiable in its codes. *Bias*: that of the
    surrogate gradient.

    Args:
        temperature: the surrogate's temperature; None keeps the program's own.
        gap: the smallest lead of D, in nats.
        kl: "categorical" or "sampled", as in :func:`straight_through`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> gapped_straight_through(gap=1.0).temperature
        1.0
    """
    reference = "Fan et al. 2022, arXiv 2206.07235"
    kind = GappedStraightThrough(gap)
    return _estimator("gapped-straight-through", reference, temperature, kl, num_particles, kind=kind)


def reinmax(*, temperature: float | Tensor | None = 1.3, kl: str = "categorical", num_particles: int = 1) -> Estimator:
    """ReinMax: one-hots with a gradient of second-order accuracy.

    *Approximates* the discrete ELBO, without bias in its value. *With* D ~ softmax(logits) and the derivative 2 J((D +
    softmax(logits / t)) / 2) - J(softmax(logits)) / 2, where J is the derivative of softmax (Liu et al. 2023, arXiv
    2304.08612). *Requires* a decoder that is differentiable in its codes. *Bias*: that of the surrogate gradient, which
    at t = 1 is exact for functions that are quadratic in each z_n.

    Args:
        temperature: the surrogate's temperature, at least 1 in the paper; None keeps the program's own.
        kl: "categorical" or "sampled", as in :func:`straight_through`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> reinmax(temperature=1.1).temperature
        1.1
    """
    return _estimator("reinmax", "Liu et al. 2023, arXiv 2304.08612", temperature, kl, num_particles)


def reinmax_rao(
    *,
    temperature: float | Tensor | None = 1.0,
    num_draws: int = 100,
    kl: str = "categorical",
    num_particles: int = 1,
) -> Estimator:
    """ReinMax-Rao: ReinMax with Gumbel-Rao's mean derivative at the midpoint, which has less variance.

    *Approximates* the discrete ELBO, without bias in its value. *With* D ~ softmax(logits) and 2 J' -
    J(softmax(logits)) / 2, where J' is the mean derivative of Gumbel-Rao at logits log((D + softmax(logits)) / 2) (Wang
    and Bui 2026, arXiv 2603.08257; their temperature is 1). *Requires* a decoder that is differentiable in its codes;
    it runs once. *Bias*: that of the surrogate gradient.

    Args:
        temperature: the surrogate's temperature; None keeps the program's own.
        num_draws: M, draws of the conditional noise.
        kl: "categorical" or "sampled", as in :func:`straight_through`.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> reinmax_rao(num_draws=10).temperature
        1.0
    """
    reference = "Wang and Bui 2026, arXiv 2603.08257"
    return _estimator("reinmax-rao", reference, temperature, kl, num_particles, kind=ReinMaxRao(num_draws))


ELBOS: dict[str, Callable[..., Loss]] = {"categorical": MeanFieldELBO, "sampled": Trace_ELBO}


def _estimator(
    name: str,
    reference: str,
    temperature: float | Tensor | None,
    kl: str,
    num_particles: int,
    *,
    kind: Kind | None = None,
    bias: Bias = Bias.SURROGATE,
) -> Estimator:
    """Construct any of the seven estimators from what differs between them."""
    if kl not in ELBOS:
        raise ValueError(f"Expected kl to be one of {', '.join(ELBOS)}, but found '{kl}'.")
    check_particles(num_particles)
    chosen = kind or KINDS[name]
    # Pyro determines the nesting of plates by itself when particles are vectorized.
    particles = {"num_particles": num_particles, "vectorize_particles": num_particles > 1}
    return Estimator(
        name=name,
        handler=handler(kind=chosen, temperature=temperature),
        elbo=lambda: ELBOS[kl](**particles),
        objective=Objective.SURROGATE_ELBO,
        bias=bias,
        reference=reference,
        temperature=temperature,
        at_site=Pathwise(partial(handler, kind=chosen, temperature=temperature), kl == "categorical", num_particles),
    )
