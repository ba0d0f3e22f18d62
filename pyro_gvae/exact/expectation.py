"""Compute a slice of codes' contribution to the ELBO, an expectation under q, and its derivatives."""

from typing import Any, cast

import torch
from torch import Tensor

from ..programs.joint import Terms
from ..runtime.compat.torch import is_transformed
from .plan import Plan


def finite(table: Tensor) -> Tensor:
    """Replace -inf by the lowest finite number, so that an impossible code adds 0 and not NaN."""
    return table.clamp_min(torch.finfo(table.dtype).min)


def expected(plan: Plan, terms: Terms, *, first: bool) -> Tensor:
    """Return what a slice adds to the ELBO, (B,); the first slice also adds the constant terms."""
    if is_transformed():
        part = (plan.weights(terms.log_weights) * finite(terms.table)).sum(0)
    else:
        part = cast(Tensor, _Expectation.apply(terms.log_weights, terms.table, plan))
    return part + terms.constant if first and terms.constant is not None else part


class _Expectation(torch.autograd.Function):
    """Compute sum_s w_sb R_sb from log w and R, both (s, B), and save its derivatives w R and w."""

    @staticmethod
    def forward(ctx: Any, log_weights: Tensor, table: Tensor, plan: Plan) -> Tensor:
        weights = plan.weights(log_weights)
        products = finite(table).mul_(weights)
        ctx.plan = plan
        ctx.save_for_backward(log_weights, table, weights, products)
        return products.sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        log_weights, table, weights, products = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            weights = ctx.plan.weights(log_weights)
            products = weights * finite(table)
        wanted = ctx.needs_input_grad
        return products * grad if wanted[0] else None, weights * grad if wanted[1] else None, None
