"""What the package asks of torch, and torch's public interface does not answer: one function for each question.

No release of torch promises these names. `tests/runtime/test_compat.py` asks each question in a few lines.
"""

import linecache
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.graph_module import _loader
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "Nesting",
    "TorchDispatchMode",  # a mode whose `__torch_dispatch__` sees every operation, those of backward passes included
    "compiled",
    "flattened",
    "is_operation",
    "leaves_of",
    "name_of_operation",
    "nested",
    "no_sources_kept",
    "one_mode_for_shapes",
    "shares_memory",
    "storage_id",
    "tensors_in",
    "tensors_mapped",
    "written_arguments",
]

# Nested tuples, lists and dictionaries.

Nesting = pytree.TreeSpec


def flattened(tree: Any) -> tuple[list[Any], Nesting]:
    """Return the leaves of nested containers, and how they are nested."""
    return pytree.tree_flatten(tree)


def nested(leaves: Sequence[Any], nesting: Nesting) -> Any:
    """Return leaves in the containers that :func:`flattened` took away."""
    return pytree.tree_unflatten(leaves, nesting)


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of nested containers."""
    return pytree.tree_leaves(tree)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of nested containers."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def tensors_mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return the same containers, with a function's results in place of tensors."""
    return pytree.tree_map_only(Tensor, function, tree)


# Operations, as graphs and modes show them.


def is_operation(target: Any) -> bool:
    """Tell whether a graph's node calls an operation of torch, and not a function of Python."""
    return isinstance(target, torch._ops.OpOverload)


def name_of_operation(operation: Any) -> str:
    """Return an operation's name without its overload: "add" of `torch.ops.aten.add.Tensor`."""
    name: str = operation._schema.name
    return name.removeprefix("aten::")


def shares_memory(operation: Any) -> bool:
    """Tell whether a result of an operation lies in the memory of an argument, as a view does.

    Schemas say it, but for `_unsafe_view`, which promises that nobody uses its argument any more.
    """
    is_view = any(result.alias_info is not None for result in operation._schema.returns)
    return is_view or operation is torch.ops.aten._unsafe_view.default


def written_arguments(operation: Any) -> list[tuple[int, str]]:
    """Return positions and names of the arguments whose memory an operation writes to, as its schema says."""
    arguments = enumerate(operation._schema.arguments)
    aliases = [(position, argument.name, argument.alias_info) for position, argument in arguments]
    return [(position, name) for position, name, alias in aliases if alias is not None and alias.is_write]


# Recording.


@contextmanager
def one_mode_for_shapes() -> Iterator[None]:
    """Give `make_fx` one mode that finds the shapes of results.

    Without it, torch makes one for each operation that it records, and keeps a stack trace with it: a recording takes
    40 % less time.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        yield


@contextmanager
def no_sources_kept() -> Iterator[None]:
    """Forget the source text of graphs that are compiled here: for tracebacks, torch would keep it for good."""
    known = set(_loader.eval_cache)
    try:
        yield
    finally:
        for key in _loader.eval_cache.keys() - known:
            del _loader.eval_cache[key]
            linecache.cache.pop(key, None)


def compiled(graph_module: GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph of flat inputs and outputs by Inductor as it is: `torch.compile` would trace it once more."""
    return torch._inductor.compile(graph_module, list(inputs), options=options)


# Memory.


def storage_id(tensor: Tensor) -> int:
    """Return a number that two tensors share as long as they share their memory.

    It is the address of torch's own object. The objects of Python around it are made anew at each look.
    """
    return tensor.untyped_storage()._cdata
