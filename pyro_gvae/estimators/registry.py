"""The registry of estimators: their names and constructors, and the function that looks them up."""

from collections.abc import Callable
from typing import Any

from .base import Estimator
from .control_variates import rebar, relax_with_network
from .coupled import disarm, disarm_iw
from .exact import exact, exact_evidence
from .local import local_expectation
from .relaxed import gumbel_softmax
from .score import reinforce, reinforce_baseline, reinforce_loo, reweighted_wake_sleep, vimco
from .straight_through import (
    decoupled_st_gumbel_softmax,
    gapped_straight_through,
    gumbel_rao,
    reinmax,
    reinmax_rao,
    st_gumbel_softmax,
    straight_through,
)

#: Name -> constructor, whose keyword arguments are the estimator's options.
ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "gumbel-softmax": gumbel_softmax,
    "straight-through": straight_through,
    "st-gumbel-softmax": st_gumbel_softmax,
    "decoupled-st-gumbel-softmax": decoupled_st_gumbel_softmax,
    "gumbel-rao": gumbel_rao,
    "gapped-straight-through": gapped_straight_through,
    "reinmax": reinmax,
    "reinmax-rao": reinmax_rao,
    "reinforce": reinforce,
    "reinforce-baseline": reinforce_baseline,
    "reinforce-loo": reinforce_loo,
    "vimco": vimco,
    "reweighted-wake-sleep": reweighted_wake_sleep,
    "local-expectation": local_expectation,
    "disarm": disarm,
    "disarm-iw": disarm_iw,
    "rebar": rebar,
    "relax": relax_with_network,
    "exact": exact,
    "exact-evidence": exact_evidence,
}


def estimator(name: str, **options: Any) -> Estimator:
    """Construct the estimator with this name.

    Args:
        name: a key of `ESTIMATORS`.
        **options: keyword arguments of its constructor.

    Returns:
        The estimator, to be bound to a program by `bind`.

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
