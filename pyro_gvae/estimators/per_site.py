"""Combine different estimators for the discrete sites of a program."""

from collections.abc import Mapping
from functools import partial, reduce
from types import UnionType

from ..config.names import DEFAULT, PER_SITE
from ..elbos.each_site import EachSiteELBO
from ..elbos.per_site import PerSiteELBO
from ..elbos.rows import SiteGradient
from ..elbos.score import ScoreGradient
from ..handlers import discretize
from ..handlers.chosen import AllBut, Sites
from ..handlers.sites import Program
from ..programs.latents import Roles
from .base import AtSite, Drawn, Estimator, Pathwise, Scored, Summed
from .claims import Bias, Objective

#: From the weakest objective, which a loss has if any site has it, to the strongest, which all sites must have.
_OBJECTIVES = (Objective.SOFT_ELBO, Objective.RELAXED_ELBO, Objective.SURROGATE_ELBO, Objective.ELBO)
_RELAXED = {Bias.RELAXATION, Bias.RELAXATION_AND_SURROGATE}
_SURROGATE = {Bias.SURROGATE, Bias.OTHER_TEMPERATURE, Bias.RELAXATION_AND_SURROGATE}


def per_site(sites: Mapping[str, Estimator], default: Estimator) -> Estimator:
    """Combine an estimator for each discrete site: summed, scored, relaxed, or drawn with a surrogate gradient.

    *Approximates* the weakest objective of its parts: the discrete ELBO of exact and scored sites, and a bound of the
    relaxed model if a site is relaxed. *With* :class:`~pyro_gvae.elbos.per_site.PerSiteELBO`, or
    :class:`~pyro_gvae.elbos.each_site.EachSiteELBO` if a site has a gradient estimator of its own, and the largest P of
    the parts. *Requires* for each site what its estimator requires. *Bias*: that of the relaxations and surrogates.

    Args:
        sites: estimators, by the names of their sites.
        default: the estimator of all other discrete sites, and of latents without `rsample`.

    Returns:
        The estimator.

    Raises:
        ValueError: if an estimator cannot act on a single site, or codes are to be summed in slices beside an estimator
            that draws its site.

    Example:
        >>> from pyro_gvae import estimator
        >>> per_site({"y": estimator("exact")}, estimator("gumbel-softmax")).approximates
        'the ELBO of the discrete model, at soft samples'
    """
    chosen = [*sites.values(), default]
    treatments = {name: _treatment(part, name) for name, part in sites.items()}
    rest = _treatment(default, "all other sites")
    groups = [(part, frozenset({name})) for name, part in treatments.items()]
    parts: list[tuple[AtSite, Sites]] = [*groups, (rest, AllBut(frozenset(sites)))]
    every = [*treatments.values(), rest]
    has_rows = any(isinstance(part, Drawn) for part in every)
    if has_rows and any(isinstance(part, Summed) and part.slice_size is not None for part in every):
        raise ValueError(
            "Expected exact without a slice_size beside an estimator that draws one site, since all summed codes then "
            "share draws and are in memory at once, but found a slice_size. Try max_memory, which limits their number."
        )
    named = [*sites.items(), (DEFAULT, default)]
    temperatures = {part.temperature for part in chosen} - {None}
    return Estimator(
        name=f"{PER_SITE}[{','.join(f'{name}={part.name}' for name, part in named)}]",
        handler=lambda program: reduce(_handled, parts, program),
        elbo=partial(_of_each if has_rows else _in_slices, treatments, rest),
        objective=min((part.objective for part in chosen), key=_OBJECTIVES.index),
        bias=_bias({part.bias for part in chosen}),
        reference="; ".join(dict.fromkeys(part.reference for part in chosen)),
        is_exact=all(part.is_exact for part in chosen),
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
    )


def _treatment(part: Estimator, where: str) -> AtSite:
    if part.at_site is not None:
        return part.at_site
    if not part.objective.is_elbo:
        raise ValueError(
            f"Expected estimators of the ELBO, a sum of one term for each site, but found '{part.name}' for {where}: "
            f"{part.approximates} is the logarithm of a sum over all latents together, which has no part for a single "
            f"site. Try exact or reinforce-loo, or '{part.name}' for the whole program."
        )
    if part.details:
        raise ValueError(
            f"Expected estimators of the plain ELBO, but found '{part.name}' for {where}, of {part.approximates}. Try "
            "the same change for the whole: with_kl_weight(estimator({..}), beta)."
        )
    raise ValueError(
        f"Expected estimators that sum, score or draw one site, but found '{part.name}' for {where}, whose codes are "
        "joint codes of all discrete latents together. Try top-c, reinforce-loo or exact for that site, or "
        f"'{part.name}' for the whole program."
    )


def _in_slices(treatments: Mapping[str, AtSite], rest: AtSite) -> PerSiteELBO:
    """Return the loss if all sites are summed, scored or pathwise: codes are summed slice by slice."""
    every = [*treatments.values(), rest]
    limits = [part for part in every if isinstance(part, Summed)]
    return PerSiteELBO(
        Roles(read=_those(treatments, rest, Summed), scored=_those(treatments, rest, Scored)),
        analytic=_those(treatments, rest, Pathwise, with_analytic_kl=True),
        num_particles=max(part.num_particles for part in every),
        max_memory=min((one.max_memory for one in limits if one.max_memory is not None), default=None),
        slice_size=min((one.slice_size for one in limits if one.slice_size is not None), default=None),
    )


def _of_each(treatments: Mapping[str, AtSite], rest: AtSite) -> EachSiteELBO:
    """Return the loss if some sites have a gradient estimator of their own."""
    every = [*treatments.values(), rest]
    limits = [part.max_memory for part in every if isinstance(part, Summed) and part.max_memory is not None]
    sites: list[tuple[AtSite, Sites]] = [(part, frozenset({name})) for name, part in treatments.items()]
    sites.append((rest, AllBut(frozenset(treatments))))
    return EachSiteELBO(
        read=_those(treatments, rest, Summed | Scored | Drawn),
        summed=_those(treatments, rest, Summed),
        drawn=[(names, _gradient(part)) for part, names in sites if isinstance(part, Scored | Drawn)],
        analytic=_those(treatments, rest, Pathwise, with_analytic_kl=True),
        num_particles=max(part.num_particles for part in every),
        max_memory=min(limits, default=None),
    )


def _gradient(part: Scored | Drawn) -> SiteGradient:
    return part.gradient() if isinstance(part, Drawn) else ScoreGradient()


def _handled(program: Program, part: tuple[AtSite, Sites]) -> Program:
    treatment, sites = part
    handler = treatment.handler if isinstance(treatment, Pathwise) else discretize
    return handler(program, sites=sites)


def _those(
    named: Mapping[str, AtSite], rest: AtSite, kind: type[AtSite] | UnionType, *, with_analytic_kl: bool = False
) -> Sites:
    """Return the sites that are treated in this way."""

    def is_so(part: AtSite) -> bool:
        return isinstance(part, kind) and (
            not with_analytic_kl or (isinstance(part, Pathwise) and part.has_analytic_kl)
        )

    if is_so(rest):
        return AllBut(frozenset(name for name, part in named.items() if not is_so(part)))
    return frozenset(name for name, part in named.items() if is_so(part))


def _bias(found: set[Bias]) -> Bias:
    relaxed, surrogate = bool(found & _RELAXED), bool(found & _SURROGATE)
    if relaxed:
        return Bias.RELAXATION_AND_SURROGATE if surrogate else Bias.RELAXATION
    return next((bias for bias in (Bias.OTHER_TEMPERATURE, Bias.SURROGATE) if bias in found), Bias.NONE)
