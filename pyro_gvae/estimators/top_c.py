"""The estimator that sums over the most probable codes and samples the others."""

from ..config.checks import check_particles
from ..elbos.top_c import TopC, TopCGradient
from .base import Drawn, Estimator
from .claims import Bias, Objective


def top_c(*, num_codes: int = 32, num_particles: int = 2, num_paths: int = 2) -> Estimator:
    """The ELBO, summed over the C most probable codes of each datum, with samples of the others.

    *Approximates* the ELBO of the discrete model. *With* C + P decoder calls for each datum, of which L are
    differentiated (Liu et al. 2019, arXiv 1810.04777). *Requires* P >= 2. *Bias*: none; exact where there are at most C
    codes and nothing is continuous.

    Args:
        num_codes: C, the largest number of codes to sum for each datum.
        num_particles: P, the smallest number of samples of the other codes.
        num_paths: L, the number of codes of each datum at which log p(x, z) is differentiated.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2, or one of the others below 1.

    Example:
        >>> top_c(num_codes=8).is_unbiased
        True
    """
    check_particles(num_particles, least=2)
    for name, number in (("num_codes", num_codes), ("num_paths", num_paths)):
        if number < 1:
            raise ValueError(f"Expected at least one code, but found {name}={number}.")
    return Estimator(
        name="top-c",
        elbo=lambda: TopC(num_codes=num_codes, num_particles=num_particles, num_paths=num_paths),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Liu et al. 2019, arXiv 1810.04777",
        at_site=Drawn(lambda: TopCGradient(num_codes)),
    )
