"""Score-function estimators of different joint codes, drawn without replacement."""

from ..config.checks import check_particles
from ..elbos.without_replacement import NormalizedReinforceWOR, ReinforceWOR, UnorderedSet
from .base import Estimator
from .claims import Bias, Objective


def unordered_set(*, num_particles: int = 4) -> Estimator:
    """Unordered set: the score function of P different joint codes, averaged over the orders of their draws.

    *Approximates* the ELBO of the discrete model. *With* P different codes in one decoder call, drawn by stochastic
    beam search, each with a baseline from the others (Kool et al. 2020, arXiv 2002.06043). *Requires* P >= 2. *Bias*:
    none; exact if there are not more than P joint codes and nothing is continuous.

    Args:
        num_particles: P, different codes per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> unordered_set(num_particles=8).is_unbiased
        True
    """
    check_particles(num_particles, least=2)
    return Estimator(
        name="unordered-set",
        elbo=lambda: UnorderedSet(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Kool et al. 2020, arXiv 2002.06043",
    )


def reinforce_wor(*, num_particles: int = 4, normalized: bool = False) -> Estimator:
    """REINFORCE without replacement: P different joint codes, weighted by their inverse inclusion probabilities.

    *Approximates* the ELBO of the discrete model. *With* P different codes in one decoder call, drawn by stochastic
    beam search (Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; arXiv 1903.06059). *Requires*
    P >= 2, and P >= 4 for a finite variance if weights are not normalized. *Bias*: none; if weights are normalized,
    that of normalized weights. `unordered-set` has less variance.

    Args:
        num_particles: P, different codes per datum.
        normalized: whether weights are normalized, which reduces the variance.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> reinforce_wor(normalized=True).bias.value
        'of normalized importance weights, of order 1/P'
    """
    check_particles(num_particles, least=2)
    loss = NormalizedReinforceWOR if normalized else ReinforceWOR
    return Estimator(
        name="reinforce-wor",
        elbo=lambda: loss(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NORMALIZED_WEIGHTS if normalized else Bias.NONE,
        reference="Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free!",
    )
