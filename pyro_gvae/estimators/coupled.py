"""Estimators that sample codes in antithetic pairs or larger coupled sets."""

from ..config.checks import check_particles
from ..elbos.arms import ARMS, ARMSGradient
from ..elbos.coupled import CoupledGradient, DisARM, DisARMIW
from .base import Drawn, Estimator
from .claims import Bias, Objective


def disarm(*, num_particles: int = 1) -> Estimator:
    """DisARM: the leave-one-out score function of antithetic pairs of binary codes.

    *Approximates* the ELBO of the discrete model. *With* 1 + M decoder calls for M discrete latents (Dong, Mnih, Tucker
    2020, arXiv 2006.10680). *Requires* discrete latents with two categories. *Bias*: none.

    Args:
        num_particles: P, *pairs* per datum and latent.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 1.

    Example:
        >>> disarm(num_particles=2).num_categories
        2
    """
    check_particles(num_particles)
    return Estimator(
        name="disarm",
        elbo=lambda: DisARM(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Dong, Mnih, Tucker 2020, arXiv 2006.10680",
        at_site=Drawn(lambda: CoupledGradient("DisARM"), num_particles),
        num_categories=2,
    )


def disarm_iw(*, num_particles: int = 1) -> Estimator:
    """DisARM-IW: importance-weighted pairs of codes, coupled by stick breaking so that they rarely agree.

    *Approximates* the ELBO of the discrete model. *With* 1 + M decoder calls for M discrete latents (Dong, Mnih, Tucker
    2021, arXiv 2106.08056). *Requires* discrete latents of any K. For K = 2 it is `disarm`. *Bias*: none.

    Args:
        num_particles: P, *pairs* per datum and latent.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 1.

    Example:
        >>> disarm_iw(num_particles=2).is_unbiased
        True
    """
    check_particles(num_particles)
    return Estimator(
        name="disarm-iw",
        elbo=lambda: DisARMIW(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Dong, Mnih, Tucker 2021, arXiv 2106.08056",
        at_site=Drawn(CoupledGradient, num_particles),
    )


def arms(*, num_particles: int = 4) -> Estimator:
    """ARMS: the leave-one-out score function of P antithetic binary codes.

    *Approximates* the ELBO of the discrete model. *With* 1 + M (P - 1) decoded codes for M discrete latents (Dimitriev
    and Zhou 2021, arXiv 2105.14141). *Requires* discrete latents with two categories, and P >= 2. For P = 2 it is
    `disarm`. *Bias*: none.

    Args:
        num_particles: P, coupled codes per datum and latent.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> arms(num_particles=8).num_categories
        2
    """
    check_particles(num_particles, least=2)
    return Estimator(
        name="arms",
        elbo=lambda: ARMS(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Dimitriev and Zhou 2021, arXiv 2105.14141",
        at_site=Drawn(lambda: ARMSGradient(num_particles)),
        num_categories=2,
    )
