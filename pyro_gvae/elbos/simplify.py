"""A recorded graph's computation in fewer and faster operations.

A recording repeats what Pyro and autograd do by habit: it adds zero, renames, computes twice, multiplies by ones. Here that
is left out. Nothing changes but rounding; memory that an operation writes to is never touched, and random draws keep
their number and order.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

#: Constants of at most so many bytes are computed once, when the graph is made.
MAX_CONSTANT = 2**20
#: Below it, a CPU normalizes the last dimension faster by elementary operations (5 times at 10 categories).
FEW_CATEGORIES = 16

RENAMES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}
COPIES = {aten.clone.default, aten.lift_fresh_copy.default}
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim}
FILLED = {aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.new_zeros.default: 0, aten.new_ones.default: 1}
ADDITIONS = {aten.add.Tensor, aten.sub.Tensor, aten.add_.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}


def simplify(graph_module: GraphModule) -> None:
    """Rewrite a graph in place, until no rule applies."""
    rewriter = _Rewriter(graph_module)
    while rewriter.sweep():
        graph_module.graph.eliminate_dead_code()
    rewriter.separate_outputs()
    graph_module.graph.lint()


Rule = Callable[["_Rewriter", Node], Node | None]


@final
class _Rewriter:
    """What rules need to know of a graph's nodes, and how they add some."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.module = graph_module
        self.graph = graph_module.graph
        self.written = _written(self.graph)

    def sweep(self) -> bool:
        """Try all rules on all nodes, in order; whether one applied."""
        changed = False
        seen: dict[str, Node] = {}
        for node in list(self.graph.nodes):
            if not self._is_pure(node):
                continue
            with self.graph.inserting_before(node):
                found = next(filter(None, (rule(self, node) for rule in RULES)), None)
            found = found or seen.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
            if found is not node:
                node.replace_all_uses_with(found)
                self.graph.erase_node(node)
                changed = True
        return changed

    def _is_pure(self, node: Node) -> bool:
        """Whether a node is a function of values alone, whose result nobody writes to."""
        return (
            node.op == "call_function"
            and isinstance(node.target, torch._ops.OpOverload)
            and not node.is_impure()
            and not node.target.name().startswith("aten::empty")
            and "batch_norm" not in node.target.name()  # they change their statistics and do not say so
            and not any(other in self.written for other in (node, *node.all_input_nodes))
        )

    def like(self, node: Any) -> Tensor:
        """A tensor without values, of the node's shape and type."""
        fake: Tensor = node.meta["val"]
        return fake

    def new(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new operation, before the one that is looked at."""
        node = self.graph.call_function(target, args, kwargs)
        values = torch.fx.node.map_arg((args, kwargs), self.like)
        node.meta["val"] = target(*values[0], **values[1])
        return node

    def constant(self, value: Tensor) -> Node:
        """A tensor that does not depend on any input."""
        name = f"_constant{sum(name.startswith('_constant') for name in vars(self.module))}"
        setattr(self.module, name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = ...
        return node

    def number(self, node: Any) -> float | None:
        """The number that all entries of a constant are, if it is one."""
        if isinstance(node, int | float):
            return node
        if isinstance(node, Node) and node.op == "get_attr":
            value = getattr(self.module, node.target)
            ...
        return None
