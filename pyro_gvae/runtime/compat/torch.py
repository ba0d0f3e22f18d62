"""Questions that torch's public interface does not answer, one function for each.

The functions use private names, which no release of torch promises. `tests/runtime/test_compat.py` asks each question
in a few lines.
"""

import linecache
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.graph_module import _loader
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = [
    "Nesting",
    "Results",
    "Watching",
    "acts_when_graded",
    "compiled",
    "flattened",
    "hooks_of",
    "hooks_of_all_modules",
    "hooks_of_each",
    "is_operation",
    "is_transformed",
    "leaves_of",
    "name_of_operation",
    "nested",
    "no_sources_kept",
    "one_mode_for_shapes",
    "outside_of_recordings",
    "outside_of_transforms",
    "parameters_of",
    "shares_memory",
    "storage_id",
    "tensors_in",
    "tensors_mapped",
    "validates",
    "without_mkldnn",
    "without_repeats",
    "written_arguments",
]

# Nested tuples, lists and dictionaries.

Nesting = pytree.TreeSpec


def flattened(tree: Any) -> tuple[list[Any], Nesting]:
    """Return the leaves of nested containers, and their nesting."""
    return pytree.tree_flatten(tree)


def nested(leaves: Sequence[Any], nesting: Nesting) -> Any:
    """Put leaves back into the containers that :func:`flattened` removed."""
    return pytree.tree_unflatten(leaves, nesting)


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of nested containers."""
    return pytree.tree_leaves(tree)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of nested containers."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def tensors_mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to the tensors in nested containers, and return the same containers with its results."""
    return pytree.tree_map_only(Tensor, function, tree)


# Operations, as graphs and modes show them.


def is_operation(target: Any) -> bool:
    """Return whether a node of a graph calls an operation of torch, and not a Python function."""
    return isinstance(target, torch._ops.OpOverload)


def name_of_operation(operation: Any) -> str:
    """Return an operation's name without its overload: "add" of `torch.ops.aten.add.Tensor`."""
    name: str = operation._schema.name
    return name.removeprefix("aten::")


def shares_memory(operation: Any) -> bool:
    """Return whether a result of an operation shares memory with an argument, as a view does.

    Schemas show this, except that of `_unsafe_view`, whose argument must not be used afterwards.
    """
    is_view = any(result.alias_info is not None for result in operation._schema.returns)
    return is_view or operation is torch.ops.aten._unsafe_view.default


def written_arguments(operation: Any) -> list[tuple[int, str]]:
    """Return position and name of each argument whose memory an operation writes to, by its schema."""
    arguments = enumerate(operation._schema.arguments)
    aliases = [(position, argument.name, argument.alias_info) for position, argument in arguments]
    return [(position, name) for position, name, alias in aliases if alias is not None and alias.is_write]


# Recording.


@contextmanager
def one_mode_for_shapes() -> Iterator[None]:
    """Give `make_fx` a single mode that computes the shapes of results.

    Otherwise torch makes one for each recorded operation and keeps a stack trace with it. With one mode, recording
    takes 40 % less time.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        yield


@contextmanager
def without_mkldnn() -> Iterator[None]:
    """Run recurrent layers on a CPU as elementary operations.

    `make_fx` cannot record the backward pass of mkldnn's layers. Convolutions and products are recorded as single
    operations, and use mkldnn when they are replayed.
    """
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def outside_of_recordings() -> Iterator[None]:
    """Hide the operations in this block from all modes, so that those of `make_fx` do not record them."""
    with _disable_current_modes():
        yield


@contextmanager
def no_sources_kept() -> Iterator[None]:
    """Drop the source text of graphs compiled in this block, which torch would keep for tracebacks forever."""
    known = set(_loader.eval_cache)
    try:
        yield
    finally:
        for key in _loader.eval_cache.keys() - known:
            del _loader.eval_cache[key]
            linecache.cache.pop(key, None)


def compiled(graph_module: GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph with flat inputs and outputs by Inductor; `torch.compile` would trace it once more."""
    return torch._inductor.compile(graph_module, list(inputs), options=options)


# Transforms.


def is_transformed() -> bool:
    """Return whether a transform of torch.func is running, such as `vmap` or `grad`.

    Inside it, values cannot be read, and neither hooks of saved tensors nor checkpoints work.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def outside_of_transforms() -> Iterator[None]:
    """Disable torch.func in this block: under it, tensors cannot be converted to NumPy arrays."""
    with torch._C._DisableFuncTorch():
        yield


class Watching(TorchDispatchMode):
    """A mode whose `__torch_dispatch__` sees every operation, those of backward passes included."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes longer than importing torch itself


@final
class Results(Watching):
    """Counts the bytes of the results of operations, in `num_bytes`."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count."""
        results = func(*args, **(kwargs or {}))
        self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(results))
        return results


# Hooks.


def hooks_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return the hooks of a tensor, which see or change its gradient, and whether it has hooks that act afterwards."""
    return (*(tensor._backward_hooks or {}).values(), acts_when_graded(tensor))


def hooks_of_each(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Return the hooks of each tensor; nothing if no tensor has any, which is found without a loop in Python."""
    if any(map(_BACKWARD_HOOKS, tensors)) or any(map(_GRADED_HOOKS, tensors)):
        return list(map(hooks_of, tensors))
    return []


_BACKWARD_HOOKS, _GRADED_HOOKS = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")


def acts_when_graded(tensor: Tensor) -> bool:
    """Return whether a tensor has post-accumulate-grad hooks, as from optimizers that update in the backward pass."""
    return bool(tensor._post_accumulate_grad_hooks)


def hooks_of_all_modules() -> tuple[dict[int, Any], ...]:
    """Return where torch keeps the hooks that it calls for every module."""
    here = torch.nn.modules.module
    return (
        here._global_forward_pre_hooks,
        here._global_forward_hooks,
        here._global_backward_pre_hooks,
        here._global_backward_hooks,
    )


# Memory.


def storage_id(tensor: Tensor) -> int:
    """Return a number that is equal for tensors that share memory.

    It is the address of torch's own storage object. The Python objects that wrap it are created anew at each access.
    """
    return tensor.untyped_storage()._cdata


def without_repeats(tensor: Tensor, rank: int) -> Tensor:
    """Return a tensor with size 1 in those of its first `rank` dimensions along which it was expanded.

    The derivative of a plain slice would be a tensor of the expanded size. So, where a derivative is needed, read the
    memory of the tensor that was expanded.
    """
    repeats = [dim < rank and stride == 0 and tensor.shape[dim] > 1 for dim, stride in enumerate(tensor.stride())]
    if not any(repeats):
        return tensor
    sizes = [1 if repeated else size for size, repeated in zip(tensor.shape, repeats, strict=True)]
    base = tensor._base
    if base is not None and torch.is_grad_enabled() and _is_view_for_autograd(tensor, base):
        found = base.as_strided(sizes, tensor.stride(), tensor.storage_offset())
        is_all = found.numel() == base.numel() and found.is_contiguous() and base.is_contiguous()
        return base.view(sizes) if is_all else found  # the derivative of a plain view makes no tensor
    return tensor[tuple(map(slice, sizes))]


def _is_view_for_autograd(tensor: Tensor, base: Tensor) -> bool:
    """Return whether derivatives of a view reach its base, which a view made without gradients may cut off."""
    if tensor.dtype != base.dtype:
        return False
    node, end = tensor.grad_fn, base.grad_fn
    while node is not None:
        if node is end or getattr(node, "variable", None) is base:
            return True
        if len(node.next_functions) != 1:
            return False
        node = node.next_functions[0][0]
    return False


# Distributions.


def parameters_of(distribution: Distribution) -> dict[str, Tensor]:
    """Return the parameters that a distribution was given: of probabilities and logits, only the given ones."""
    held = vars(getattr(distribution, "_categorical", distribution))
    computed = {"probs", "logits"} if "_param" in held else set()
    return {
        name: held[name]
        for name in distribution.arg_constraints
        if name in held and (name not in computed or held[name] is held["_param"])
    }


def validates(distribution: Distribution) -> bool:
    """Return whether a distribution checks data before it scores them."""
    return distribution._validate_args
