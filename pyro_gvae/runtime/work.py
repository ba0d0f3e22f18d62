"""How much a computation does, counted and not timed: the same number on every machine, busy or not."""

from collections.abc import Callable
from typing import Any, final

from torch.utils.flop_counter import FlopCounterMode

from .compat.torch import TorchDispatchMode, storage_id, tensors_in

#: An element that an operation writes takes about as long as so many floating-point operations of a matrix product.
OPERATIONS_PER_ELEMENT = 64
#: What two cores of a server (of 2026) do in a second, within a factor of two. It translates between limits that people
#: think of in seconds and counted operations; no clock is read, so that what is decided by it is the same everywhere.
OPERATIONS_PER_SECOND = 1e11


def count_operations(run: Callable[[], Any]) -> int:
    """Count what a computation does: operations of products and convolutions, and 64 for each element that is written.

    Backward passes are counted where `run` asks for them. Not counted is what an operation writes into its arguments.

    Args:
        run: called once.

    Returns:
        A number that depends on shapes alone, for one version of torch.

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
    """Counts the elements of new tensors; views of old ones are not written."""

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
