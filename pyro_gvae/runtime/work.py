"""The operations of a computation, counted and not timed: the same number on every machine, busy or not."""

from collections.abc import Callable
from typing import Any, final

from torch.utils.flop_counter import FlopCounterMode

from .compat.torch import TorchDispatchMode, storage_id, tensors_in

#: Writing one element takes about as long as this many floating-point operations of a matrix product.
OPERATIONS_PER_ELEMENT = 64
#: Operations per second of two server cores (of 2026), within a factor of two. It converts limits that people state in
#: seconds to counted operations. No clock is read, so decisions are the same on every machine.
OPERATIONS_PER_SECOND = 1e11


def count_operations(run: Callable[[], Any]) -> int:
    """Count the operations of a computation: those of products and convolutions, plus 64 per element written.

    Backward passes count if `run` performs them. What an operation writes into its arguments does not count.

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
    with FlopCounterMode(display=False) as products, _Written() as written:
        run()
    return int(products.get_total_flops()) + OPERATIONS_PER_ELEMENT * written.num_elements


@final
class _Written(TorchDispatchMode):
    """Counts the elements of new tensors; views of existing tensors are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {storage_id(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            if storage_id(tensor) not in known:
                self.num_elements += tensor.numel()
        return result
