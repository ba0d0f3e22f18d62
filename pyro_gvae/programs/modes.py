"""Run programs without changing their networks: in eval mode, or with random states and buffers restored."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..runtime.rng import are_same, random_states, set_random_states
from .pair import HasPair, check_pair

P = TypeVar("P", bound=HasPair)
R = TypeVar("R")


@contextmanager
def eval_mode(pair: HasPair) -> Iterator[None]:
    """Put the networks of a pair into eval mode; afterwards restore each module's own mode.

    In train mode, dropout would make an evaluation random, and batch normalization would learn from the evaluated data.
    The networks are found in the pair if it is a module, and in the modules whose methods are its model and guide.
    """
    modes = {module: module.training for root in _roots(pair) for module in root.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def without_trace() -> Iterator[Callable[[], bool]]:
    """Run programs for a trial: random states, and buffers of the modules that are called, are restored afterwards.

    Otherwise batch normalization in train mode, for example, would learn from the trial.

    Yields:
        A function that returns whether nothing has to be restored so far: then the same runs would give the same again.
    """
    states = random_states()
    before: dict[Tensor, Tensor] = {}

    def keep(module: nn.Module, _: Any) -> None:
        for buffer in module.buffers(recurse=False):
            if buffer not in before:
                before[buffer] = buffer.clone()

    # A hook for all modules, because programs may be functions with modules in their closures.
    hook = register_module_forward_pre_hook(keep)

    def changed() -> list[Tensor]:
        """Return the buffers that may have changed; `torch.equal` of sparse ones fails."""
        found = before.items()
        return [one for one, value in found if one.layout is not torch.strided or not torch.equal(one, value)]

    try:
        yield lambda: not changed() and are_same(states, random_states())
    finally:
        hook.remove()
        set_random_states(states)
        with torch.no_grad():
            for buffer in changed():
                buffer.copy_(before[buffer])


def judging(function: Callable[Concatenate[P, ...], R]) -> Callable[Concatenate[P, ...], R]:
    """Decorate a function of a pair so that it runs with the pair's networks in eval mode."""

    @functools.wraps(function)
    def judged(pair: P, *args: Any, **kwargs: Any) -> R:
        check_pair(pair)
        with eval_mode(pair):
            return function(pair, *args, **kwargs)

    return judged


def _roots(pair: HasPair) -> Iterator[nn.Module]:
    """Yield the modules among the pair, its programs, and the objects whose methods they are, also inside handlers."""
    for candidate in (pair, pair.model, pair.guide):
        layer: Any = candidate
        while layer is not None:
            owner = getattr(layer, "__self__", layer)
            if isinstance(owner, nn.Module):
                yield owner
            layer = getattr(layer, "__wrapped__", None)
