"""Records one run of a Pyro computation as a graph of tensor operations; refuses what a graph cannot hold."""

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
from ..runtime.compat.torch import (
    Watching,
    one_mode_for_shapes,
    outside_of_recordings,
    storage_id,
    tensors_in,
    without_mkldnn,
)

aten = torch.ops.aten


class NotRecordableError(ValueError):
    """The program does something that a recording cannot hold. The plain ELBO still works."""


def record(function: Callable[..., Any], tensors: Sequence[Tensor]) -> GraphModule:
    """Record the operations of `function(*tensors)`, backward passes included, as a graph of these inputs.

    Tensors that the function reads, but that are neither arguments nor computed by it, become attributes of the module.
    They are the same objects, not copies.

    Args:
        function: a function of tensors; its result may be nested.
        tensors: its arguments.

    Raises:
        NotRecordableError: if a tensor's values are read, for example by `.item()`, or a shape depends on values.
    """
    last_site, constants = _LastSite(), _Constants()

    def recorded(*inputs: Tensor) -> Any:
        with last_site, _NoNumbers(last_site, constants), _NoDataDependence(last_site, constants):
            return function(*inputs)

    with pyro.validation_enabled(False), one_mode_for_shapes(), without_mkldnn():
        graph_module: GraphModule = make_fx(recorded)(*tensors)
    return graph_module


@final
class _LastSite(Messenger):
    """Remembers the sample site that ran last."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]

    def refuse(self, operation: str) -> NotRecordableError:
        where = "before the first site" if self.name is None else f"after site '{self.name}'"
        return NotRecordableError(
            f"Expected a fixed sequence of tensor operations, but found {operation} {where}, whose result depends on "
            "the data: a recording cannot hold that. Try the plain ELBO instead of TracedELBO, or a tensor operation "
            "such as torch.where."
        )


#: Functions that read a tensor's values into Python, and how people write them.
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
class _Constants:
    """Remembers the memory of tensors that depend on no input and no random number, such as `torch.arange(3)`."""

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def holds(self, args: Any) -> bool:
        """Return whether all tensors among the arguments are constants."""
        return all(_place(tensor) in self._storages for tensor in tensors_in(args))

    def take(self, func: Any, args: Any, results: Any) -> None:
        """Register an operation. A constant that data are written into is no longer a constant."""
        places = {place for tensor in tensors_in(results) if (place := _place(tensor)) is not None}
        is_constant = torch.Tag.nondeterministic_seeded not in func.tags and (
            func in LIFTS or (self.holds(args) and not func.name().startswith("aten::empty"))
        )
        if is_constant:
            self._storages |= places
        else:
            self._storages -= places


#: The first operation on a tensor that is made from Python numbers.
LIFTS = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


def _place(tensor: Tensor) -> int | None:
    return storage_id(tensor) if tensor.layout is torch.strided else None


@final
class _NoNumbers(TorchFunctionMode):
    """Refuses to read values from tensors, except from constants, and where Pyro itself does so."""

    def __init__(self, last_site: _LastSite, constants: _Constants) -> None:
        super().__init__()
        self.last_site = last_site
        self.constants = constants

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = answer_without_value(func)
        if answer is not None:
            return answer(*args)
        if func in EXITS:
            if self.constants.holds(args):
                with outside_of_recordings():
                    return func(*args, **(kwargs or {}))
            raise self.last_site.refuse(EXITS[func])
        if func is F.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(category: Tensor, num_classes: int = -1) -> Tensor:
    """Compute `F.one_hot` without its check of the values on a CPU."""
    if num_classes < 0:
        raise ValueError("Expected num_classes in one_hot, but found none. Try one_hot(category, num_classes=K).")
    return (category.unsqueeze(-1) == torch.arange(num_classes, device=category.device)).long()


#: Descriptions of operations whose names say too little.
OPERATIONS = {aten._local_scalar_dense.default: "a number taken from a tensor", aten.index.Tensor: "indexing by a mask"}


@final
class _NoDataDependence(Watching):
    """Refuses operations that depend on values. `make_fx` allows them on tensors that are not its inputs."""

    def __init__(self, last_site: _LastSite, constants: _Constants) -> None:
        super().__init__()
        self.last_site = last_site
        self.constants = constants

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and looks_for_nan():
            return False  # each replay checks for NaN itself
        depends = torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags and not _indexes_by_position(func, args)
        )
        if depends and not self.constants.holds((args, kwargs)):
            raise self.last_site.refuse(OPERATIONS.get(func, func.overloadpacket.__name__))
        if torch.Tag.data_dependent_output in func.tags:
            with outside_of_recordings():
                return func(*args, **(kwargs or {}))
        results = func(*args, **(kwargs or {}))
        self.constants.take(func, (args, kwargs), results)
        return results


def _indexes_by_position(func: Any, args: Any) -> bool:
    masks = (torch.bool, torch.uint8)
    return func is aten.index.Tensor and all(index is None or index.dtype not in masks for index in args[1])
