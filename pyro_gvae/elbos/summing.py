"""The base of losses that sum over codes, slice by slice in bounded memory."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..exact.endless import plan_to_end
from ..exact.plan import Plan
from ..exact.sums import Part
from ..handlers.sites import Program
from ..programs.chains import Chains
from ..programs.joint import Guide
from ..programs.kept import Kept
from ..programs.runs import Runs, bind
from ..programs.tensor_elbo import DifferentiableELBO
from ..runtime.autograd import all_or_nothing
from ..runtime.distributed import ALONE, Share


class ExactLoss(DifferentiableELBO):
    """Abstract base: a loss that sums over the codes of the discrete latents instead of sampling them.

    Attributes:
        with_guide: whether the loss uses the guide.
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
            "are left out, and a recording cannot make such a decision. Try the plain ELBO, which is hardly slower, or "
            "a larger slice_size."
        )

    def why_not_together(self) -> str | None:
        """Return why the loss cannot be recorded while several processes divide the codes, or None."""
        if self.share.world_size == 1:
            return None
        return "Expected one process that sums all codes, but found several that divide them. Try the plain ELBO."

    def counted_once(self, loss: Tensor) -> Tensor:
        """Return the loss in the first process and zero in the others, so that their sum counts it once."""
        return loss if self.share.rank == 0 else torch.zeros_like(loss)

    def _plan(
        self, runs: Runs, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Plan | Chains:
        """Return the plan of the sum. Making it takes a few small runs, so it is kept for arguments of equal shapes."""
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


def why_searched(plan: Plan | Chains) -> str | None:
    """Return why a sum that leaves out improbable codes cannot be recorded, or None if it includes all codes."""
    if isinstance(plan, Chains) or not plan.is_searched:
        return None
    return (
        f"Expected few codes, but found {plan.num_codes}. Those with a negligible posterior are left out, and a "
        "recording cannot make such a decision. Try the plain ELBO, which is hardly slower at first and faster later."
    )


def climb(guide: Guide, parts: Callable[[Guide], Iterable[Part]]) -> Tensor:
    """Add the gradients of minus a sum to `.grad`, one part after another, and return the sum.

    Args:
        guide: the guide's values, computed once. All parts add their gradients to them, and the guide's own backward
            pass runs at the end.
        parts: returns the parts of the sum, from the guide's values.
    """
    tensors = guide.tensors()
    cuts = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    with all_or_nothing() as backward:
        total = torch.stack([-backward(-part().sum()) for part in parts(guide.with_tensors(cuts))]).sum()
        reached = [(tensor, cut.grad) for tensor, cut in zip(tensors, cuts, strict=True) if cut.grad is not None]
        if reached:
            torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])
    return total
