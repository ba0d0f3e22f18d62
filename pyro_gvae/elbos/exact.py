"""The exact ELBO and the exact log-evidence as Pyro losses, summed slice by slice in bounded memory."""

from abc import abstractmethod
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ..exact.plan import Plan, make_plan
from ..exact.sums import elbo_parts, evidence, evidence_parts, find_evidence, summed
from ..handlers.sites import Program
from ..programs.joint import read_guide_once
from ..programs.kept import Kept
from ..programs.runs import Runs, bind
from ..programs.tensor_elbo import TensorELBO
from ..runtime.autograd import all_or_nothing
from ..runtime.distributed import ALONE, Share


class _ExactLoss(TensorELBO):
    """Abstract: a loss that sums over the codes of the discrete latents in place of sampling them.

    Attributes:
        with_guide: whether the guide is read.
    """

    with_guide: bool

    def __init__(self, *, max_memory: float | None = None, slice_size: int | None = None, share: Share = ALONE) -> None:
        super().__init__()
        self.share = share
        self.max_memory = max_memory
        self.slice_size = slice_size
        self._plans: Kept[Plan] = Kept()

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a tensor, in nats summed over the data; slices are computed again in its backward pass."""

    @torch.no_grad()
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, summed over the data."""
        return self.differentiable_loss(model, guide, *args, **kwargs)

    def _step(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss and gradients of codes that are one slice."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def num_slices(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> int:
        """Into how many slices the codes are cut; what is done with several depends on the data."""
        return self._plan(bind(model, guide, *args, **kwargs), model, guide, args, kwargs).num_slices

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """In a sentence, why the loss cannot be recorded; None if it can."""
        num_slices = self.num_slices(model, guide, *args, **kwargs)
        if num_slices == 1:
            return None
        return (
            f"Expected a loss of one pass, but found a sum over {num_slices} slices of codes, some of which are left "
            "out when their posterior says so: a recording cannot hold that. Try the plain ELBO, as Pyro's share in "
            "its time is small, or a larger slice_size."
        )

    def _plan(self, runs: Runs, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        """How the codes are cut: it takes a few small runs to find out, so plans are kept for equal shapes."""
        owner = model, guide, self.max_memory, self.slice_size, self.share
        return self._plans.find(owner, args, kwargs, lambda: self._new_plan(runs))

    def _new_plan(self, runs: Runs) -> Plan:
        return make_plan(
            runs,
            with_guide=self.with_guide,
            max_memory=self.max_memory,
            slice_size=self.slice_size,
            share=self.share,
        )


@final
class ExactELBO(_ExactLoss):
    r"""The exact ELBO of the discrete model as a loss for `SVI`: nothing is sampled, so it has no variance and no bias.

    .. math::

        \mathrm{loss} = -\sum_b \Big( \sum_{z} q(z | x_b) \log p(x_b | z) - \mathrm{KL}(q(z | x_b) \,\|\, p(z)) \Big)

    The sum over all K^N joint codes is that of stock `TraceEnum_ELBO`, at the cost of one decoder call for each code,
    slice by slice: each slice's backward pass is done before the next slice is begun. Codes that q neglects for all
    data (see :func:`pyro_gvae.exact.elbo`) are not decoded, so that a step gets cheaper as posteriors sharpen.

    Args:
        max_memory: bytes that a slice may take; a quarter of the free memory if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, where several divide them: losses and gradients of all add up.

    Raises:
        ValueError: when it is used, if model or guide have other latent variables than one one-hot site of event shape
            (N, K) or (K,), or if the sum cannot be taken.

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
        return -summed(plan, elbo_parts(runs, plan, read_guide_once(runs, plan.layout))).sum()

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if plan.num_slices == 1:
            return self._step(model, guide, *args, **kwargs)
        found = read_guide_once(runs, plan.layout)
        # The guide's graph is walked once, at the end, with the gradients that all slices have left here.
        tensors = found.tensors()
        cuts = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with all_or_nothing() as backward:
            parts = elbo_parts(runs, plan, found.with_tensors(cuts))
            loss = torch.stack([backward(-part().sum()) for part in parts]).sum()
            reached = [(tensor, cut.grad) for tensor, cut in zip(tensors, cuts, strict=True) if cut.grad is not None]
            if reached:
                torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])
        return loss


@final
class ExactEvidence(_ExactLoss):
    r"""The exact log-evidence of the discrete model as a loss for `SVI`: maximum likelihood, without a guide.

    .. math:: \mathrm{loss} = -\sum_b \log \sum_{z} p(x_b | z) \, p(z)

    One pass without gradients finds log p(x); a second one, over the codes whose posterior probability is not
    negligible, accumulates the posterior's mean of the gradients of log p(x, z) (Fisher's identity). Codes that fit
    into one slice take a single pass.

    Args:
        max_memory: bytes that a slice may take; a quarter of the free memory if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, where several divide them: losses and gradients of all add up.

    Raises:
        ValueError: when it is used, if the model has other latent variables than one one-hot site, if its sites are
            scaled differently, or if the sum cannot be taken.

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
            return "Expected a loss of this process alone, but found a sum over the codes of several."
        return super().why_not_recordable(model, guide, *args, **kwargs)

    @override
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if self.share.world_size > 1 and torch.is_grad_enabled():
            raise ValueError(
                "Expected to be asked for loss_and_grads, but found differentiable_loss, whose codes are divided among "
                "processes: what the others found has no gradient here."
            )
        runs = bind(model, guide, *args, **kwargs)
        return self._own(-evidence(runs.model, self._plan(runs, model, guide, args, kwargs)).sum())

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if plan.num_slices == 1 and self.share.world_size == 1:
            return self._step(model, guide, *args, **kwargs)
        found = find_evidence(runs.model, plan)
        with all_or_nothing() as backward:
            for part in evidence_parts(runs.model, plan, found):
                backward(-part().sum())
        return self._own(-(found.scale * found.log_evidence).sum())

    def _own(self, loss: Tensor) -> Tensor:
        """This process's part of a loss that all have found."""
        return loss if self.share.rank == 0 else torch.zeros_like(loss)
