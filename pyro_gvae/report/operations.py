"""Translate operations of torch into steps of a page."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .steps import NotInAPageError, Operand, Steps, Value

#: Adds the steps of one operation, given the steps so far, the result's shape, the operation, its arguments and
#: options.
Rule = Callable[[Steps, Any, Any, tuple[Any, ...], dict[str, Any]], Any]

#: Elementwise operations; the page has a formula of the same name for each.
POINTWISE = {
    *("abs", "add", "addcmul", "bitwise_and", "bitwise_not", "bitwise_or", "ceil", "clamp", "clamp_max", "clamp_min"),
    *("cos", "div", "elu", "eq", "erf", "exp", "expm1", "floor", "ge", "gelu", "gt", "hardsigmoid", "hardswish"),
    *("hardtanh", "isnan", "le", "leaky_relu", "lgamma", "log", "log1p", "log2", "logical_and", "logical_not"),
    *("logical_or", "lt", "masked_fill", "maximum", "minimum", "mish", "mul", "ne", "neg", "pow", "reciprocal"),
    *("relu", "round", "rsqrt", "rsub", "sigmoid", "sign", "silu", "sin", "sinh", "softplus", "sqrt", "square", "sub"),
    *("tanh", "threshold", "trunc", "where"),
}
#: Operations that only move numbers.
MOVES = {
    *("alias", "cat", "clone", "constant_pad_nd", "detach", "diagonal", "expand", "flip", "gather"),
    *("index", "index_select", "lift_fresh", "lift_fresh_copy", "permute", "pixel_shuffle", "pixel_unshuffle"),
    *("repeat", "roll", "select", "slice", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose"),
    *("unbind", "unfold", "unsafe_view", "unsqueeze", "upsample_nearest2d", "view"),
}
#: Options that do not affect the numbers of a result.
IDLE = {"device", "layout", "memory_format", "non_blocking", "pin_memory"}


def name_of(func: Any) -> str:
    """Return the name of an operation, without the underscores of in-place or internal variants."""
    return str(func.overloadpacket.__name__.strip("_"))


def _pointwise(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    name, operands = name_of(func), list(args)
    alpha, value, approximate = options.get("alpha", 1), options.get("value"), options.get("approximate", "none")
    rest = options.keys() - {"alpha", "value", "approximate"}
    if rest or (name == "div" and options.get("rounding_mode")):
        raise NotInAPageError
    if name == "clamp":
        low, high = [*operands[1:], None, None][:2]
        operands = [operands[0], -torch.inf if low is None else low, torch.inf if high is None else high]
    if alpha != 1:
        operands[1] = steps.pointwise("mul", [operands[1], alpha], _shape_of(operands[1]))
    if value is not None:
        operands.append(value)
    return steps.pointwise(name if approximate == "none" else f"{name}_{approximate}", operands, shape)


def _shape_of(operand: Operand) -> torch.Size:
    return operand.shape if isinstance(operand, Value | Tensor) else torch.Size([])


def _moves(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    moved, *rest = args
    sources = list(moved) if isinstance(moved, list | tuple) else [moved]
    if any(isinstance(arg, Value) for arg in _flat(rest)):
        raise NotInAPageError  # where numbers go depends on values
    options = {name: value for name, value in options.items() if name not in IDLE}
    fill = 0.0
    if name_of(func) == "constant_pad_nd":
        fill = float(rest[1]) if len(rest) > 1 else 0.0
        rest = [rest[0], -1.0]

    def run(number: int | None) -> Value:
        def function(*places: Tensor) -> Tensor:
            found = func(list(places) if isinstance(moved, list | tuple) else places[0], *rest, **options)
            result: Tensor = found if number is None else found[number]
            return result

        return steps.move(function, sources, fill)

    return [run(number) for number in range(len(shape))] if isinstance(shape, list) else run(None)


def _flat(args: Sequence[Any]) -> list[Any]:
    return [item for arg in args for item in (_flat(arg) if isinstance(arg, list | tuple) else [arg])]


def _copy(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    dtype = options.get("dtype")
    if dtype is torch.bool:
        return steps.pointwise("ne", [args[0], 0], shape)
    whole = dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
    return steps.pointwise("trunc", [args[0]], shape) if whole else args[0]


# ------------------------------------------------------------------------- sums over dimensions


def _inner(steps: Steps, x: Value, dims: Sequence[int]) -> tuple[Value, int, list[int]]:
    """Move dimensions to the end; return how many numbers they hold, and the order of dimensions."""
    count = len(x.shape)
    dims = sorted(dim % count for dim in dims) if count else []
    order = [dim for dim in range(count) if dim not in dims] + list(dims)
    inner = torch.Size(x.shape[dim] for dim in dims).numel()
    return steps.move(lambda places: places.permute(order), [x]), inner, order


def _reduction(op: str) -> Rule:
    def rule(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
        if isinstance(shape, list) or options.keys() - {"dtype", "keepdim"}:
            raise NotInAPageError
        x = args[0]
        dims = args[1] if len(args) > 1 and args[1] not in (None, []) else range(len(x.shape))
        moved, inner, _ = _inner(steps, x, [dims] if isinstance(dims, int) else dims)
        return steps.emit(op, [moved], shape, inner=inner)

    return rule


def _norm(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    x, order, *rest = [*args, 2][: max(2, len(args))]
    if order != 2:
        raise NotInAPageError
    squares = steps.pointwise("square", [x], x.shape)
    return steps.pointwise("sqrt", [_reduction("sum")(steps, shape, func, (squares, *rest), options)], shape)


def _softmax(op: str) -> Rule:
    def rule(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
        moved, inner, order = _inner(steps, args[0], [args[1]])
        found = steps.emit(op, [moved], moved.shape, inner=inner)
        back = [order.index(dim) for dim in range(len(order))]
        return steps.move(lambda places: places.permute(back), [found])

    return rule


def _normalize(steps: Steps, x: Value, inner: int, eps: float, weight: Any, bias: Any) -> list[Any]:
    found = steps.emit("normalize", [x], x.shape, inner=inner, eps=eps)
    if weight is not None:
        found = steps.pointwise("mul", [found, weight], x.shape)
    if bias is not None:
        found = steps.pointwise("add", [found, bias], x.shape)
    return [found]


def _layer_norm(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    x, sizes, weight, bias, eps = args
    return _normalize(steps, x, torch.Size(sizes).numel(), eps, weight, bias)


def _by_channel(x: Value, values: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (len(x.shape) - 2))


def _group_norm(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    x, weight, bias, count, _, _, groups, eps = args
    of_channels = (None if values is None else _by_channel(x, values) for values in (weight, bias))
    return _normalize(steps, x, x.size // (count * groups), eps, *of_channels)


def _batch_norm(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    x, weight, bias, mean, variance, *rest = args
    if len(rest) == 3 and rest[0]:
        raise NotInAPageError  # normalizes by the statistics of the batch
    scale = (variance + rest[-1]).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    scaled = steps.pointwise("mul", [x, _by_channel(x, scale)], x.shape)
    return [steps.pointwise("add", [scaled, _by_channel(x, shift)], x.shape)]


# ------------------------------------------------------------------------- products


def _product(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    left, right = (_shape_of(arg) for arg in args)
    batch = left[0] if len(left) == 3 else 1
    rows = left[-2] if len(left) > 1 else 1
    sizes = {"batch": batch, "rows": rows, "inner": left[-1], "columns": right.numel() // (batch * left[-1])}
    return steps.emit("matmul", [steps.place(arg, is_weight=True) for arg in args], shape, **sizes)


def _affine(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    if options:
        raise NotInAPageError
    return steps.pointwise("add", [_product(steps, shape, func, args[1:], {}), args[0]], shape)


def _convolution(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    plain = groups == 1 and set(dilation) == {1} and isinstance(weight, Tensor) and isinstance(x, Value)
    if not plain or len(x.shape) not in (3, 4) or x.shape[0] != 1:
        raise NotInAPageError

    def plane(sizes: Sequence[int], default: int) -> list[int]:
        return [default, *sizes][-2:]  # a line is a plane of height 1

    numbers = {
        "channels": x.shape[1], "out_channels": shape[1], "size_in": plane(x.shape[2:], 1),
        "size_out": plane(shape[2:], 1), "kernel": plane(weight.shape[2:], 1), "stride": plane(stride, 1),
        "padding": plane(padding, 0),
    }  # fmt: skip
    op = "transposed_convolution" if transposed else "convolution"
    found = steps.emit(op, [x, steps.place(weight, is_weight=True)], shape, **numbers)
    return found if bias is None else steps.pointwise("add", [found, _by_channel(x, bias)], shape)


def _pooling(op: str, empty: float, usual: list[Any]) -> Rule:
    def rule(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        x, kernel, *rest = args
        stride, padding = (rest[0] if rest else []) or kernel, rest[1] if len(rest) > 1 else [0, 0]
        if rest[2:] != usual[: len(rest[2:])]:
            raise NotInAPageError
        (height, width), (down, across), (above, left) = kernel, stride, padding

        def windows(places: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(places, (left, left, above, above), value=-1.0)
            return padded.unfold(-2, height, down).unfold(-2, width, across).flatten(-2)

        of = shape[0] if isinstance(shape, list) else shape
        taken = steps.move(windows, [x], empty)
        found = steps.emit(op, [taken], of, inner=height * width)
        return [found] if isinstance(shape, list) else found

    return rule


def _rows(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
    table, numbers = args[:2]
    return steps.emit("rows", [steps.place(table, is_weight=True), steps.place(numbers)], shape, width=table.shape[-1])


def _filled(steps: Steps, shape: Any, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    found: Tensor = func(torch.zeros(args[0].shape), *args[1:], **options)
    return found


RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(MOVES, _moves),
    "to_copy": _copy,
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "prod": _reduction("product"),
    "amax": _reduction("largest"),
    "amin": _reduction("smallest"),
    "linalg_vector_norm": _norm,
    "logsumexp": _reduction("logsumexp"),
    "argmax": _reduction("argmax"),
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "native_batch_norm_legit_no_training": _batch_norm,
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "addmm": _affine,
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling("largest", -torch.inf, [[1, 1], False]),
    "avg_pool2d": _pooling("mean", 0.0, [False, True, None]),
    "embedding": _rows,
    **dict.fromkeys(("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"), _filled),
}
