"""Where a run folder lies and what its cells are named; one writer at a time."""

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

#: Of a cell of a comparison: its pictures, written last, so that what has them is finished; what it failed of.
PICTURES, ERROR = "pictures.safetensors", "error.txt"
LOCK = ".lock"


def new_run_folder(path: Path | None = None, *, prefix: str = "compare") -> Path:
    """Creates a folder that did not exist before, so that no run ever writes over another.

    Args:
        path: The folder to create, with its parents; by default `runs/PREFIX-YYYYmmdd-HHMMSS`, with a
            suffix `-2`, `-3`, ... where that name is taken.
        prefix: The first word of the default name.

    Returns:
        The new, empty folder.

    Raises:
        ValueError: If `path` exists, or if the folder cannot be created; the sentence names the folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> new_run_folder(Path(mkdtemp()) / "first").name
        'first'
    """
    for candidate in _fresh_names(prefix) if path is None else [Path(path)]:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if path is None or any(candidate.iterdir() if candidate.is_dir() else [candidate]):
                continue  # an empty folder that was named is what a kill in the first milliseconds leaves
        except OSError as error:
            raise ValueError(
                f"Expected a folder that can be created, but found that '{candidate}' cannot: {error.strerror}. "
                "Try another place."
            ) from error
        return candidate
    raise ValueError(f"Expected a new run folder, but found that '{path}' exists. Try another name.")


def _fresh_names(prefix: str) -> Iterator[Path]:
    name = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    yield Path("runs") / name
    for number in itertools.count(2):
        yield Path("runs") / f"{name}-{number}"


def cell_folder(run: Path, label: str, seed: int) -> Path:
    """Where one cell of a comparison lies in its run folder: a run folder of `train`, with pictures.

    Args:
        run: the run folder of the comparison.
        label: estimator and setting, from `tables.label`.
        seed: its seed.

    Example:
        >>> cell_folder(Path("run"), "gumbel-softmax:20,exact:3, 8x4", 0).as_posix()
        'run/cells/gumbel-softmax-20-exact-3-8x4-seed0'
    """
    return run / "cells" / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', label).strip('-')}-seed{seed}"


def cell_error(run: Path, label: str, seed: int) -> str | None:
    """What a cell failed of, in a sentence, if it did."""
    path = cell_folder(run, label, seed) / ERROR
    return path.read_text(encoding="utf-8") if path.exists() else None


@final
class HeldError(ValueError):
    """Another process writes to a folder.

    Attributes:
        by: which one, in words.
    """

    def __init__(self, folder: Path, by: str) -> None:
        super().__init__(
            f"Expected a folder that no other process writes to, but found that one works in '{folder}', {by}. Try to "
            "wait for its end, or another folder."
        )
        self.by = by


def holder(folder: Path) -> str | None:
    """Which process writes to a folder, in words; None if none does."""
    if not (folder / LOCK).exists():
        return None
    try:
        with sole_writer(folder):
            return None
    except HeldError as held:
        return held.by


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder against other processes until the block ends, or this process does, however it ends.

    Args:
        folder: where there is a file ".lock" from then on, which says which process holds the folder.

    Raises:
        HeldError: if another process does.

    Example:
        >>> from tempfile import mkdtemp
        >>> with sole_writer(Path(mkdtemp())):
        ...     pass
    """
    path = folder / LOCK
    lock, by = FileLock(path, timeout=0), _writer(path)
    try:
        lock.acquire()
        path.write_text(f"{os.getpid()}\n", encoding="ascii")
    except Timeout:
        raise HeldError(folder, by) from None
    except NotImplementedError:  # of a file system without locks: whoever uses it is on their own
        pass
    try:
        yield
    finally:
        lock.release()


def _writer(lock: Path) -> str:
    """The process that a lock file names."""
    try:
        return f"process {int(lock.read_bytes()[:20])}"
    except (OSError, ValueError):
        return "another process"
