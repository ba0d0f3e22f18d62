"""The random states of a process: torch's on every device, NumPy's and Python's."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compat.torch import outside_of_transforms


class Generators(NamedTuple):
    """The states of torch's generators."""

    cpu: Tensor
    cuda: list[Tensor]


def generators_of_torch() -> Generators:
    """Return the states of torch's generators, on every device."""
    return Generators(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])


def set_generators_of_torch(states: Generators) -> None:
    """Restore the states that :func:`generators_of_torch` returned."""
    torch.set_rng_state(states.cpu)
    for index, state in enumerate(states.cuda):
        torch.cuda.set_rng_state(state, index)


def random_states() -> dict[str, Any]:
    """Return the state of every generator, as tensors and plain numbers for a checkpoint."""
    version, numbers, gauss = random.getstate()
    numpy_state = dict(np.random.get_state(legacy=False))
    keys = numpy_state.pop("state")
    of_torch = generators_of_torch()
    return {
        "torch": of_torch.cpu,
        "cuda": of_torch.cuda,
        "numpy": numpy_state | {"key": torch.from_numpy(keys["key"].copy()), "pos": int(keys["pos"])},
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states that :func:`random_states` returned.

    Raises:
        ValueError: if NumPy's state is malformed, which NumPy does not check itself.
    """
    key, place = states["numpy"]["key"], states["numpy"]["pos"]
    if key.dtype != torch.uint32 or key.shape != (624,) or not 0 <= place <= 624:
        raise ValueError("Expected a state of NumPy's generator, but found something else.")
    set_generators_of_torch(Generators(states["torch"], states["cuda"]))
    numpy_state = dict(states["numpy"])
    with outside_of_transforms():
        keys = {"key": numpy_state.pop("key").numpy(), "pos": numpy_state.pop("pos")}
    np.random.set_state(numpy_state | {"state": keys})
    python = states["python"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))


def are_same(states: Any, others: Any) -> bool:
    """Return whether states that :func:`random_states` returned are the same, so that nothing was drawn in between.

    Example:
        >>> before = random_states()
        >>> are_same(before, random_states()), bool(torch.rand(()) > 2), are_same(before, random_states())
        (True, False, False)
    """
    if isinstance(states, Tensor):
        return torch.equal(states.view(torch.uint8), others.view(torch.uint8))  # there is no `equal` of uint32
    if isinstance(states, dict):
        return all(are_same(state, others[name]) for name, state in states.items())
    if isinstance(states, list) and states and isinstance(states[0], Tensor):
        return len(states) == len(others) and all(map(are_same, states, others))
    return bool(states == others)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed all generators inside the block, and restore their states afterwards.

    Example:
        >>> before = torch.get_rng_state()
        >>> with own_randomness(0):
        ...     draw = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    before = random_states()
    try:
        torch.manual_seed(seed)  # on every device
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        set_random_states(before)


def derived_seed(purpose: str, seed: int, epoch: int = 0) -> int:
    """Derive a seed from purpose, seed and epoch, so that no two of them share random numbers as seed + epoch would."""
    digest = hashlib.sha256(f"{purpose}/{seed:d}/{epoch:d}".encode()).digest()
    return int.from_bytes(digest[:4], "big")  # torch's CPU generator uses 32 bits of a seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block, and restore their states afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
