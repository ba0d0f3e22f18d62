"""Score-function estimators with a learned control variate: the model on soft codes, or its Taylor expansion."""

from ..config.checks import check_particles
from ..distributions.parameters import check_temperature
from ..elbos.control_variates import REBAR, RELAX, ControlledGradient
from ..elbos.double_cv import DoubleCV, DoubleCVGradient
from .base import Drawn, Estimator
from .claims import Bias, Objective


def rebar(*, temperature: float = 0.5, num_particles: int = 1) -> Estimator:
    """REBAR: REINFORCE with the model on soft codes as its control variate, with learned temperature and scale.

    *Approximates* the ELBO of the discrete model. *With* g = (f(b) - eta c(z~)) grad log q(b) + eta (grad c(z) - grad
    c(z~)), b = argmax z, z~ ~ p(z | b), c(z) = f(softmax(z / t)) (Tucker et al. 2017, arXiv 1703.07370, eq. 7): 1 + M
    decoder calls for M discrete latents. A second derivative of the model trains eta and t to lower the variance.
    *Requires* one-hots or bits (integers have no relaxation), and networks that take points of the simplex and can be
    differentiated twice, in a program without a mask or scale that depends on a code. *Bias*: none.

    Args:
        temperature: the initial t.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> rebar(temperature=0.3).is_unbiased
        True
    """
    check_particles(num_particles)
    check_temperature(temperature)
    return Estimator(
        name="rebar",
        elbo=lambda: REBAR(num_particles=num_particles, temperature=temperature),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Tucker et al. 2017, arXiv 1703.07370",
        at_site=Drawn(lambda: ControlledGradient(temperature), num_particles),
    )


def relax_with_network(*, temperature: float = 0.5, num_particles: int = 1, hidden: int = 32) -> Estimator:
    """RELAX: REBAR with a small network added to its control variate. It is not the handler `relax`.

    *Approximates* the ELBO of the discrete model. *With* the gradient of `rebar`, where c(z) = f(softmax(z / t)) +
    r(softmax(z / t)); eta, t and the network r are trained to lower the variance (Grathwohl et al. 2018, arXiv
    1711.00123). *Requires* one-hots or bits (integers have no relaxation), and networks that take points of the simplex
    and can be differentiated twice, in a program without a mask or scale that depends on a code. *Bias*: none.

    Args:
        temperature: the initial t.
        num_particles: P, samples per datum.
        hidden: units of the network's hidden layer.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> relax_with_network(hidden=16).is_unbiased
        True
    """
    check_particles(num_particles)
    check_temperature(temperature)
    if hidden < 1:
        raise ValueError(f"Expected hidden of at least one unit, but found {hidden}. Try 'rebar', without a network.")
    return Estimator(
        name="relax",
        elbo=lambda: RELAX(num_particles=num_particles, temperature=temperature, hidden=hidden),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Grathwohl et al. 2018, arXiv 1711.00123",
        at_site=Drawn(lambda: ControlledGradient(temperature, hidden), num_particles),
    )


def double_cv(*, num_particles: int = 4) -> Estimator:
    """Double CV: REINFORCE with a leave-one-out baseline, applied to costs minus their Taylor expansions.

    *Approximates* the ELBO of the discrete model. *With* P codes in one decoder call, which is differentiated with
    respect to the codes; each code's expansion has the mean derivative at the others, and a scale that is trained to
    lower the variance (Titsias and Shi 2021, arXiv 2111.05300). *Requires* P >= 2, one-hots or bits (integers have no
    values between their codes), and networks that are differentiable in their codes. *Bias*: none.

    Args:
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> double_cv(num_particles=2).is_unbiased
        True
    """
    check_particles(num_particles, least=2)
    return Estimator(
        name="double-cv",
        elbo=lambda: DoubleCV(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Titsias and Shi 2021, arXiv 2111.05300",
        at_site=Drawn(DoubleCVGradient, num_particles),
    )
