"""Helpers for gradients: restored after a block, added all together, or traced to their leaves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def kept_gradients(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Set gradients to None inside the block, and restore them afterwards."""
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in zip(leaves, before, strict=True):
            leaf.grad = gradient


@contextmanager
def all_or_nothing() -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a backward function whose gradients are added to `.grad` at the end, or not at all after an exception."""
    before: dict[Tensor, Tensor | None] = {}

    def backward(loss: Tensor) -> Tensor:
        for leaf in leaves(loss):
            if leaf not in before:
                before[leaf], leaf.grad = leaf.grad, None
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    try:
        yield backward
    except BaseException:
        for leaf, grad in before.items():
            leaf.grad = grad
        raise
    for leaf, grad in before.items():
        if grad is not None:
            assert leaf.grad is not None
            leaf.grad = grad.add_(leaf.grad)


def leaves(root: Tensor) -> list[Tensor]:
    """Return the tensors with a `.grad`, mostly parameters, that a backward pass from `root` reaches."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    nodes = [root.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes.extend(child for child, _ in node.next_functions)
    return found
