"""Simplification of recorded graphs: the same computation in fewer and faster operations.

Pyro and autograd add zeros, rename, compute some values twice and multiply by ones, and a recording repeats all of it.
The rules below remove this. Results change only by rounding. Memory that an operation writes to is left alone, and
random draws keep their number and order.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..runtime.compat.torch import is_operation
from ..runtime.tuning import tuning
from .aliases import separate_outputs, written
from .in_place import without_writes
from .normalizations import NORMALIZATIONS

Op = Any  # a Node; the declared type of its arguments is too wide to be useful
aten = torch.ops.aten
ADD, SUB, MUL, DIV, NEG = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default
EXP, SUM, SUM_ALONG, VIEW = aten.exp.default, aten.sum.default, aten.sum.dim_IntList, aten.view.default

#: Largest size in bytes of constants that are computed once, when the graph is made.
MAX_CONSTANT = 2**20

TRANSPOSED = {aten.t.default: (), aten.permute.default: ([1, 0],)}  # two ways to transpose a matrix
RENAMES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}
COPIES = {aten.clone.default, aten.lift_fresh_copy.default}
RESHAPES = {VIEW, aten._unsafe_view.default, aten.unsqueeze.default}
FILLED = {aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.new_zeros.default: 0, aten.new_ones.default: 1}
NEUTRAL = {ADD: 0, SUB: 0, MUL: 1, DIV: 1, aten.mul.Scalar: 1, aten.div.Scalar: 1}


def simplify(graph_module: GraphModule) -> None:
    """Rewrite a graph in place, until no rule applies."""
    without_writes(graph_module.graph)
    rewriter = _Rewriter(graph_module)
    while rewriter.sweep():
        graph_module.graph.eliminate_dead_code()
    separate_outputs(graph_module.graph)
    graph_module.graph.lint()


@final
class _Rewriter:
    """A graph with the properties of its nodes that rules need, and with methods to add nodes."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.module = graph_module
        self.graph = graph_module.graph
        self.written = written(self.graph)
        for node in self.graph.nodes:
            value = node.meta.get("val")
            parts = value if isinstance(value, tuple | list) else [value]
            if all(isinstance(part, Tensor) and part.layout is torch.strided for part in parts):
                self._describe(node, value)

    def sweep(self) -> bool:
        """Apply all rules to all nodes, in order; return whether one applied."""
        changed = False
        seen: dict[str, Node] = {}
        for node in list[Op](self.graph.nodes):
            if not self._is_pure(node):
                continue
            found = self._by_rule(node) or seen.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
            if found is not node:
                node.replace_all_uses_with(found)
                self.graph.erase_node(node)
                changed = True
        return changed

    def _by_rule(self, node: Op) -> Op | None:
        """Return what replaces a node by the first rule that applies, if its value is a tensor."""
        if node.target is operator.getitem or not isinstance(node.meta["like"], Tensor):
            return None
        with self.graph.inserting_before(node):
            found = next(filter(None, (rule(self, node) for rule in RULES)), None)
        # With other strides, a later view would fail, or read other elements.
        return found if found is None or _lie_alike(found.meta["like"], node.meta["like"]) else None

    def _is_pure(self, node: Op) -> bool:
        """Return whether a node is a function of values only, and nothing writes to its memory."""
        nodes = (node, *node.all_input_nodes)
        if node.op != "call_function" or any("like" not in own.meta or own in self.written for own in nodes):
            return False
        return node.target is operator.getitem or (
            is_operation(node.target)
            and not node.is_impure()
            and not node.target.name().startswith("aten::empty")
            and "batch_norm" not in node.target.name()  # its schema does not say that it changes statistics
        )

    def _describe(self, node: Node, value: Tensor | Sequence[Tensor]) -> Node:
        """Keep the shape and strides of a value, or of each of several."""
        if isinstance(value, Tensor):
            node.meta["device"] = value.device
            node.meta["like"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        else:
            node.meta["like"] = [self._describe(node, part).meta["like"] for part in value]
        return node

    def new(self, target: Any, *args: Any) -> Op:
        """Insert an operation before the current node."""
        node = self.graph.call_function(target, args)
        likes: Any = map_arg(args, lambda arg: arg.meta["like"])
        node.meta["like"] = target(*likes)
        node.meta["device"] = node.all_input_nodes[0].meta["device"]
        return node

    def constant(self, value: Tensor) -> Op:
        """Add a constant tensor to the graph."""
        name = f"_constant{sum(name.startswith('_constant') for name in vars(self.module))}"
        setattr(self.module, name, value)
        return self._describe(self.graph.create_node("get_attr", name), value)

    def value(self, node: Node) -> Tensor | None:
        """Return the value of a constant, or None for other nodes."""
        if node.op == "get_attr" and node not in self.written:
            value: Tensor = getattr(self.module, str(node.target))
            return value
        return None

    def number(self, node: Any) -> float | None:
        """Return a number, or the number that all elements of a constant equal; None for other nodes."""
        if isinstance(node, int | float):
            return node
        value = self.value(node) if isinstance(node, Node) else None
        if value is None or value.numel() == 0 or value.is_complex():
            return None
        first = value.flatten()[0]
        return first.item() if bool((value == first).all()) else None


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of the same shape have the same strides, except in dimensions of size 1."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size == 1 or own == others for size, own, others in strides)


# Rules. Each returns a node that may replace the given one, or None.


def _computed_once(graph: _Rewriter, node: Op) -> Op | None:
    """Compute a node that depends on no input once, as a constant."""
    like = node.meta["like"]
    if like.numel() * like.itemsize > MAX_CONSTANT:
        return None
    if node.target in FILLED:
        filled = torch.full(like.shape, FILLED[node.target], dtype=like.dtype, device=node.meta["device"])
        return graph.constant(filled)
    if any(graph.value(arg) is None for arg in node.all_input_nodes):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), graph.value)
    with torch.no_grad():
        return graph.constant(node.target(*args, **kwargs))


def _nothing_done(graph: _Rewriter, node: Op) -> Op | None:
    """Remove renaming, copies that nothing writes to, reshaping to the same shape, x + 0 and 1 x, and [x] joined."""
    x, other = (*node.args, None, None)[:2]
    if node.target is aten.cat.default and len(x) == 1:
        return cast(Op, x[0])
    if not isinstance(x, Node) or "like" not in x.meta:
        return None
    before, after = x.meta["like"], node.meta["like"]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return None
    if node.target in RENAMES | RESHAPES | {aten.expand.default}:
        return x
    if node.target in COPIES and before.stride() == after.stride():
        return x
    is_neutral = node.target in NEUTRAL and graph.number(other) == NEUTRAL[node.target]
    return x if is_neutral and not node.kwargs else None


def _undone(graph: _Rewriter, node: Op) -> Op | None:
    """Remove double negation, -(-x), and double transposition."""
    x = node.args[0] if node.args else None
    if not isinstance(x, Node):
        return None
    is_twice = all(n.target in TRANSPOSED and n.args[1:] == TRANSPOSED[n.target] for n in (node, x))
    return x.args[0] if is_twice or x.target is node.target is NEG else None


def _joined(graph: _Rewriter, node: Op) -> Op | None:
    """Merge two operations into one: reshaping twice, a sum of sums, a bias's gradient, a linear layer."""
    if node.target is aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args
        is_layer = weight.target is aten.t.default and bias.meta["like"].dim() == 1
        return graph.new(aten.linear.default, x, weight.args[0], bias) if is_layer else None
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or x.kwargs or node.kwargs:
        return None
    if node.target is VIEW and x.target in RESHAPES:
        return graph.new(VIEW, x.args[0], node.args[1])
    if node.target is VIEW and x.target is SUM_ALONG and x.args[2:] == (True,):
        summed = graph.new(SUM_ALONG, *x.args[:2])
        return summed if summed.meta["like"].shape == node.meta["like"].shape else None
    if node.target is SUM and x.target in RESHAPES | {SUM_ALONG}:
        return graph.new(SUM, x.args[0])
    return None


def _signs_moved(graph: _Rewriter, node: Op) -> Op | None:
    """Move signs outwards, where they cancel: a + (-b) = a - b, (-a) b = -(a b)."""
    signs = [isinstance(arg, Node) and arg.target is NEG for arg in node.args]
    if node.kwargs or not any(signs):
        return None
    values = [arg.args[0] if sign else arg for arg, sign in zip(node.args, signs, strict=True)]
    if node.target in (SUM, SUM_ALONG):
        return graph.new(NEG, graph.new(node.target, *values))
    if node.target in (MUL, DIV):
        product = graph.new(node.target, *values)
        return product if all(signs) else graph.new(NEG, product)
    if node.target is ADD and all(signs):
        return graph.new(NEG, graph.new(ADD, *values))
    if node.target is ADD and isinstance(values[1], Node):
        return graph.new(SUB, *(values[::-1] if signs[0] else values))
    if node.target is SUB and signs == [False, True]:
        return graph.new(ADD, *values)
    return None


def _numbers_taken(graph: _Rewriter, node: Op) -> Op | None:
    """Replace a constant whose elements all equal one number by that number, as the second operand."""
    if node.kwargs or node.target not in (MUL, ADD, SUB, aten.mul.Scalar):
        return None
    for x, other in (node.args, node.args[::-1]):
        number = graph.number(other)
        if number is None or not isinstance(x, Node) or x.meta["like"].shape != node.meta["like"].shape:
            continue
        if x.meta["like"].dtype != node.meta["like"].dtype:
            continue
        if node.target is SUB and x is node.args[1]:
            return graph.new(aten.rsub.Scalar, x, number)
        if node.target not in (ADD, SUB) and number == -1:
            return graph.new(NEG, x)
        if (x, number) != node.args:
            return graph.new(node.target, x, number)
    return None


def _sigmoid(graph: _Rewriter, node: Op) -> Op | None:
    """Write the derivative of softplus as a sigmoid."""
    if node.target is not aten.softplus_backward.default or node.args[2] != 1:
        return None
    return graph.new(MUL, graph.new(aten.sigmoid.default, node.args[1]), node.args[0])


def _normalized(graph: _Rewriter, node: Op) -> Op | None:
    """Write softmax and log-softmax over few categories, and their derivatives, as elementary operations."""
    if node.target not in NORMALIZATIONS:
        return None
    many = tuning(node.meta["device"]).many_categories
    num_tensors, write = NORMALIZATIONS[node.target]
    tensors, dim, like = node.args[:num_tensors], node.args[num_tensors], node.meta["like"]
    is_last = like.dim() > 0 and dim % like.dim() == like.dim() - 1
    if not is_last or like.shape[-1] >= many or tensors[0].meta["like"].dtype != like.dtype:
        return None
    return write(graph.new, *tensors)


RULES: tuple[Callable[[_Rewriter, Op], Op | None], ...] = (
    _computed_once,
    _nothing_done,
    _undone,
    _joined,
    _signs_moved,
    _numbers_taken,
    _sigmoid,
    _normalized,
)
