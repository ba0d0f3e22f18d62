"""Read a network as a chain of layers with their weights, for a page that runs it without torch."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.networks import ChannelsLast


class Layer(NamedTuple):
    """One layer: what a page needs to compute it.

    Args:
        kind: the name of its formula in the page.
        numbers: sizes and constants.
        weights: arrays by name.
    """

    kind: str
    numbers: dict[str, Any]
    weights: dict[str, Tensor]


class _Call(NamedTuple):
    module: nn.Module
    given: Any
    returned: Any
    versions: tuple[int, int]  # how often `given` and `returned` had been changed in place, before and after the call


def read_layers(network: nn.Module, example: Tensor) -> list[Layer] | None:
    """Read the layers of a network that is a chain of layers known here.

    The network runs once. It is a chain if each of its innermost modules takes what the one before returned, and
    nothing else happens to the values on the way.

    Args:
        network: a module in eval mode.
        example: one input, whose first dimension has size 1.

    Returns:
        The layers in order, or None if the network does anything that is not known here.

    Example:
        >>> [layer.kind for layer in read_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3))]
        ['linear', 'relu']
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> read_layers(nn.Sequential(Doubled(3, 2)), torch.zeros(1, 3)) is None
        True
    """
    calls: list[_Call] = []
    begun: list[tuple[Any, int]] = []

    def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next(iter([*arguments, *named.values()]), None)
        begun.append((given, _version(given)))

    def end(module: nn.Module, arguments: tuple[Any, ...], returned: Any) -> None:
        given, version = begun.pop()
        calls.append(_Call(module, given, returned, (version, _version(returned))))

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # a mode whose tensors do not count their changes
        stack.enter_context(torch.no_grad())
        example = example.clone()
        for module in network.modules():
            if next(module.children(), None) is None:
                stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(end).remove)
        result = network(example)
    if not _is_chain(calls, (example, 0), (result, _version(result))):
        return None
    layers: list[Layer] = []
    for call in calls:
        read = READERS.get(type(call.module))
        found = None if read is None else read(call)
        if found is None:
            return None
        layers += found
    return layers


def _version(value: Any) -> int:
    """How often a tensor was changed in place; 0 of another value."""
    return value._version if isinstance(value, Tensor) else 0


def _is_chain(calls: list[_Call], example: tuple[Any, int], result: tuple[Any, int]) -> bool:
    """Whether each call takes the values that the one before returned, reshaped at most, and unchanged in place."""
    values = [example, *((call.returned, call.versions[1]) for call in calls)]
    taken = [*((call.given, call.versions[0]) for call in calls), result]
    return all(
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.data_ptr() == other.data_ptr()
        and one.numel() == other.numel()
        and other.is_contiguous()
        and version == later
        for (one, version), (other, later) in zip(values, taken, strict=True)
    )


# ------------------------------------------------------------------------- one reader for each class of layers

Read = Callable[[Any], list[Layer] | None]


def _nothing(call: _Call) -> list[Layer]:
    return []


def _activation(kind: str, *numbers: str) -> Read:
    def read(call: _Call) -> list[Layer]:
        return [Layer(kind, {name: float(getattr(call.module, name)) for name in numbers}, {})]

    return read


def _linear(call: _Call) -> list[Layer] | None:
    module: Any = call.module
    if call.given.numel() != module.in_features:
        return None  # it is applied at several places
    sizes = {"inputs": module.in_features, "outputs": module.out_features}
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias
    return [Layer("linear", sizes, {"weight": module.weight.T.contiguous(), "bias": bias})]  # (inputs, outputs)


def _gelu(call: _Call) -> list[Layer] | None:
    module: Any = call.module
    return [Layer("gelu", {}, {})] if module.approximate == "none" else None


def _softplus(call: _Call) -> list[Layer] | None:
    module: Any = call.module
    return [Layer("softplus", {}, {})] if module.beta == 1 else None


def _layer_norm(call: _Call) -> list[Layer] | None:
    module: Any = call.module
    size = call.given.numel()
    if size != torch.Size(module.normalized_shape).numel():
        return None
    ones, zeros = torch.ones(size), torch.zeros(size)
    weight = ones if module.weight is None else module.weight.flatten()
    bias = zeros if module.bias is None else module.bias.flatten()
    return [Layer("layer_norm", {"eps": module.eps}, {"weight": weight, "bias": bias})]


def _batch_norm(call: _Call) -> list[Layer] | None:
    module: Any = call.module
    if module.training or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight
    shift = -module.running_mean * scale
    if module.bias is not None:
        shift = shift + module.bias
    each = call.given.numel() // len(scale)
    weights = {"weight": scale.repeat_interleave(each), "bias": shift.repeat_interleave(each)}
    return [Layer("affine", {}, weights)]


def _convolution(kind: str) -> Read:
    def read(call: _Call) -> list[Layer] | None:
        module: Any = call.module
        is_plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        if not is_plain or isinstance(module.padding, str) or call.given.dim() != 4 or len(call.given) != 1:
            return None
        _, channels, height, width = call.given.shape
        _, out_channels, out_height, out_width = call.returned.shape
        numbers = {
            "channels": channels, "height": height, "width": width,
            "out_channels": out_channels, "out_height": out_height, "out_width": out_width,
            "kernel": list(module.kernel_size), "stride": list(module.stride), "padding": list(module.padding),
        }  # fmt: skip
        bias = torch.zeros(out_channels) if module.bias is None else module.bias
        return [Layer(kind, numbers, {"weight": module.weight, "bias": bias})]

    return read


def _channels_last(call: _Call) -> list[Layer]:
    channels = call.given.shape[-3]
    return [Layer("channels_last", {"channels": channels, "pixels": call.given.numel() // channels}, {})]


READERS: dict[type[nn.Module], Read] = {
    nn.Flatten: _nothing,
    nn.Unflatten: _nothing,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.ReLU: _activation("relu"),
    nn.Tanh: _activation("tanh"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.SiLU: _activation("silu"),
    nn.LeakyReLU: _activation("leaky_relu", "negative_slope"),
    nn.ELU: _activation("elu", "alpha"),
    nn.GELU: _gelu,
    nn.Softplus: _softplus,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Conv2d: _convolution("convolution"),
    nn.ConvTranspose2d: _convolution("transposed_convolution"),
    ChannelsLast: _channels_last,
}
