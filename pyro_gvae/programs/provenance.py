"""Track which latents the tensors of a program directly depend on.

Stock `TrackProvenance` does the same, but takes about ten times as long, which matters for a chain of a thousand
latents.
"""

from collections.abc import Iterable
from typing import Any, final

from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..handlers.sites import Messages
from ..runtime.compat.pyro import is_random

_NOTHING: frozenset[str] = frozenset()


@final
class Provenance(Messenger):
    """Tracks the values of all sites of a program through torch functions; must be the innermost handler."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = _Following()

    def __enter__(self) -> Any:
        self._mode.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._mode.__exit__(*error)
        return super().__exit__(*error)

    def of(self, value: Any) -> frozenset[str]:
        """Return the names of the sites that a tensor comes from."""
        return self._mode.of(value)

    def _pyro_post_sample(self, msg: Messages) -> None:
        if is_random(msg) and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].view_as(msg["value"])  # a new tensor: the value may be a parameter
            self._mode.sources[id(msg["value"])] = msg["value"], frozenset({msg["name"]})


@final
class _Following(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[int, tuple[Tensor, frozenset[str]]] = {}  # tensors are kept, so that ids stay unique

    def of(self, value: Any) -> frozenset[str]:
        return self.sources[id(value)][1] if id(value) in self.sources else _NOTHING

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.sources:
            inputs = [*_tensors(args), *_tensors((kwargs or {}).values())]
            found = _NOTHING.union(*map(self.of, inputs))
            # A function that returns None writes into its first argument.
            for value in _tensors((args[:1] if result is None else result,)) if found else ():
                self.sources[id(value)] = value, found
        return result


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
