"""Where a run folder lies and what its cells are named; one writer at a time."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

#: Of a cell of a comparison: its pictures, written last, so that what has them is finished; what it failed of.
PICTURES, ERROR = "pictures.safetensors", "error.txt"


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


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder against other processes until the block ends, or this process does, however it ends.

    Args:
        folder: where there is a file ".lock" from then on.

    Raises:
        ValueError: if another process holds the folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> with sole_writer(Path(mkdtemp())):
        ...     pass
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Expected a folder that no other process writes to, but found that one works in '{folder}'. Try to wait "
            "for its end, or another folder."
        ) from None
    except NotImplementedError:  # of a file system without locks: whoever uses it is on their own
        pass
    try:
        yield
    finally:
        lock.release()
