"""Exact log p(x) for the model and an exact KL for the guide, as one Pyro loss."""

import functools
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ..exact import elimination
from ..exact.plan import computed
from ..exact.sums import evidence, find_evidence
from ..exact.wake import Encoder, Exclusive, wake_parts, whole, with_gradient_of
from ..handlers.sites import Program
from ..programs.chains import Chains
from ..programs.joint import read_guide_once
from ..programs.runs import bind
from .summing import ExactLoss, climb, why_searched


@final
class ExactWake(ExactLoss):
    r"""The exact log-evidence for the model, and an exact KL for the guide, from one table of codes.

    .. math::

        \mathrm{loss} = -\sum_b \log p(x_b), \quad
        \nabla_\theta = -\sum_b \nabla_\theta \log p_\theta(x_b), \quad
        \nabla_\phi = -\sum_b \nabla_\phi \mathrm{ELBO}_b \ \text{ or } \
        -\sum_b \sum_z p_\theta(z | x_b) \nabla_\phi \log q_\phi(z | x_b)

    The first gradient of the guide's log-probabilities is that of KL(q(z | x) || p(z | x)); the second is that of
    KL(p(z | x) || q(z | x)), the wake phase of reweighted wake-sleep (Bornschein and Bengio 2015, arXiv 1406.2751;
    named so by Le et al. 2019, arXiv 1805.10469), with the posterior itself in place of importance weights. Parameters
    that model and guide share get both gradients. The loss is -log p(x) in both cases; the gradients are not those of
    this loss.

    If all codes fit into one slice, they are decoded once. With several slices, a first pass without gradients computes
    log p(x), and a second pass decodes the codes that are probable under the posterior, or under the guide if its
    gradient needs them.

    Args:
        encoder: the objective of the guide, :class:`~pyro_gvae.exact.wake.Exclusive` or `Inclusive`; the first if None.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them; their losses and gradients add up.

    Raises:
        ValueError: when called, as :class:`~pyro_gvae.ExactELBO` and :class:`~pyro_gvae.ExactEvidence`.

    Example:
        >>> from pyro_gvae import CategoricalVAE, ExactEvidence
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> abs(ExactWake().loss(vae.model, vae.guide, x) - ExactEvidence().loss(vae.model, vae.guide, x)) < 1e-4
        True
    """

    with_guide = True

    def __init__(self, encoder: Encoder | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.encoder = Exclusive() if encoder is None else encoder

    @override
    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        plan = self._plan(bind(model, guide, *args, **kwargs), model, guide, args, kwargs)
        searched = None if isinstance(plan, Chains) or not plan.layout.is_shared else why_searched(plan)
        return self.why_not_together() or searched or super().why_not_recordable(model, guide, *args, **kwargs)

    @override
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains):
            with_graph = torch.is_grad_enabled()
            return -(self.encoder.of_chains(runs, plan) if with_graph else elimination.log_evidence(runs, plan).sum())
        if not torch.is_grad_enabled():
            return self.counted_once(-evidence(runs.model, plan).sum())
        read = read_guide_once(runs, plan.layout)
        if plan.layout.is_shared:
            return -self.encoder.of_levels(runs, plan, read)
        if plan.num_slices == 1 and self.share.world_size == 1:
            return -whole(runs, plan, read, self.encoder)
        found = find_evidence(runs.model, plan, functools.partial(self.encoder.keeps, plan, read))
        parts = wake_parts(runs, plan, found, self.encoder, read)
        climbed = functools.reduce(torch.add, (computed(plan, part) for part in parts)).sum()
        return with_gradient_of(self.counted_once(-(found.scale * found.log_evidence).sum()), -climbed)

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        is_one_pass = plan.num_slices == 1 and self.share.world_size == 1
        if isinstance(plan, Chains) or is_one_pass or plan.layout.is_shared:
            return super().tensor_loss_and_grads(model, guide, *args, **kwargs)
        read = read_guide_once(runs, plan.layout)
        found = find_evidence(runs.model, plan, functools.partial(self.encoder.keeps, plan, read))
        climb(read, lambda cut: wake_parts(runs, plan, found, self.encoder, cut))
        return self.counted_once(-(found.scale * found.log_evidence).sum())
