"""Define the base class of the ready-made programs: a model and a guide of data x (B, D)."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.params import param_with_module_name
from torch import Tensor, nn

from ..config.checks import at_least
from ..config.models import Labels
from ..distributions.parameters import check_temperature, scalar_temperature
from ..handlers.parameters import announce
from ..runtime.arguments import KnowsArguments
from ..runtime.compat.pyro import forget_leaf
from .observations import Observation, as_observation

#: Pyro's handlers are global, but `DataParallel` calls each replica in its own thread.
ONE_AT_A_TIME = threading.RLock()


class VAE(KnowsArguments, nn.Module, ABC):
    """Abstract base: a model and a guide of data x (B, D), whose parameters are the parameters of the module.

    A subclass calls `_begin(x)` first in `model` and in `guide`, and gives its sites the temperatures below.

    Attributes:
        data_dim: D.
        name: prefix of the parameters' names in Pyro's param store.
        observation: the module that builds p(x | z) from the natural parameters that a decoder returns.
        labels: how the program uses labels.
    """

    labels: ClassVar[Labels] = Labels.UNUSED

    _temperature: Tensor
    _prior_temperature: Tensor
    observation: Observation

    def __init__(
        self,
        data_dim: int,
        observation: str | Observation = "bernoulli",
        *,
        scale: float | None = None,
        num_levels: int = 256,
        temperature: float = 2 / 3,
        prior_temperature: float = 2 / 5,
        name: str = "vae",
    ) -> None:
        super().__init__()
        self.data_dim: Final = data_dim
        self.name: Final = name
        self.observation = as_observation(observation, scale=scale, num_levels=num_levels)
        # Temperatures are buffers, so that annealing changes a tensor that a recorded graph reads, not the graph.
        self.register_buffer("_temperature", scalar_temperature(temperature, torch.zeros(())))
        self.register_buffer("_prior_temperature", scalar_temperature(prior_temperature, torch.zeros(())))

    @abstractmethod
    def model(self, x: Tensor) -> Any:
        """Run the model of data x (B, D)."""

    @abstractmethod
    def guide(self, x: Tensor) -> Any:
        """Run the guide given data x (B, D)."""

    def as_taken(self, x: Tensor) -> Tensor:
        """Return data (M, ...) in the shape that model and guide take; images become rows (M, D)."""
        return x.flatten(1) if x.dim() > 2 else x

    @property
    def natural_dim(self) -> int:
        """The number of natural parameters that a decoder returns."""
        return self.observation.natural_dim(self.data_dim)

    @property
    def input_dim(self) -> int:
        """The number of inputs of an encoder: D, or more if it also sees which cells are missing."""
        return self.observation.input_dim(self.data_dim)

    @property
    def temperature(self) -> Tensor:
        """The guide's temperature, shape (); assign a number to anneal it."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        check_temperature(value)
        self._temperature.copy_(scalar_temperature(value, self._temperature))

    @property
    def prior_temperature(self) -> Tensor:
        """The model's temperature, shape (); assign a number to anneal it."""
        return self._prior_temperature

    @prior_temperature.setter
    def prior_temperature(self, value: float | Tensor) -> None:
        check_temperature(value)
        self._prior_temperature.copy_(scalar_temperature(value, self._prior_temperature))

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        for parameter in self.parameters():
            forget_leaf(parameter)
        return super().__reduce_ex__(protocol)

    def _begin(self, x: Tensor) -> None:
        """Check the data, and register the parameters with Pyro."""
        self._check_data(x)
        self._register()

    def _register(self) -> None:
        """Register the parameters with Pyro. Refuse if Pyro would train copies that the networks do not use."""
        if pyro.settings.get("module_local_params"):
            for name, parameter in self.named_parameters():
                announce(param_with_module_name(self.name, name), parameter)
            return
        store = pyro.get_param_store()
        for name, parameter in self.named_parameters():
            key = param_with_module_name(self.name, name)
            found = pyro.param(key, parameter) if parameter.requires_grad else parameter
            # Handlers may wrap or replace the value that pyro.param returns, so compare with the store's entry too.
            if found is not parameter and key in store and found is store.get_param(key):
                raise ValueError(
                    f"Expected Pyro's param store to hold this module's '{name}', but found another tensor under "
                    f"'{key}'. Try pyro.clear_param_store(), or {type(self).__name__}(name=..) with another name."
                )

    def _check_data(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise ValueError(f"Expected data as a tensor, but found {type(x).__name__}. Try torch.as_tensor(x).")
        self._check_shape(x)
        # Replicas of DataParallel have no parameters.
        dtype = next((parameter.dtype for parameter in self.parameters()), self._temperature.dtype)
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"Expected data of the networks' dtype {dtype}, but found {x.dtype}. Try x.to({dtype}).")
        if is_validation_enabled():
            self.observation.check(x)

    def _check_shape(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[-1] != self.data_dim or len(x) == 0:
            raise ValueError(
                f"Expected data of shape (B, {self.data_dim}), but found {tuple(x.shape)}. Try x.flatten(1)."
            )


def check_sizes(**sizes: int) -> None:
    """Refuse sizes of networks and codes that are too small: below 2 for numbers of categories, below 1 for others.

    Raises:
        ValueError: if a size is too small.
    """
    for name, size in sizes.items():
        at_least(name, size, 2 if name in ("num_categories", "num_components", "num_classes", "num_states") else 1)


def one_hot_labels(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Return labels y (B,) of data x (B, D) as one-hots (B, C), with zeros where a label is not one of the C classes.

    Raises:
        ValueError: if y does not have one integer for each datum.
    """
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(
            f"Expected labels as {len(x)} integers, one for each datum, but found {y.dtype} of shape {tuple(y.shape)}. "
            "Try -1 for data without a label, if the program takes them."
        )
    return (y.unsqueeze(-1) == torch.arange(num_classes, device=x.device)).to(x.dtype)


def widths_by_name(hidden: Any) -> dict[str, int]:
    """Give the widths of hidden layers names, for :func:`check_sizes`.

    Raises:
        ValueError: if it is no sequence.
    """
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise ValueError(f"Expected the widths of the hidden layers, but found {hidden!r}. Try hidden=(512, 256).")
    return {f"hidden[{i}]": width for i, width in enumerate(hidden)}
