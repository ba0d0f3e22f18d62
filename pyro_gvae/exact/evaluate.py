"""The exact ELBO and log-evidence of every datum: sums over all joint codes, differentiable, in bounded memory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .programs import HasPair, Run, Site, read_guide, score, with_own_parameters
from .slices import Plan, make_plan

#: Computes what a slice of codes adds to a sum, shape (B,).
Part = Callable[[], Tensor]


def elbo(
    pair: HasPair, x: Tensor, *, max_memory: float | None = None, slice_size: int | None = None
) -> Tensor:
    r"""The exact ELBO of the discrete model, for every datum.

    .. math::

        \mathrm{ELBO}_b = \sum_{z} q(z | x_b) \log p(x_b | z) - \mathrm{KL}(q(z | x_b) \,\|\, p(z))

    The model runs once for each of the K^N joint codes, not once for each code and datum, on slices of codes that fit into
    memory. Codes that have, for all data, a probability q below eps / (16 K^N) are left out where there are several
    slices: together they hold less than a sixteenth of the rounding error of a sum.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair` of a model and a guide of your own; they may be relaxed.
        x: what model and guide are called with, for example data (B, D).
        max_memory: bytes that a slice may take; a quarter of the free memory if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.

    Returns:
        The ELBO (B,) in nats, scaled and masked as the programs say; differentiable, with slices recomputed in the
        backward pass where there are several.

    Raises:
        ValueError: if the programs have other latent variables than one one-hot site, or if the sum cannot be taken.

    Example:
        >>> from pyro_gvae.models import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> bool((elbo(vae, x) <= log_evidence(vae, x)).all())
        True
    """
    model = with_own_parameters(pair.model, x)
    q = read_guide(with_own_parameters(pair.guide, x))
    plan = make_plan(model, max_memory=max_memory, slice_size=slice_size)
    return summed(plan, elbo_parts(model, plan, q, q.log_probs))


def log_evidence(
    pair: HasPair, x: Tensor, *, max_memory: float | None = None, slice_size: int | None = None
) -> Tensor:
    r"""The exact log-evidence of the discrete model, for every datum.

    .. math:: \log p(x_b) = \log \sum_{z} p(x_b | z) \, p(z)

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        x: what the model is called with, for example data (B, D).
        max_memory: bytes that a slice may take; a quarter of the free memory if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.

    Returns:
        log p(x) (B,) in nats. Its gradient is the posterior's mean of that of log p(x, z) (Fisher's identity), which
        takes a second pass over those codes whose posterior probability is not negligible; it can be taken once.

    Raises:
        ValueError: as :func:`elbo`; also if prior and likelihood are scaled differently.

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
    model = with_own_parameters(pair.model, x)
    plan = make_plan(model, max_memory=max_memory, slice_size=slice_size)
    return evidence(model, plan)


def evidence(model: Run, plan: Plan) -> Tensor:
    """:func:`log_evidence` of a model with its data bound."""
    found = find_evidence(model, plan)
    value = (found.scale * found.log_evidence).reshape(plan.batch_shape)
    if not torch.is_grad_enabled():
        return value
    result: Tensor = _GradientOf.apply(value, summed(plan, evidence_parts(model, plan, found)))
    return result


def elbo_parts(model: Run, plan: Plan, q: Site, log_q: Tensor) -> Iterator[Part]:
    """Functions whose values add up to the ELBO, one for each slice of codes; the first adds -KL(q || p).

    Args:
        model: the program with its data bound.
        plan: how its codes are cut.
        q: the guide's site.
        log_q: its log-probabilities (B, N, K) or (1, N, K).
    """
    for i, numbers in enumerate(_likely(plan, log_q.detach())):
        yield partial(_elbo_part, model, plan, q, log_q, numbers, with_kl=i == 0)


def _likely(plan: Plan, log_q: Tensor) -> Iterator[Tensor]:
    """The numbers of all codes but those that q neglects for every datum, in slices."""
    if plan.num_slices == 1:
        return plan.numbers()
    columns = log_q.flatten(1).T  # (N * K, B)
    return plan.repacked(
        numbers[~plan.negligible(plan.codes(numbers).flatten(1) @ columns)] for numbers in plan.numbers()
    )


def _elbo_part(model: Run, plan: Plan, q: Site, log_q: Tensor, numbers: Tensor, *, with_kl: bool) -> Tensor:
    codes = plan.codes(numbers)
    scores = score(model, codes, plan.nesting)
    weights = plan.weights(codes.flatten(1) @ log_q.flatten(1).T)  # (s, B)
    part = (weights * _finite(scores.table)).sum(0)
    if with_kl:
        probs = log_q.exp()
        part = part + scores.prior.weigh((probs * scores.prior.log_probs).sum((-2, -1)))
        part = part - q.weigh((probs * log_q).sum((-2, -1)))
    return part


class Evidence(NamedTuple):
    """The log-evidence, and which codes matter to it."""

    log_evidence: Tensor  # (B,), before scaling
    scale: float | Tensor
    likely: list[Tensor]  # numbers of the codes that have a share in the posterior of a datum


@torch.no_grad()
def find_evidence(model: Run, plan: Plan) -> Evidence:
    """log p(x), from one pass over all codes."""
    so_far = torch.full((plan.batch_shape.numel(),), -torch.inf, dtype=plan.dtype, device=plan.device)
    log_sums, likely = [], []
    scale: float | Tensor = 1.0
    for numbers in plan.numbers():
        _, joint, scale = joint_scores(model, plan, numbers)
        log_sums.append(plan.log_sum(joint))
        so_far = torch.logaddexp(so_far, log_sums[-1])
        # The evidence only grows from here on: a negligible share of it stays negligible.
        likely.append(numbers[~plan.negligible(joint - so_far)])
    return Evidence(plan.log_sum(torch.stack(log_sums)), scale, likely)


def evidence_parts(model: Run, plan: Plan, found: Evidence) -> Iterator[Part]:
    """Functions whose values add up to E[log p(x, z)] under the posterior held fixed: its gradient is the evidence's."""
    for numbers in plan.repacked(found.likely):
        yield partial(_evidence_part, model, plan, found, numbers)


def _evidence_part(model: Run, plan: Plan, found: Evidence, numbers: Tensor) -> Tensor:
    _, joint, scale = joint_scores(model, plan, numbers)
    posterior = plan.weights(joint.detach() - found.log_evidence)  # (s, B)
    return scale * (posterior * _finite(joint)).sum(0)


def joint_scores(model: Run, plan: Plan, numbers: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
    """Codes (s, N * K), their log p(x, z) (s, B), and the scale that stands outside of a sum over them."""
    codes = plan.codes(numbers)
    scores = score(model, codes, plan.nesting)
    scale = scores.common_scale
    return codes.flatten(1), scores.table / scale + codes.flatten(1) @ scores.prior.log_probs.flatten(1).T, scale


def _finite(table: Tensor) -> Tensor:
    """-inf as a very small number: a code that cannot be and that no datum has must add 0, not NaN."""
    return table.clamp_min(torch.finfo(table.dtype).min)


def summed(plan: Plan, parts: Iterator[Part]) -> Tensor:
    """The sum of the parts; a single one keeps its graph, several are computed again in the backward pass."""
    again = plan.num_slices > 1 and torch.is_grad_enabled()
    total = sum(checkpoint(part, use_reentrant=False) if again else part() for part in parts)
    assert isinstance(total, Tensor)
    return total.reshape(plan.batch_shape)


class _GradientOf(torch.autograd.Function):
    """One tensor's value with another's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, like: Tensor) -> Tensor:
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
