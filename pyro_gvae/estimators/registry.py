"""The registry of estimators: their names and constructors, and the function that looks them up."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..config.checks import nearest
from ..config.names import DEFAULT, PER_SITE
from ..config.stages import Named
from .base import Estimator
from .control_variates import double_cv, rebar, relax_with_network
from .coupled import arms, disarm, disarm_iw
from .daps import daps
from .exact import exact, exact_evidence, exact_wake
from .local import local_expectation
from .per_site import per_site
from .relaxed import gumbel_softmax
from .score import ovis, reinforce, reinforce_baseline, reinforce_loo, reweighted_wake_sleep, vimco
from .straight_through import (
    decoupled_st_gumbel_softmax,
    gapped_straight_through,
    gumbel_rao,
    reinmax,
    reinmax_rao,
    st_gumbel_softmax,
    straight_through,
)
from .thermodynamic import tvo
from .top_c import top_c
from .without_replacement import reinforce_wor, unordered_set

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
    "unordered-set": unordered_set,
    "reinforce-wor": reinforce_wor,
    "vimco": vimco,
    "ovis": ovis,
    "tvo": tvo,
    "reweighted-wake-sleep": reweighted_wake_sleep,
    "daps": daps,
    "local-expectation": local_expectation,
    "top-c": top_c,
    "disarm": disarm,
    "disarm-iw": disarm_iw,
    "arms": arms,
    "double-cv": double_cv,
    "rebar": rebar,
    "relax": relax_with_network,
    "exact": exact,
    "exact-evidence": exact_evidence,
    "exact-wake": exact_wake,
}


def estimator(name: str | Mapping[str, str | Estimator] | Estimator, /, **options: Any) -> Estimator:
    """Construct the estimator with this name, or combine estimators of single sites.

    Args:
        name: a key of `ESTIMATORS`, which may have options in brackets; or estimators of single discrete sites, by the
            names of the sites: see :func:`~pyro_gvae.estimators.per_site.per_site`. An estimator is returned as it is.
        **options: keyword arguments of the constructor. For single sites, the only option is `default`: the estimator
            of all other discrete sites, "exact" if none is given.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if there is no such estimator or option, or an estimator cannot act on a single site.

    Example:
        >>> estimator("gumbel-softmax", kl="categorical").approximates
        'the ELBO of the discrete model, at soft samples'
        >>> estimator({"y": "exact", "z": "gumbel-softmax[kl=categorical]"}, default="reinforce-loo").name
        'per-site[y=exact,z=gumbel-softmax,default=reinforce-loo]'
    """
    if isinstance(name, Estimator):
        if options:
            raise ValueError(f"Expected options with the name of an estimator only, but found {sorted(options)}.")
        return name
    if isinstance(name, Mapping):
        return _constructed("estimator({..})", _of_sites, name, **options)
    if not isinstance(name, str):
        raise ValueError(f"Expected the name of an estimator, but found {name!r:.60}. Try 'gumbel-softmax'.")
    named = Named(name, {}) if name in ESTIMATORS else Named.parse(name)
    options = named.options | options
    if named.name == PER_SITE:
        return _of_sites(
            {site: part for site, part in options.items() if site != DEFAULT}, options.get(DEFAULT, "exact")
        )
    if named.name not in ESTIMATORS:
        raise ValueError(
            f"Expected an estimator among {', '.join(ESTIMATORS)}, but found '{named.name}'."
            f"{nearest(named.name, ESTIMATORS)}"
        )
    return _constructed(f"'{named.name}'", ESTIMATORS[named.name], **options)


def _constructed(said: str, construct: Callable[..., Estimator], *args: Any, **options: Any) -> Estimator:
    try:
        inspect.signature(construct).bind(*args, **options)
    except TypeError as error:
        known = [name for name in inspect.signature(construct).parameters if args == ()]
        tried = "".join(nearest(name, known) for name in options if name not in known)
        listed = f" (it has {', '.join(known) or 'none'})" if args == () else ""
        raise ValueError(f"Expected options that {said} has{listed}, but {error}.{tried}") from error
    return construct(*args, **options)


def _of_sites(sites: Mapping[str, str | Estimator], default: str | Estimator = "exact") -> Estimator:
    named = {site: part if isinstance(part, Estimator) else estimator(part) for site, part in sites.items()}
    return per_site(named, default if isinstance(default, Estimator) else estimator(default))
