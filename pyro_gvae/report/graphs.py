"""Record a torch function as steps that a page computes without torch."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from .arrays import Arrays
from .operations import MOVES, RULES, name_of
from .steps import NotInAPageError, Steps, Value


def read_graph(function: Callable[[Tensor], Tensor], example: Tensor, store: Arrays) -> dict[str, Any] | None:
    """Record a function as steps for a page.

    The function runs once, and each operation on tensors becomes one or two steps. Whatever does not depend on the
    input is computed here, and becomes a constant of the page.

    Args:
        function: a function of one tensor, with its networks in eval mode.
        example: an input, whose shape is that of all inputs. Its values do not matter.
        store: the arrays of the page, to which the constants are added.

    Returns:
        The steps and the number of their result, or None if the function uses an operation that is not in `operations`.

    Example:
        >>> from torch import nn
        >>> found = read_graph(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3), Arrays())
        >>> [step["op"] for step in found["steps"]]
        ['constant', 'matmul', 'constant', 'add', 'relu']
        >>> read_graph(lambda x: x.sort().values, torch.zeros(1, 3), Arrays()) is None
        True
    """
    before = store.mark()
    try:
        with torch.inference_mode(False), torch.no_grad(), pyro.validation_enabled(False):
            recorded = make_fx(lambda x: function(x))(example.clone())  # one argument, even for a method
        return _read(recorded, example, store)
    except (NotInAPageError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        store.forget(before)
        return None


def _read(recorded: Any, example: Tensor, store: Arrays) -> dict[str, Any]:
    recorded.graph.eliminate_dead_code()
    steps = Steps(store, example.shape)
    values: dict[Node, Any] = {}
    for node in recorded.graph.nodes:
        match node.op:
            case "placeholder":
                values[node] = steps.input
            case "get_attr":
                values[node] = getattr(recorded, node.target)
            case "output":
                [result] = node.args
                if not isinstance(result, Node):
                    raise NotInAPageError
                return {"steps": steps.steps, "result": steps.place(values[result]).number}
            case _:
                values[node] = _computed(node, values, steps)
    raise NotInAPageError


def _computed(node: Node, values: dict[Node, Any], steps: Steps) -> Any:
    known = torch.fx.map_arg((node.args, node.kwargs), lambda arg: values[arg])
    args, options = _plain(known[0]), dict(known[1])
    func: Any = node.target
    if func is getitem:
        return args[0][args[1]]
    if func.overloadpacket.__name__.endswith("_"):
        _check_unseen(node)
    if not _depends([*args, *options.values()]):
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotInAPageError
        return func(*args, **options)
    if name_of(func) not in RULES:
        raise NotInAPageError
    return RULES[name_of(func)](steps, _shape(node.meta["val"]), func, tuple(args), options)


def _plain(args: Any) -> list[Any]:
    return [list(arg) if isinstance(arg, list | tuple) else arg for arg in args]


def _depends(args: list[Any]) -> bool:
    return any(_depends(arg) if isinstance(arg, list) else isinstance(arg, Value) for arg in args)


def _shape(result: Any) -> Any:
    """Return the shape of a result, or the shapes of several."""
    if isinstance(result, list | tuple):
        return [own.shape if isinstance(own, Tensor) else None for own in result]
    return result.shape


def _check_unseen(node: Node) -> None:
    """Refuse an in-place operation if anything but its own result could see the change.

    Raises:
        NotInAPageError: if the tensor is the input, a constant or a view, or is used elsewhere.
    """
    [changed, *_] = node.args
    if not isinstance(changed, Node) or changed.op != "call_function" or len(changed.users) != 1:
        raise NotInAPageError
    target: Any = changed.target
    if target is getitem or name_of(target) in MOVES:
        raise NotInAPageError
