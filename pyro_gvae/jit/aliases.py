"""Which results of a graph's operations share memory, and which memory is written to."""

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

aten = torch.ops.aten


def separate_outputs(graph: Graph) -> None:
    """Copy results that share memory with another, or with an input or a constant: gradients are added to in place."""
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
    """The node in whose memory a node's value lies."""
    while node.op == "call_function" and _shares_memory(node.target):
        node = node.all_input_nodes[0]
    return node


def _shares_memory(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target is aten._unsafe_view.default or any(
            value.alias_info is not None for value in target._schema.returns
        )
    return target is operator.getitem


def written(graph: Graph) -> set[Node]:
    """The nodes whose memory an operation writes to."""
    memories = set()
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            for index, argument in enumerate(node.target._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
                    memories |= {_memory(leaf) for leaf in pytree.tree_leaves(written) if isinstance(leaf, Node)}
    return {node for node in graph.nodes if _memory(node) in memories}
