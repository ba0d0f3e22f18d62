"""Count the operations of a computation instead of its time: the same number on every machine, busy or not."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from .compat.torch import Watching, storage_id, tensors_in

#: Writing one element takes about as long as this many floating-point operations of a matrix product.
OPERATIONS_PER_ELEMENT = 64
#: Operations per second of two server cores (of 2026), within a factor of two. It converts limits that people state in
#: seconds to counted operations. No clock is read, so decisions are the same on every machine.
OPERATIONS_PER_SECOND = 1e11
#: Products of matrices, whose last factor is their last argument.
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
#: Parts of the names of other operations that torch counts.
OTHERS = ("conv", "attention", "_mm")


class Work(NamedTuple):
    """The work of a computation.

    Attributes:
        operations: as :func:`count_operations` counts them.
        calls: the number of torch's operations, each of which takes some time besides its arithmetic.
    """

    operations: int
    calls: int


def count_operations(run: Callable[[], Any]) -> int:
    """Count the operations of a computation: those of products and convolutions, plus 64 per element written.

    Backward passes count if `run` performs them. Elements that an operation writes into its arguments do not count.

    Args:
        run: the computation; it is called once.

    Returns:
        The number of operations. For a given version of torch, it depends only on shapes.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> count_operations(lambda: a @ b) == 2 * 2 * 3 * 4 + 64 * 2 * 4
        True
    """
    return count_work(run).operations


def count_work(run: Callable[[], Any]) -> Work:
    """Count the operations of a computation, and the calls of torch that they are made in.

    Args:
        run: the computation; it is called once.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> count_work(lambda: (a @ b).exp()).calls
        2
    """
    with _Counted() as counted:
        run()
    return Work(counted.products + OPERATIONS_PER_ELEMENT * counted.num_elements, counted.calls)


def _formula(operation: Any) -> Callable[..., int] | None:
    """Return torch's formula for the operations of a product or a convolution; None for any other operation."""
    if operation.overloadpacket in PRODUCTS:
        return _of_matrices
    if not any(word in operation.overloadpacket.__name__ for word in OTHERS):
        return None
    from torch.utils.flop_counter import flop_registry  # imported here, since it imports triton

    found: Callable[..., int] | None = flop_registry.get(operation.overloadpacket)
    return found


def _of_matrices(*factors: Tensor, out_val: Tensor, **_: Any) -> int:
    return 2 * out_val.numel() * factors[-1].shape[-2]


@final
class _Counted(Watching):
    """Counts operations of products, and the elements of new tensors; views of existing tensors are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.num_elements = 0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _formula(func)
        if formula is None:
            with self:  # in inference mode an operation may be composed of others
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self.calls += 1
        result = func(*args, **kwargs)
        if formula is not None:
            self.products += int(formula(*args, **kwargs, out_val=result))
        known = {storage_id(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            if storage_id(tensor) not in known:
                self.num_elements += tensor.numel()
        return result
