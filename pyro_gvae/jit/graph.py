"""Recorded graphs: their inputs, and the function that replays them."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..runtime.compat.torch import compiled, flattened, is_operation, name_of_operation, nested
from .in_place import with_writes
from .passes import simplify

aten = torch.ops.aten

#: Functions that Python calls in a third less time than the same operations of `torch.ops.aten`.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(torch.abs, torch.add, torch.addcmul, torch.addmm, torch.amax, torch.argmax, torch.bernoulli, torch.bmm),
        *(torch.cat, torch.clamp, torch.clamp_min, torch.div, torch.empty, torch.eq, torch.exp, torch.gather),
        *(torch.ge, torch.gt, torch.index_select, torch.le, torch.log, torch.log1p, torch.logsumexp, torch.lt),
        *(torch.mean, torch.mm, torch.mul, torch.multinomial, torch.ne, torch.neg, torch.pow, torch.rand),
        *(torch.randn, torch.reciprocal, torch.relu, torch.remainder, torch.rsqrt, torch.rsub, torch.scatter),
        *(torch.maximum, torch.prod, torch.sigmoid),
        *(torch.sqrt, torch.square, torch.stack, torch.sub, torch.sum, torch.tanh, torch.threshold, torch.where),
        *(torch.zeros, torch.zeros_like, F.linear, F.softplus),
    )
}
#: The same for methods.
METHODS = {
    *(
        "abs_",
        "add_",
        "addmm_",
        "clamp_min_",
        "copy_",
        "div_",
        "exp_",
        "expand",
        "fill_",
        "log_",
        "masked_fill",
        "mul_",
    ),
    *("mul_", "neg_", "permute", "scatter_", "select", "squeeze", "sub_", "t", "transpose", "unsqueeze", "view"),
}


def lifted(graph_module: GraphModule) -> list[Tensor]:
    """Turn the tensors that a recording captured into inputs, before the others; return them in this order.

    Constants that the program made from Python numbers remain in the graph.
    """
    graph = graph_module.graph
    captured: dict[int, Tensor] = {}
    inputs: dict[int, Node] = {}
    last: Node | None = None
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(graph_module, node.target)
        if all(user.target is aten.lift_fresh_copy.default for user in node.users):
            continue
        if id(tensor) not in captured:
            # Before the first node, which may be this one, but after the inputs that were added before.
            captured[id(tensor)] = tensor
            place = graph.inserting_after(last) if last else graph.inserting_before(next(iter(graph.nodes)))
            with place:
                last = inputs[id(tensor)] = graph.placeholder(f"captured_{len(inputs)}")
                last.meta = node.meta
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    return list(captured.values())


def finished(graph_module: GraphModule, inputs: Sequence[Tensor], *, inductor: bool) -> Callable[..., Any]:
    """Return the function that replays a graph: simplified, then compiled or made cheap to call from Python.

    Args:
        graph_module: the recorded graph; its inputs and outputs do not change.
        inputs: example inputs, for the compiler.
        inductor: whether to compile the graph with Inductor.
    """
    simplify(graph_module)
    if inductor:
        try:
            return _compiled(graph_module, inputs)
        except Exception as error:  # a compiler may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"A recorded step is not compiled: {reason}", RuntimeWarning, stacklevel=2)
    with_writes(graph_module.graph)
    _call_by_name(graph_module.graph)
    graph_module.recompile()
    return graph_module.forward


def _compiled(graph_module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph with Inductor, which expects a flat tuple of tensors as the result."""
    output = graph_module.graph.output_node()
    results, nesting = flattened(output.args[0])
    whole, output.args = output.args, (tuple(result for result in results if isinstance(result, Node)),)
    graph_module.recompile()
    # Draw random numbers by torch's own operations: they equal those of the plain ELBO under the same seed.
    options = {"fallback_random": True, "triton.cudagraphs": any(tensor.is_cuda for tensor in inputs)}
    try:
        with torch.no_grad():
            run = compiled(graph_module, inputs, options)
    except Exception:
        output.args = whole  # so that the graph can be replayed as it is
        raise

    def replay(*tensors: Tensor) -> Any:
        found = iter(run(*tensors))
        leaves = [next(found) if isinstance(result, Node) else result for result in results]
        return nested(leaves, nesting)

    return replay


def _call_by_name(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and is_operation(node.target):
            name = name_of_operation(node.target)
            if name == "slice" and "like" in node.meta and len(node.args) == 4 and node.args[2] >= 0:
                x, dim, start, _ = node.args
                node.op, node.target, node.args = "call_method", "narrow", (x, dim, start, node.meta["like"].shape[dim])
            elif name == "_to_copy" and _changes_type(node):  # otherwise `to` would copy nothing
                node.op, node.target = "call_method", "to"
            elif name in METHODS:
                node.op, node.target = "call_method", name
            else:
                node.target = FUNCTIONS.get(name, node.target)


def _changes_type(node: Any) -> bool:
    before = node.args[0].meta.get("like")
    return (
        before is not None
        and before.dtype != node.kwargs.get("dtype", before.dtype)
        and node.kwargs.keys() == {"dtype"}
    )
