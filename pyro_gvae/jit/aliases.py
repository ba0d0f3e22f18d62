"""Aliasing in recorded graphs: which results share memory, and which memory is written to."""

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..runtime.compat.torch import is_operation, leaves_of, shares_memory, written_arguments

aten = torch.ops.aten


def separate_outputs(graph: Graph) -> None:
    """Copy results that share memory with another result, an input or a constant.

    Gradients are added to in place, so each result needs memory of its own.
    """
    output = graph.output_node()
    taken = {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}

    def own(result: Node) -> Node:
        memory = _memory(result)
        if memory in taken:
            return graph.call_function(aten.clone.default, (result,))
        taken.add(memory)
        return result

    with graph.inserting_before(output):
        output.args = map_arg(output.args, own)


def _memory(node: Node) -> Node:
    """Return the node that owns the memory of a node's value."""
    while node.op == "call_function" and _shares_memory(node.target):
        node = node.all_input_nodes[0]
    return node


def _shares_memory(target: Any) -> bool:
    return shares_memory(target) if is_operation(target) else target is operator.getitem


def written(graph: Graph) -> set[Node]:
    """Return the nodes whose memory some operation writes to."""
    memories = set()
    for node in graph.nodes:
        if node.op == "call_function" and is_operation(node.target):
            for position, name in written_arguments(node.target):
                written = node.args[position] if position < len(node.args) else node.kwargs.get(name)
                memories |= {_memory(leaf) for leaf in leaves_of(written) if isinstance(leaf, Node)}
    return {node for node in graph.nodes if _memory(node) in memories}
