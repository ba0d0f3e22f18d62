"""Named points at which a process under test dies, so that the disk is in the state in which a kill leaves it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def die() -> None:
    """End the process as `kill -9` does: nothing is cleaned up, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """Wrap a function so that a given call of it (counted from 1) ends the process, before or after doing its work."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            die()
        found = function(*args, **kwargs)
        if calls == number:
            die()
        return found

    return counted


def in_a_step(number: int) -> None:
    from pyro_gvae.train.step import Step

    _patch(Step, "__call__", at_call(number, Step.__call__, after=True))


def in_an_evaluation(number: int) -> None:
    from pyro_gvae.train import training

    _patch(training, "discrete_elbo", at_call(number, training.discrete_elbo))


def inside_a_checkpoint_write(number: int) -> None:
    """Die when half of the temporary file is on the disk."""
    from pyro_gvae.runs import checkpoint

    save, calls = checkpoint.save, 0

    def half(tensors: Any, metadata: Any) -> bytes:
        nonlocal calls
        calls += 1
        whole: bytes = save(tensors, metadata)
        if calls == number:
            write = Path.write_bytes

            def torn(path: Path, data: bytes) -> int:
                write(path, data[: len(data) // 2])
                die()
                return 0

            _patch(Path, "write_bytes", torn)
        return whole

    _patch(checkpoint, "save", half)


def before_a_checkpoint_has_its_name(number: int) -> None:
    """Die when the temporary file is complete, but not yet renamed."""
    replace, calls = Path.replace, 0

    def unnamed(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += target.name == "checkpoint.safetensors"
        if calls == number:
            die()
        return replace(path, target)

    _patch(Path, "replace", unnamed)


def inside_a_json_line(number: int) -> None:
    """Die when half of the line is on the disk."""
    from pyro_gvae.train import logs

    append, calls = logs.append_json_line, 0

    def torn(path: Path, record: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        before = path.stat().st_size if path.exists() else 0
        append(path, record)
        if calls == number:
            os.truncate(path, (before + path.stat().st_size) // 2)
            die()

    _patch(logs, "append_json_line", torn)


def between_stages(number: int) -> None:
    from pyro_gvae.train.training import Training

    _patch(Training, "next_stage", at_call(number, Training.next_stage, after=True))


def _patch(target: Any, name: str, value: Any) -> None:
    """Patch a function permanently, since the process dies anyway."""
    pytest.MonkeyPatch().setattr(target, name, value)


FAULTS: dict[str, Callable[[int], None]] = {
    fault.__name__: fault
    for fault in (
        in_a_step,
        in_an_evaluation,
        inside_a_checkpoint_write,
        before_a_checkpoint_has_its_name,
        inside_a_json_line,
        between_stages,
    )
}
