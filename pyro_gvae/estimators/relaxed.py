"""Relaxed estimators: soft Gumbel-Softmax samples replace one-hots."""

from collections.abc import Callable
from functools import partial

from pyro.infer import Trace_ELBO

from ..config.checks import check_particles
from ..distributions.parameters import check_temperature
from ..elbos.mean_field import MeanFieldELBO
from ..handlers import relax
from .base import Estimator, Loss, Pathwise
from .claims import Bias, Objective

#: The temperature of sites that have none: that of Maddison et al. 2017 for guides.
TEMPERATURE = 2 / 3


def gumbel_softmax(*, kl: str = "categorical", temperature: float | None = None, num_particles: int = 1) -> Estimator:
    """Gumbel-Softmax: soft samples replace one-hots, and gradients flow through them.

    *Approximates* the discrete ELBO. *With* `kl="categorical"`: the analytic KL of the categoricals (Jang et al. 2017,
    arXiv 1611.01144), which with soft samples is not a bound for any model, but trains better. With `kl="relaxed"`:
    E_q[log p(x|z) + log p(z) - log q(z|x)] over Concrete densities, a bound for the relaxed model (Maddison et al.
    2017, arXiv 1611.00712, eq. 20). *Requires* a decoder that takes points of the simplex. *Bias*: that of the
    relaxation, which grows with the temperature; with the relaxed KL, a part of it remains at temperature 0.

    Args:
        kl: "categorical" or "relaxed".
        temperature: t > 0 of guide and model; None keeps the program's own, and uses 2/3 at sites that have none.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `kl` is unknown, or `temperature` or `num_particles` is out of range.

    Example:
        >>> gumbel_softmax(kl="relaxed", temperature=0.5).approximates
        'a bound of the relaxed model'
    """
    elbos: dict[str, Callable[..., Loss]] = {"relaxed": Trace_ELBO, "categorical": MeanFieldELBO}
    if kl not in elbos:
        raise ValueError(f"Expected kl to be one of {', '.join(elbos)}, but found '{kl}'.")
    check_particles(num_particles)
    if temperature is not None:
        check_temperature(temperature)
    # Pyro determines the nesting of plates by itself when particles are vectorized.
    particles = {"num_particles": num_particles, "vectorize_particles": num_particles > 1}
    return Estimator(
        name="gumbel-softmax",
        handler=relax(temperature=temperature, otherwise=TEMPERATURE),
        elbo=lambda: elbos[kl](**particles),
        objective=Objective.RELAXED_ELBO if kl == "relaxed" else Objective.SOFT_ELBO,
        bias=Bias.RELAXATION,
        reference="Maddison et al. 2017, arXiv 1611.00712" if kl == "relaxed" else "Jang et al. 2017, arXiv 1611.01144",
        temperature=temperature,
        at_site=Pathwise(
            partial(relax, temperature=temperature, otherwise=TEMPERATURE), kl == "categorical", num_particles
        ),
    )
