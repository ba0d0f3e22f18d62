"""Recorded graphs: their inputs, and the same computation in fewer and faster operations.

A recording repeats what Pyro and autograd do by habit: it adds zero, copies references, computes twice, expands ones. The
passes here leave that out. They change nothing but rounding, and never touch memory that an operation writes to.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

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


def simplified(graph_module: GraphModule) -> GraphModule:
    """The same computation in fewer operations, in place."""
    graph = graph_module.graph
    written = _written(graph)
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in written or any(arg in written for arg in node.all_input_nodes):
            continue
        for rule in (constant, nothing, *RULES.get(node.target, ())):
            ...
'''
