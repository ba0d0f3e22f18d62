"""One run of a Pyro computation, recorded as a graph of tensor operations; what a graph cannot hold is refused."""

from collections.abc import Callable, Sequence
from typing import Any, final

import pyro
import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ..runtime.compat.pyro import answer_without_value, looks_for_nan
from ..runtime.compat.torch import TorchDispatchMode, one_mode_for_shapes

aten = torch.ops.aten


class NotRecordableError(ValueError):
    """The program does what a recording cannot hold; the plain ELBO can."""


def record(function: Callable[..., Any], tensors: Sequence[Tensor]) -> GraphModule:
    """The operations of `function(*tensors)`, its backward passes included, with `tensors` as inputs.

    Tensors that the function reads and that are neither arguments nor its own work become attributes of the module,
    as the very objects that they are.

    Args:
        function: of tensors; what it returns may be nested.
        tensors: arguments.

    Raises:
        NotRecordableError: if a value leaves the tensors, as by `.item()`, or a shape depends on values.
    """
    last_site = _LastSite()

    def recorded(*inputs: Tensor) -> Any:
        with last_site, _NoNumbers(last_site), _NoDataDependence(last_site):
            return function(*inputs)

    with pyro.validation_enabled(False), one_mode_for_shapes():
        graph_module: GraphModule = make_fx(recorded)(*tensors)
    return graph_module


@final
class _LastSite(Messenger):
    """Knows at which sample site a run is."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]

    def refuse(self, operation: str) -> NotRecordableError:
        where = "before the first site" if self.name is None else f"after site '{self.name}'"
        return NotRecordableError(
            f"Expected a program that is one sequence of tensor operations, but found {operation} {where}, whose "
            "result depends on the data: a recording cannot hold that. Try the plain ELBO in place of TracedELBO, or "
            "an operation on tensors, such as torch.where."
        )


#: Functions that turn a tensor's values into something else, and how people write them.
EXITS: dict[Any, str] = {
    Tensor.item: ".item()",
    Tensor.tolist: ".tolist()",
    Tensor.numpy: ".numpy()",
    Tensor.__array__: "numpy.asarray(tensor)",
    Tensor.__dlpack__: "from_dlpack(tensor)",
    Tensor.__bool__: "bool(tensor), as in `if tensor > 0`,",
    Tensor.__int__: "int(tensor)",
    Tensor.__float__: "float(tensor)",
    Tensor.__index__: "a tensor as an index or a length",
}


@final
class _NoNumbers(TorchFunctionMode):
    """Refuses to take values out of tensors, but for what Pyro itself asks."""

    def __init__(self, last_site: _LastSite) -> None:
        super().__init__()
        self.last_site = last_site

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = answer_without_value(func)
        if answer is not None:
            return answer(*args)
        if func in EXITS:
            raise self.last_site.refuse(EXITS[func])
        if func is F.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(category: Tensor, num_classes: int = -1) -> Tensor:
    """`F.one_hot` without its look at the values on a CPU."""
    if num_classes < 0:
        raise ValueError("Expected num_classes in one_hot, but found none: a recording cannot count them.")
    return (category.unsqueeze(-1) == torch.arange(num_classes, device=category.device)).long()


#: Operations whose names say too little.
OPERATIONS = {aten._local_scalar_dense.default: "a number taken from a tensor", aten.index.Tensor: "indexing by a mask"}


@final
class _NoDataDependence(TorchDispatchMode):
    """Refuses operations that look at values, which `make_fx` lets pass where the values are not its inputs'."""

    def __init__(self, last_site: _LastSite) -> None:
        super().__init__()
        self.last_site = last_site

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and looks_for_nan():
            return False  # it is looked for in each replay
        depends = torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags and not _indexes_by_position(func, args)
        )
        if depends:
            raise self.last_site.refuse(OPERATIONS.get(func, func.overloadpacket.__name__))
        return func(*args, **(kwargs or {}))


def _indexes_by_position(func: Any, args: Any) -> bool:
    masks = (torch.bool, torch.uint8)
    return func is aten.index.Tensor and all(index is None or index.dtype not in masks for index in args[1])
