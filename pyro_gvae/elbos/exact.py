"""The exact ELBO and the exact log-evidence as Pyro losses, summed slice by slice in bounded memory."""

from abc import abstractmethod
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ..distributions.parameters import impossible_as_infinite
from ..exact import elimination
from ..exact.endless import plan_to_end
from ..exact.plan import Plan
from ..exact.sums import elbo_parts, evidence, evidence_parts, find_evidence, summed
from ..handlers.sites import Program
from ..programs.chains import Chains
from ..programs.joint import read_guide_once
from ..programs.kept import Kept
from ..programs.runs import Runs, bind
from ..programs.tensor_elbo import TensorELBO
from ..runtime.autograd import all_or_nothing
from ..runtime.distributed import ALONE, Share


class _ExactLoss(TensorELBO):
    """Abstract base: a loss that sums over the codes of the discrete latents instead of sampling them.

    Attributes:
        with_guide: whether the guide is read.
    """

    with_guide: bool

    def __init__(self, *, max_memory: float | None = None, slice_size: int | None = None, share: Share = ALONE) -> None:
        super().__init__()
        self.share = share
        self.max_memory = max_memory
        self.slice_size = slice_size
        self._plans: Kept[Plan | Chains] = Kept()

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor, in nats summed over the data. The backward pass computes slices again."""

    @torch.no_grad()
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data."""
        return self.differentiable_loss(model, guide, *args, **kwargs)

    def _step(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss and add gradients, if all codes fit into one slice."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def num_slices(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> int:
        """Return the number of slices into which the codes are cut."""
        return self._plan(bind(model, guide, *args, **kwargs), model, guide, args, kwargs).num_slices

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """Return a sentence that explains why the loss cannot be recorded, or None if it can."""
        num_slices = self.num_slices(model, guide, *args, **kwargs)
        if num_slices == 1:
            return None
        return (
            f"Expected a sum over one slice of codes, but found {num_slices} slices. Codes with a negligible posterior "
            "are left out, and a recording cannot hold such a decision. Try the plain ELBO, which is hardly slower, or "
            "a larger slice_size."
        )

    def _plan(
        self, runs: Runs, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Plan | Chains:
        """Return how the sum is taken, which takes a few small runs, so it is kept for arguments of equal shapes."""
        owner = model, guide, self.max_memory, self.slice_size, self.share
        return self._plans.find(owner, args, kwargs, lambda: self._new_plan(runs))

    def _new_plan(self, runs: Runs) -> Plan | Chains:
        return plan_to_end(
            runs,
            with_guide=self.with_guide,
            max_memory=self.max_memory,
            slice_size=self.slice_size,
            share=self.share,
        )


@final
class ExactELBO(_ExactLoss):
    r"""The exact ELBO of the discrete model as a loss for `SVI`, without bias and, over codes, without variance.

    .. math::

        \mathrm{loss} = -\sum_b \Big( \sum_{z} q(z | x_b) \log p(x_b | z) - \mathrm{KL}(q(z | x_b) \,\|\, p(z)) \Big)

    The sum over all K^N joint codes is that of stock `TraceEnum_ELBO`, but decodes each code only once. It goes slice
    by slice: the backward pass of a slice is finished before the next slice starts. With several slices, codes with
    negligible q for all data (see :func:`pyro_gvae.exact.elbo`) are not decoded, so steps become cheaper as posteriors
    sharpen.

    Several discrete latents (one-hots, bits, integers) are summed jointly: there are as many codes as the product of
    their K^N. Continuous latents beside them are drawn by `rsample`, for each code if they depend on it; the loss is
    then an unbiased estimate.

    Latents inside of `pyro.markov`, and those that only the model has, are summed one after another; see
    :func:`pyro_gvae.exact.elbo`.

    Args:
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several divide them; their losses and gradients add up.

    Raises:
        ValueError: when called, if the guide has latents that the model lacks or lacks continuous ones of the model, if
            a continuous latent has no `rsample`, if a statement outside of a latent's plates or reach depends on it, if
            there are more than 2^62 codes or a sum takes more than 1e15
            operations, or if a slice does not fit into `max_memory`.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyro_gvae.handlers import discretize
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> svi = SVI(discretize(vae.model), discretize(vae.guide), pyro.optim.Adam({"lr": 0.1}), ExactELBO())
        >>> x = torch.ones(4, 6)
        >>> first = svi.step(x)
        >>> svi.step(x) < first
        True
    """

    with_guide = True

    @override
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains):
            return -elimination.elbo(runs, plan).sum()
        return -summed(plan, elbo_parts(runs, plan, read_guide_once(runs, plan.layout))).sum()

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains) or plan.num_slices == 1:
            return self._step(model, guide, *args, **kwargs)
        found = read_guide_once(runs, plan.layout)
        # All slices add their gradients to these leaves. The guide's own backward pass then runs once, at the end.
        tensors = found.tensors()
        cuts = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with all_or_nothing() as backward:
            parts = elbo_parts(runs, plan, found.with_tensors(cuts))
            elbo = torch.stack([-backward(-part().sum()) for part in parts]).sum()
            reached = [(tensor, cut.grad) for tensor, cut in zip(tensors, cuts, strict=True) if cut.grad is not None]
            if reached:
                torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])
        return -impossible_as_infinite(elbo)


@final
class ExactEvidence(_ExactLoss):
    r"""The exact log-evidence of the discrete model as a loss for `SVI`: maximum likelihood, no guide.

    .. math:: \mathrm{loss} = -\sum_b \log \sum_{z} p(x_b | z) \, p(z)

    A first pass without gradients computes log p(x). A second pass, over the codes with a posterior probability that is
    not negligible, computes the posterior mean of the gradients of log p(x, z) (Fisher's identity). If all codes fit
    into one slice, there is a single pass. Where data share a discrete latent, all codes are summed, from the innermost
    plates to the outermost.

    Args:
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several divide them; their losses and gradients add up.

    Raises:
        ValueError: when called, if the model has a continuous latent, if the plates of its discrete latents are not
            nested, if its sites are scaled differently, if there are more than 2^62 codes or a sum takes more than 1e15
            operations, or if a slice does not fit
            into `max_memory`.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> ExactEvidence().loss(vae.model, lambda x: None, torch.ones(4, 6)) > 0  # any guide: it is not used
        True
    """

    with_guide = False

    @override
    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        if self.share.world_size > 1:
            return "Expected one process that sums all codes, but found several that divide them. Try the plain ELBO."
        return super().why_not_recordable(model, guide, *args, **kwargs)

    @override
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if self.share.world_size > 1 and torch.is_grad_enabled():
            raise ValueError(
                "Expected a call of loss_and_grads when processes divide the codes, but found differentiable_loss: the "
                "terms of other processes have no gradient here. Try loss_and_grads."
            )
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains):
            return -elimination.log_evidence(runs, plan).sum()
        return self._own(-evidence(runs.model, plan).sum())

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        is_one_pass = plan.num_slices == 1 and self.share.world_size == 1
        if isinstance(plan, Chains) or is_one_pass or plan.layout.is_shared:
            return self._step(model, guide, *args, **kwargs)
        found = find_evidence(runs.model, plan)
        with all_or_nothing() as backward:
            for part in evidence_parts(runs.model, plan, found):
                backward(-part().sum())
        return self._own(-(found.scale * found.log_evidence).sum())

    def _own(self, loss: Tensor) -> Tensor:
        """Return the loss in one process and zero in the others, which all know it, so that it counts once."""
        return loss if self.share.rank == 0 else torch.zeros_like(loss)
