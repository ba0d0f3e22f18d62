"""Compute the exact ELBO and log-evidence of each datum: differentiable sums over all codes, in bounded memory."""

import functools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributions.parameters import impossible_as_infinite
from ..handlers.sites import Run
from ..programs.cells import summed_over
from ..programs.chains import Chains
from ..programs.factors import Layout
from ..programs.joint import Guide, JointScores, Terms, elbo_terms, joint_scores, terms_and_scores
from ..programs.pair import HasPair
from ..programs.runs import Runs, bind_pair
from ..programs.site import Codes
from ..runtime.compat.torch import is_transformed
from ..runtime.distributed import log_sum_exp
from . import elimination
from .endless import plan_and_guide, plan_to_end
from .expectation import expected, finite
from .nested import nested_evidence
from .plan import Plan, computed

#: A function that computes the contribution of a slice of codes to a sum, shape (B,).
Part = Callable[[], Tensor]
#: A function that runs both programs on joint codes, and returns the terms that these add to the ELBO.
TermsOf = Callable[[Runs, Layout, Guide, Codes], Terms]


def elbo(
    pair: HasPair, *args: Any, max_memory: float | None = None, slice_size: int | None = None, **kwargs: Any
) -> Tensor:
    r"""Compute the exact ELBO of the discrete model for each datum.

    .. math::

        \mathrm{ELBO}_b = \sum_{z} q(z | x_b) \log p(x_b | z) - \mathrm{KL}(q(z | x_b) \,\|\, p(z))

    The model runs once for each of the K^N joint codes, not once for each code and datum, on slices of codes that fit
    into memory. A code with q below eps / (16 K^N) gets weight exactly 0. If there are many codes, those for which
    this holds for all data are not decoded: together they are less than a sixteenth of the rounding error of the sum.
    Continuous latents are drawn by `rsample`, which makes the result an unbiased estimate.

    Discrete latents inside of `pyro.markov` are summed one after another, in time and memory linear in the length of
    the chain. Latents that only the model has are also summed one after another, inside the logarithm:

    .. math:: \mathrm{E}_{q(c | x)} \Big[ \log \sum_z p(x, z, c) - \log q(c | x) \Big]

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair` of your own model and guide; they may be relaxed.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        The ELBO (B,) in nats per datum, scaled and masked; differentiable. The backward pass recomputes slices. For
        chains, and for latents of the model alone, one number for each cell of the plates that all discrete latents are
        in.

    Raises:
        ValueError: as :class:`~pyro_gvae.ExactELBO`.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> bool((elbo(vae, x) <= log_evidence(vae, x)).all())
        True
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan, guide = plan_and_guide(runs, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return elimination.elbo(runs, plan)
    return summed(plan, elbo_parts(runs, plan, guide))


def log_evidence(
    pair: HasPair, *args: Any, max_memory: float | None = None, slice_size: int | None = None, **kwargs: Any
) -> Tensor:
    r"""Compute the exact log-evidence of the discrete model for each datum.

    .. math:: \log p(x_b) = \log \sum_{z} p(x_b | z) \, p(z)

    Data that share a discrete latent have one log-evidence together. Inner plates are summed first, then outer ones:

    .. math:: \log p(x) = \log \sum_g p(g) \prod_b \sum_z p(z | g) \, p(x_b | z, g)

    Latents inside of `pyro.markov` are summed one after another, in time and memory linear in the length of the chain.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        log p(x) (B,) in nats per datum; if data share discrete latents, one number for each cell of the outermost
        latents, so a scalar if a latent is global. Differentiable. If there are several slices, gradients take a second
        pass, over the codes whose posterior probability is not negligible for some datum.

    Raises:
        ValueError: as :func:`elbo`; also if prior and likelihood of a datum are scaled differently, if a latent is
            continuous, or if the plates of discrete latents are not nested.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.25, 0.75])))
        ...         pyro.sample("x", dist.Bernoulli(z @ torch.tensor([0.0, 1.0])), obs=x)
        >>> from pyro_gvae.exact import Pair
        >>> log_evidence(Pair(model, guide=model), torch.tensor([0.0, 1.0])).exp()
        tensor([0.2500, 0.7500])
    """
    runs = bind_pair(pair, *args, **kwargs)
    sizes = {"max_memory": max_memory, "slice_size": slice_size}
    plan = plan_to_end(runs, with_guide=False, with_gradient=torch.is_grad_enabled(), **sizes)
    return elimination.log_evidence(runs, plan) if isinstance(plan, Chains) else evidence(runs.model, plan)


class Bounds(NamedTuple):
    """The exact ELBO of each datum, and the log-evidence that it bounds, in nats.

    Attributes:
        elbo: the ELBO, (B,).
        log_evidence: log p(x), (B,).
    """

    elbo: Tensor
    log_evidence: Tensor


@torch.no_grad()
def bounds(
    pair: HasPair, *args: Any, max_memory: float | None = None, slice_size: int | None = None, **kwargs: Any
) -> Bounds:
    """Compute :func:`elbo` and :func:`log_evidence` together, in one pass over all codes and without gradients.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        The ELBO (B,) and log p(x) (B,), in nats per datum; where data share a discrete latent, both in the shape of
        :func:`log_evidence`.

    Raises:
        ValueError: as :func:`elbo` and :func:`log_evidence`.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> found = bounds(vae, torch.ones(4, 6))
        >>> bool((found.elbo <= found.log_evidence).all())
        True
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan, guide = plan_and_guide(runs, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return Bounds(elimination.elbo(runs, plan), elimination.log_evidence(runs, plan))
    if plan.layout.is_shared:
        log_evidence = evidence(runs.model, plan)  # first, since it is refused where plates are crossed
        each = summed(plan, elbo_parts(runs, plan, guide)).reshape(1, -1)
        total = summed_over(each, plan.batch_shape, plan.layout.levels[0].shape)
        return Bounds(total.reshape(plan.layout.evidence_shape), log_evidence)
    elbos: list[Tensor] = []
    log_sums, scales = [], []
    for numbers in plan.numbers():
        terms, joint = terms_and_scores(runs, plan.layout, guide, plan.codes(numbers))
        elbos.append(expected(plan, terms, first=not elbos))
        log_sums.append(plan.log_sum(joint.joint))
        scales.append(joint.scale)
    log_evidence = scales[0] * plan.log_sum(torch.stack(log_sums))
    elbo = impossible_as_infinite(functools.reduce(torch.add, elbos))
    shape = plan.layout.evidence_shape
    return Bounds(elbo.reshape(shape), log_evidence.reshape(shape))


def evidence(model: Run, plan: Plan) -> Tensor:
    """Compute :func:`log_evidence` of a model with its data bound; without gradients if processes divide the codes."""
    if plan.layout.is_shared:
        nested = nested_evidence(model, plan)
        return (nested.scale * nested.log_evidence).reshape(plan.layout.evidence_shape)
    if not torch.is_grad_enabled():
        log_sums, scales = zip(*(_log_sum(model, plan, numbers) for numbers in plan.numbers()), strict=True)
        found = plan.log_sum(torch.stack(log_sums))
        found = found if plan.share.world_size == 1 else log_sum_exp(found)
        return (scales[-1] * found).reshape(plan.layout.evidence_shape)
    is_whole = plan.num_slices == 1 or is_transformed()  # torch.func does not allow reading values
    likely = plan.numbers() if is_whole else plan.repacked(find_evidence(model, plan).likely)
    log_sums, scales = zip(*(computed(plan, partial(_log_sum, model, plan, part)) for part in likely), strict=True)
    return (scales[0] * plan.log_sum(torch.stack(log_sums))).reshape(plan.layout.evidence_shape)


def _log_sum(model: Run, plan: Plan, numbers: Tensor) -> tuple[Tensor, float | Tensor]:
    joint, scale, _ = _scores(model, plan, numbers)
    return plan.log_sum(joint), scale


def _scores(model: Run, plan: Plan, numbers: Tensor) -> JointScores:
    return joint_scores(model, plan.layout, plan.codes(numbers))


def elbo_parts(runs: Runs, plan: Plan, guide: Guide, terms_of: TermsOf = elbo_terms) -> Iterator[Part]:
    """Yield one function per slice of codes; their values add up to the ELBO. The first also adds the constant terms.

    Args:
        runs: the pair with its data bound.
        plan: how its codes are cut into slices.
        guide: the guide's terms that do not depend on the codes of a slice.
        terms_of: returns the terms of a slice.
    """
    for i, numbers in enumerate(_likely(plan, guide)):
        yield partial(_elbo_part, runs, plan, guide, numbers, terms_of, first=i == 0 and plan.share.rank == 0)


@torch.no_grad()
def _likely(plan: Plan, guide: Guide) -> Iterator[Tensor]:
    """Yield the numbers of all codes in slices, but leave out codes whose q is negligible for every datum."""
    sites = guide.sites.values()
    if not (sites and plan.is_searched) or is_transformed():  # torch.func does not allow reading values
        return plan.numbers()
    least = functools.reduce(torch.add, (site.log_probs.amin(-1).sum(-1) for site in sites))  # the least probable code
    if not plan.negligible(least.unsqueeze(0)).item():
        return plan.numbers()
    return plan.repacked(numbers[~neglected(plan, guide, numbers)] for numbers in plan.numbers())


def neglected(plan: Plan, guide: Guide, numbers: Tensor) -> Tensor:
    """Return which codes (s,) have a negligible q for every datum, judged by latents that depend on no other latent."""
    if not guide.sites:
        return torch.zeros_like(numbers, dtype=torch.bool)
    codes = plan.codes(numbers)
    return plan.negligible(functools.reduce(torch.add, (site.score(codes) for site in guide.sites.values())))


def _elbo_part(runs: Runs, plan: Plan, guide: Guide, numbers: Tensor, terms_of: TermsOf, *, first: bool) -> Tensor:
    return expected(plan, terms_of(runs, plan.layout, guide, plan.codes(numbers)), first=first)


class Evidence(NamedTuple):
    """The log-evidence, and the codes that contribute to it."""

    log_evidence: Tensor  # (B,), before scaling
    scale: float | Tensor
    likely: list[Tensor]  # numbers of the codes that are not negligible in some datum's posterior, or are kept


@torch.no_grad()
def find_evidence(model: Run, plan: Plan, kept: Callable[[Tensor], Tensor] | None = None) -> Evidence:
    """Compute log p(x) in one pass over all codes, including those of other processes.

    Args:
        model: the model with its data bound.
        plan: how its codes are cut into slices.
        kept: a function of code numbers (s,) that returns which codes to keep even if they do not contribute.
    """
    so_far = torch.full((plan.batch_shape.numel(),), -torch.inf, dtype=plan.dtype, device=plan.device)
    log_sums, likely = [], []
    scale: float | Tensor = 1.0
    for numbers in plan.numbers():
        joint, scale, _ = _scores(model, plan, numbers)
        log_sums.append(plan.log_sum(joint))
        so_far = torch.logaddexp(so_far, log_sums[-1])
        # The evidence only grows from here on, so a negligible share of it remains negligible.
        contributes = ~plan.negligible(joint - so_far)
        likely.append(numbers[contributes if kept is None else contributes | kept(numbers)])
    log_evidence = plan.log_sum(torch.stack(log_sums))
    return Evidence(log_evidence if plan.share.world_size == 1 else log_sum_exp(log_evidence), scale, likely)


def evidence_parts(model: Run, plan: Plan, found: Evidence) -> Iterator[Part]:
    """Yield functions whose values add up to E[log p(x, z)] under the posterior, which is treated as constant.

    The gradient of this sum is the gradient of the log-evidence (Fisher's identity).
    """
    for numbers in plan.repacked(found.likely):
        yield partial(_evidence_part, model, plan, found, numbers)


def _evidence_part(model: Run, plan: Plan, found: Evidence, numbers: Tensor) -> Tensor:
    joint, scale, _ = _scores(model, plan, numbers)
    posterior = plan.weights(joint.detach() - found.log_evidence)  # (s, B)
    return scale * (posterior * finite(joint)).sum(0)


def summed(plan: Plan, parts: Iterable[Part]) -> Tensor:
    """Add the parts; the sum is differentiable."""
    total = functools.reduce(torch.add, (computed(plan, part) for part in parts))
    return impossible_as_infinite(total).reshape(plan.batch_shape)
