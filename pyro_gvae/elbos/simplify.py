"""A recorded graph's computation in fewer and faster operations.

A recording repeats what Pyro and autograd do by habit: it adds zero, renames, computes twice, multiplies by ones. Here that
is left out. Nothing changes but rounding; memory that an operation writes to is never touched, and random draws keep
their number and order.
"""

import operator
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

aten = torch.ops.aten

#: Constants of at most so many bytes are computed once, when the graph is made.
MAX_CONSTANT = 2**20
#: For fewer, a CPU normalizes the last dimension faster by elementary operations (5 times at 10 categories).
MANY_CATEGORIES = 16

RENAMES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}
COPIES = {aten.clone.default, aten.lift_fresh_copy.default}
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default}
FILLED = {aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.new_zeros.default: 0, aten.new_ones.default: 1}
SUMS = {aten.add.Tensor, aten.sub.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}


def simplify(graph_module: GraphModule) -> None:
    """Rewrite a graph in place, until no rule applies."""
    rewriter = _Rewriter(graph_module)
    while rewriter.sweep():
        graph_module.graph.eliminate_dead_code()
    rewriter.separate_outputs()
    graph_module.graph.lint()


@final
class _Rewriter:
    """What rules need to know of a graph's nodes, and how they add some."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.module = graph_module
        self.graph = graph_module.graph
        self.written = _written(self.graph)
        for node in self.graph.nodes:
            if isinstance(node.meta.get("val"), Tensor):
                self._describe(node, node.meta["val"])

    def _describe(self, node: Node, value: Tensor) -> Node:
        node.meta["device"] = value.device
        node.meta["like"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return node

    def sweep(self) -> bool:
        """Try all rules on all nodes, in order; whether one applied."""
        changed = False
        seen: dict[str, Node] = {}
        for node in list(self.graph.nodes):
            if self._is_pure(node):
                with self.graph.inserting_before(node):
                    found = next(filter(None, (rule(self, node) for rule in RULES)), None)
                found = found or seen.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
                if found is not node:
                    node.replace_all_uses_with(found)
                    self.graph.erase_node(node)
                    changed = True
        return changed

    def _is_pure(self, node: Node) -> bool:
        """Whether a node is a function of values alone, whose memory nobody writes to."""
        return (
            node.op == "call_function"
            and isinstance(node.target, torch._ops.OpOverload)
            and "like" in node.meta
            and not node.is_impure()
            and not node.target.name().startswith("aten::empty")
            and "batch_norm" not in node.target.name()  # it changes statistics and does not say so
            and not any(other in self.written for other in (node, *node.all_input_nodes))
        )

    def new(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Another operation, before the node that is looked at."""
        node = self.graph.call_function(target, args, kwargs)
        like_args, like_kwargs = torch.fx.node.map_arg((args, kwargs), lambda arg: arg.meta["like"])
        node.meta["like"] = target(*like_args, **like_kwargs)
        node.meta["device"] = next(arg.meta["device"] for arg in node.all_input_nodes)
        return node

    def constant(self, value: Tensor) -> Node:
        """A tensor that depends on no input."""
        name = f"_constant{len([name for name in vars(self.module) if name.startswith('_constant')])}"
        setattr(self.module, name, value)
        return self._describe(self.graph.create_node("get_attr", name), value)

    def value(self, node: Any) -> Tensor | None:
        """The value of a constant."""
        if isinstance(node, Node) and node.op == "get_attr" and node not in self.written:
            value: Tensor = getattr(self.module, str(node.target))
            return value
        return None

    def number(self, node: Any) -> float | None:
        """The one number that fills a constant, if there is one."""
        if isinstance(node, int | float):
            return node
        value = self.value(node)
        if value is None or value.numel() == 0 or value.is_complex():
            return None
        first = value.flatten()[0]
        return first.item() if bool((value == first).all()) else None

    def separate_outputs(self) -> None:
        """Copy results that share memory with another, or with an input or a constant: gradients are added in place."""
        output = next(iter(self.graph.find_nodes(op="output")))
        taken = {node for node in self.graph.nodes if node.op in ("placeholder", "get_attr")}

        def own(result: Node) -> Node:
            base = _memory(result)
            if base in taken:
                result = self.graph.call_function(aten.clone.default, (result,))
            taken.add(base)
            return result

        with self.graph.inserting_before(output):
            output.args = torch.fx.node.map_arg(output.args, own)


def _memory(node: Node) -> Node:
    """The node in whose memory a node's value lies."""
    while node.op == "call_function" and _shares(node.target):
        node = node.all_input_nodes[0]
    return node


def _shares(target: Any) -> bool:
    if target is operator.getitem or target in RESHAPES:
        return True
    return isinstance(target, torch._ops.OpOverload) and any(r.alias_info is not None for r in target._schema.returns)


def _written(graph: Graph) -> set[Node]:
    """The nodes whose memory an operation writes to."""
    bases = set()
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            for index, argument in enumerate(node.target._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
                    bases |= {_memory(each) for each in pytree.tree_leaves(written) if isinstance(each, Node)}
    return {node for node in graph.nodes if _memory(node) in bases}


# Rules: each returns what may stand in a node's place, or None.


def _computed_once(graph: _Rewriter, node: Node) -> Node | None:
    """What depends on no input is a constant."""
    like = node.meta["like"]
    if like.numel() * like.itemsize > MAX_CONSTANT:
        return None
    if node.target in FILLED:
        return graph.constant(torch.full(like.shape, FILLED[node.target], dtype=like.dtype, device=node.meta["device"]))
    if any(graph.value(arg) is None for arg in node.all_input_nodes):
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), graph.value)
    with torch.no_grad():
        return graph.constant(node.target(*args, **kwargs))


def _nothing_done(graph: _Rewriter, node: Node) -> Node | None:
    """Renaming, copies that nobody writes to, reshaping to the same shape, x + 0, 1 x."""
    x, other = (*node.args, None, None)[:2]
    if not isinstance(x, Node) or "like" not in x.meta:
        return None
    before, after = x.meta["like"], node.meta["like"]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return None
    if node.target in RENAMES | RESHAPES | {aten.expand.default}:
        return x
    if node.target in COPIES and before.stride() == after.stride():
        return x
    neutral = 0 if node.target in SUMS else 1 if node.target in PRODUCTS else None
    return x if neutral is not None and graph.number(other) == neutral and not node.kwargs else None


def _undone(graph: _Rewriter, node: Node) -> Node | None:
    """-(-x), transposed twice, reshaped twice, a sum of partial sums."""
    x = node.args[0] if node.args else None
    if not isinstance(x, Node):
        return None
    if node.target is x.target and node.target in (aten.neg.default, aten.t.default):
        return x.args[0]
    if node.target is aten.view.default and x.target in RESHAPES:
        return graph.new(aten.view.default, x.args[0], node.args[1])
    partial_sum = x.target is aten.sum.dim_IntList and len(x.users) == 1
    if node.target is aten.sum.default and (partial_sum or x.target in RESHAPES) and not (node.kwargs or x.kwargs):
        return graph.new(aten.sum.default, x.args[0])
    return None


def _sign_moved(graph: _Rewriter, node: Node) -> Node | None:
    """Signs go outwards, where they meet: a + (-b) = a - b, (-a) b = -(a b)."""
    neg, add, sub = aten.neg.default, aten.add.Tensor, aten.sub.Tensor
    signs = [isinstance(arg, Node) and arg.target is neg for arg in node.args]
    if node.kwargs or not any(signs):
        return None
    values = [arg.args[0] if sign else arg for arg, sign in zip(node.args, signs, strict=True)]
    if node.target is aten.sum.default or node.target is aten.sum.dim_IntList:
        return graph.new(neg, graph.new(node.target, *values))
    if node.target in PRODUCTS:
        product = graph.new(node.target, *values)
        return product if all(signs) else graph.new(neg, product)
    if node.target is sub and signs == [False, True]:
        return graph.new(add, *values)
    if node.target is add and signs == [False, True]:
        return graph.new(sub, *values)
    if node.target is add and signs == [True, False] and isinstance(values[1], Node):
        return graph.new(sub, *values[::-1])
    return None


def _number_taken(graph: _Rewriter, node: Node) -> Node | None:
    """A constant that is one number everywhere is that number."""
    if node.target not in (aten.mul.Tensor, aten.add.Tensor) or node.kwargs:
        return None
    for x, other in (node.args, node.args[::-1]):
        number = graph.number(other)
        if isinstance(x, Node) and number is not None and x.meta["like"].shape == node.meta["like"].shape:
            if x.meta["like"].dtype != node.meta["like"].dtype:
                return None
            if node.target is aten.mul.Tensor and number == -1:
                return graph.new(aten.neg.default, x)
            return graph.new(node.target, x, number) if isinstance(other, Node) or other is node.args[0] else None
    return None


def _sigmoid(graph: _Rewriter, node: Node) -> Node | None:
    """The derivative of softplus."""
    if node.target is not aten.softplus_backward.default or node.args[2] != 1:
        return None
    return graph.new(aten.mul.Tensor, graph.new(aten.sigmoid.default, node.args[1]), node.args[0])


def _normalized(graph: _Rewriter, node: Node) -> Node | None:
    """Softmax, its logarithm, and their derivatives over few categories on a CPU, by elementary operations."""
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or node.target not in NORMALIZATIONS or node.meta["device"].type != "cpu":
        return None
    like = x.meta["like"]
    gradient = node.target in BACKWARD
    dim = node.args[2] if gradient else node.args[1]
    if like.dim() == 0 or dim % like.dim() != like.dim() - 1 or like.shape[-1] >= MANY_CATEGORIES:
        return None
    if like.dtype != node.meta["like"].dtype:
        return None
    return NORMALIZATIONS[node.target](graph.new, *node.args[: 2 if gradient else 1])


def _log_softmax(new: Any, x: Node) -> Node:
    shifted = new(aten.sub.Tensor, x, new(aten.amax.default, x, [-1], True))
    total = new(aten.sum.dim_IntList, new(aten.exp.default, shifted), [-1], True)
    return new(aten.sub.Tensor, shifted, new(aten.log.default, total))


def _softmax(new: Any, x: Node) -> Node:
    raised = new(aten.exp.default, new(aten.sub.Tensor, x, new(aten.amax.default, x, [-1], True)))
    return new(aten.div.Tensor, raised, new(aten.sum.dim_IntList, raised, [-1], True))


def _log_softmax_backward(new: Any, gradient: Node, y: Node) -> Node:
    total = new(aten.sum.dim_IntList, gradient, [-1], True)
    return new(aten.sub.Tensor, gradient, new(aten.mul.Tensor, new(aten.exp.default, y), total))


def _softmax_backward(new: Any, gradient: Node, y: Node) -> Node:
    weighted = new(aten.mul.Tensor, gradient, y)
    total = new(aten.sum.dim_IntList, weighted, [-1], True)
    return new(aten.sub.Tensor, weighted, new(aten.mul.Tensor, y, total))


BACKWARD = {aten._log_softmax_backward_data.default, aten._softmax_backward_data.default}
NORMALIZATIONS = {
    aten._log_softmax.default: _log_softmax,
    aten._softmax.default: _softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten._softmax_backward_data.default: _softmax_backward,
}
RULES: tuple[Callable[[_Rewriter, Node], Node | None], ...] = (
    _computed_once,
    _nothing_done,
    _undone,
    _sign_moved,
    _number_taken,
    _sigmoid,
    _normalized,
)
