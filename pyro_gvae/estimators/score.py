"""Score-function estimators: they sample one-hots, differentiate log q, and reduce the variance in several ways."""

from collections.abc import Callable, Sequence

from pyro.infer import Trace_ELBO

from ..config.checks import check_particles
from ..elbos.baselines import BaselineELBO, BaselineGradient, NeuralBaseline, RunningBaseline
from ..elbos.score import OVIS, VIMCO, ReinforceLOO, ReweightedWakeSleep
from ..handlers import discretize
from .base import Drawn, Estimator, Scored
from .claims import Bias, Objective, Samples


def reinforce(*, num_particles: int = 1) -> Estimator:
    """REINFORCE: the gradient of log q(z | x) of a sampled code, weighted by log p(x, z) - log q(z | x).

    *Approximates* the ELBO of the discrete model. *With* P codes, and stock `Trace_ELBO` (Williams 1992; Ranganath et
    al. 2014, arXiv 1401.0118). *Requires* nothing of the decoder. *Bias*: none, but the variance is the highest of all.

    Args:
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 1.

    Example:
        >>> reinforce(num_particles=2).is_unbiased
        True
    """
    check_particles(num_particles)
    return Estimator(
        name="reinforce",
        handler=discretize,
        elbo=lambda: Trace_ELBO(num_particles=num_particles, vectorize_particles=num_particles > 1),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Williams 1992; Ranganath et al. 2014, arXiv 1401.0118",
        at_site=Scored(num_particles),
    )


def reinforce_baseline(
    *,
    baseline: str = "running",
    beta: float = 0.9,
    data_dim: int = 784,
    hidden: Sequence[int] = (100,),
    num_particles: int = 1,
) -> Estimator:
    """REINFORCE with a baseline, learned from earlier steps and subtracted from the weight of the score.

    *Approximates* the ELBO of the discrete model. *With* P codes, and stock `TraceGraph_ELBO` (Schulman et al. 2015,
    arXiv 1506.05254). `baseline="running"` is the mean cost of earlier steps. `baseline="neural"` adds a network of the
    data, which is trained together with the program (Mnih and Gregor 2014, arXiv 1402.0030). *Requires* a discrete
    site; the neural baseline also requires data (..., D) as the guide's first argument. *Bias*: none.

    Args:
        baseline: "running" or "neural".
        beta: factor by which the weight of a step in the running mean falls with each later step, in [0, 1).
        data_dim: D, for the neural baseline.
        hidden: widths of the network's hidden layers.
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Example:
        >>> reinforce_baseline(baseline="neural", data_dim=784).is_unbiased
        True
    """
    check_particles(num_particles)
    if not 0 <= beta < 1:
        raise ValueError(f"Expected beta in [0, 1), but found {beta}.")
    for size in (data_dim, *hidden):
        if size < 1:
            raise ValueError(f"Expected data_dim and hidden widths of at least 1, but found {size}.")
    baselines: dict[str, Callable[[], RunningBaseline | NeuralBaseline]] = {
        "running": lambda: RunningBaseline(beta),
        "neural": lambda: NeuralBaseline(data_dim, hidden, beta),
    }
    if baseline not in baselines:
        raise ValueError(f"Expected baseline to be one of {', '.join(baselines)}, but found '{baseline}'.")
    return Estimator(
        name="reinforce-baseline",
        handler=discretize,
        elbo=lambda: BaselineELBO(baselines[baseline](), num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Mnih and Gregor 2014, arXiv 1402.0030",
        at_site=Drawn(lambda: BaselineGradient(baselines[baseline]()), num_particles),
    )


def reinforce_loo(*, num_particles: int = 4) -> Estimator:
    """REINFORCE with several codes; the baseline of each is the mean weight of the others.

    *Approximates* the ELBO of the discrete model. *With* P codes in one decoder call, and no state (Kool et al. 2019,
    "Buy 4 REINFORCE samples, get a baseline for free!"). *Requires* P >= 2, and `rsample` of continuous latents beside
    the discrete ones. *Bias*: none.

    Args:
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> reinforce_loo(num_particles=8).is_unbiased
        True
    """
    check_particles(num_particles, least=2)
    return Estimator(
        name="reinforce-loo",
        elbo=lambda: ReinforceLOO(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free!",
        at_site=Scored(num_particles),
    )


def vimco(*, num_particles: int = 5) -> Estimator:
    """VIMCO: the importance-weighted bound of P codes, with a baseline for each code from the others.

    *Approximates* the log-evidence of the discrete model from below, more tightly with larger P. *With* P codes in one
    decoder call (Mnih and Rezende 2016, arXiv 1602.06725). *Requires* P >= 2, and `rsample` of continuous latents
    beside the discrete ones. *Bias*: none, as the gradient of that bound, which is not the ELBO.

    Args:
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> vimco(num_particles=5).approximates
        'the importance-weighted bound of the discrete model with 5 samples'
    """
    check_particles(num_particles, least=2)
    return Estimator(
        name="vimco",
        elbo=lambda: VIMCO(num_particles=num_particles),
        objective=Objective.MULTI_SAMPLE_BOUND,
        details=(Samples(num_particles),),
        bias=Bias.NONE,
        reference="Mnih and Rezende 2016, arXiv 1602.06725",
    )


def ovis(*, num_particles: int = 5, gamma: float = 0.0) -> Estimator:
    """OVIS: the importance-weighted bound of P codes, with the control variate that minimizes the variance for large P.

    *Approximates* the log-evidence of the discrete model from below, more tightly with larger P. *With* P codes in one
    decoder call (Liévin et al. 2020, arXiv 2008.01998). *Requires* P >= 2, and `rsample` of continuous latents beside
    the discrete ones. *Bias*: none with gamma = 0, as the gradient of that bound, which is not the ELBO; otherwise in
    the guide's gradient, which tends to that of the inclusive KL.

    Args:
        num_particles: P, samples per datum.
        gamma: between 0, which is best if one code dominates, and 1, which is best if all have equal weights.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2, or gamma is not between 0 and 1.

    Example:
        >>> ovis().is_unbiased, ovis(gamma=1.0).is_unbiased
        (True, False)
    """
    check_particles(num_particles, least=2)
    if not 0 <= gamma <= 1:
        raise ValueError(f"Expected gamma between 0 and 1, but found {gamma}. Try 0, which is unbiased.")
    return Estimator(
        name="ovis",
        elbo=lambda: OVIS(num_particles=num_particles, gamma=gamma),
        objective=Objective.MULTI_SAMPLE_BOUND,
        details=(Samples(num_particles),),
        bias=Bias.NONE if gamma == 0 else Bias.TOWARDS_INCLUSIVE_KL,
        reference="Liévin et al. 2020, arXiv 2008.01998",
    )


def reweighted_wake_sleep(*, num_particles: int = 5) -> Estimator:
    """Reweighted wake-sleep: importance-weighted codes train the model on log p(x) and the guide on the posterior.

    *Approximates* the log-evidence of the discrete model and, for the guide, KL(p(z | x) || q(z | x)). *With* P codes
    in one decoder call, with weights normalized for each datum, and wake phases only (Bornschein and Bengio 2015, arXiv
    1406.2751). *Requires* P >= 2, `rsample` of continuous latents beside the discrete ones, and a guide that shares no
    parameters with the model. *Bias*: that of normalized weights, of order 1/P.

    Args:
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 2.

    Example:
        >>> reweighted_wake_sleep(num_particles=5).bias.value
        'of normalized importance weights, of order 1/P'
    """
    check_particles(num_particles, least=2)
    return Estimator(
        name="reweighted-wake-sleep",
        elbo=lambda: ReweightedWakeSleep(num_particles=num_particles),
        objective=Objective.EVIDENCE_AND_INCLUSIVE_KL,
        bias=Bias.NORMALIZED_WEIGHTS,
        reference="Bornschein and Bengio 2015, arXiv 1406.2751",
    )
