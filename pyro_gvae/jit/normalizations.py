"""Softmax and log-softmax over few categories, and their derivatives, written as elementary operations."""

from collections.abc import Callable
from typing import Any

import torch

Op = Any  # a Node; the declared type of its arguments is too wide to be useful
New = Callable[..., Op]
aten = torch.ops.aten
SUB, MUL, EXP, SUM_ALONG = aten.sub.Tensor, aten.mul.Tensor, aten.exp.default, aten.sum.dim_IntList


def _log_softmax(new: New, x: Op) -> Op:
    shifted = new(SUB, x, new(aten.amax.default, x, [-1], True))
    return new(SUB, shifted, new(aten.log.default, new(SUM_ALONG, new(EXP, shifted), [-1], True)))


def _softmax(new: New, x: Op) -> Op:
    raised = new(EXP, new(SUB, x, new(aten.amax.default, x, [-1], True)))
    return new(aten.div.Tensor, raised, new(SUM_ALONG, raised, [-1], True))


def _log_softmax_backward(new: New, gradient: Op, y: Op) -> Op:
    return new(SUB, gradient, new(MUL, new(EXP, y), new(SUM_ALONG, gradient, [-1], True)))


def _softmax_backward(new: New, gradient: Op, y: Op) -> Op:
    weighted = new(MUL, gradient, y)
    return new(SUB, weighted, new(MUL, y, new(SUM_ALONG, weighted, [-1], True)))


#: Operation -> number of tensor arguments, which precede the dimension, and the function that rewrites it.
NORMALIZATIONS: dict[Any, tuple[int, Callable[..., Op]]] = {
    aten._log_softmax.default: (1, _log_softmax),
    aten._softmax.default: (1, _softmax),
    aten._log_softmax_backward_data.default: (2, _log_softmax_backward),
    aten._softmax_backward_data.default: (2, _softmax_backward),
}
