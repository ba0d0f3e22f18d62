"""Recorded graphs: their inputs, and the same computation in fewer operations.

A recording repeats what Pyro and autograd do by habit: it adds zero, renames, computes twice, multiplies by ones. Here that
is left out. Nothing changes but rounding, and memory that an operation writes to is never touched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .simplify import simplify

aten = torch.ops.aten


def lifted(graph_module: GraphModule) -> list[Tensor]:
    """Turn the tensors that a recording found outside into inputs, before the others; returns them in this order.

    Constants that the program made of Python's numbers stay in the graph.
    """
    graph = graph_module.graph
    captured: dict[int, Tensor] = {}
    inputs: dict[int, Node] = {}
    first = next(iter(graph.nodes))
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(graph_module, node.target)
        if all(user.target is aten.lift_fresh_copy.default for user in node.users):
            continue
        if id(tensor) not in captured:
            captured[id(tensor)] = tensor
            with graph.inserting_before(first):
                inputs[id(tensor)] = graph.placeholder(f"captured_{len(inputs)}")
                inputs[id(tensor)].meta = node.meta
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    return list(captured.values())


def finished(graph_module: GraphModule, inputs: Sequence[Tensor], *, inductor: bool) -> GraphModule:
    """Make the function that is replayed."""
    simplify(graph_module)
    graph_module.recompile()
    return graph_module
