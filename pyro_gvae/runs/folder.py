"""Create run folders, name the folders of their cells, and lock them against a second writer."""

import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from .files import read_text, remove_unless_held
from .inside import in_place

#: Files of a comparison's cell: its pictures, which are written last and so mark it as finished, and its error message.
PICTURES, ERROR = "pictures.safetensors", "error.txt"
#: The most letters of a label that the name of a cell's folder keeps.
LONGEST = 120
#: The file by which a process locks a folder; it contains the number of that process.
LOCK = ".lock"


def new_run_folder(path: Path | None = None, *, prefix: str = "compare") -> Path:
    """Create a new folder, so that no run overwrites another.

    Args:
        path: The folder to create, with its parents; by default `runs/PREFIX-YYYYmmdd-HHMMSS`, with a
            suffix `-2`, `-3`, ... if that name is taken.
        prefix: The first word of the default name.

    Returns:
        The new, empty folder.

    Raises:
        ValueError: If `path` exists and is not an empty folder, or the folder cannot be created.

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
                continue  # an empty folder of the given name is used: a run killed in its first milliseconds leaves one
        except OSError as error:
            raise ValueError(
                f"Expected a folder that can be created, but found that '{candidate}' cannot: {error.strerror}. "
                "Try another path."
            ) from error
        return candidate
    raise _taken(Path(path))  # type: ignore[arg-type]


def check_new(path: Path) -> None:
    """Refuse a folder for a new run that already has something in it, before anything is loaded.

    Raises:
        ValueError: If `path` exists and is not an empty folder.
    """
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise _taken(path)


def _taken(path: Path) -> ValueError:
    go_on = f", or pyro-gvae resume {path}" if (path / "config.json").exists() else ""
    return ValueError(f"Expected a new run folder, but found that '{path}' exists. Try another name{go_on}.")


def _fresh_names(prefix: str) -> Iterator[Path]:
    name = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    yield Path("runs") / name
    for number in itertools.count(2):
        yield Path("runs") / f"{name}-{number}"


def cell_folder(run: Path, label: str, seed: int) -> Path:
    """Return the path of a cell's folder inside the run folder; it is a run folder of `train`, with pictures.

    Args:
        run: the run folder of the comparison.
        label: estimator and setting, from `tables.label`.
        seed: the seed of the cell.

    Example:
        >>> cell_folder(Path("run"), "gumbel-softmax:20,exact:3, 8x4", 0).as_posix()
        'run/cells/gumbel-softmax-20-exact-3-8x4-seed0'
    """
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", label).strip("-")
    if len(name) > LONGEST:  # file systems allow names of up to 255 bytes, and files are named after the cell, too
        name = f"{name[:LONGEST]}-{hashlib.sha256(label.encode()).hexdigest()[:16]}"
    return run / "cells" / f"{name}-seed{seed}"


def cell_error(run: Path, label: str, seed: int) -> str | None:
    """Read the error message of a failed cell; None if it has none."""
    path = cell_folder(run, label, seed) / ERROR
    return read_text(path)[:1000] if path.exists() else None


def check_own(folder: Path) -> None:
    """Refuse a folder with links in it, so that everything read and written through it lies inside it.

    Raises:
        ValueError: if it contains a link, a pipe or a device, at any depth.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                check_own(Path(entry))
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry):  # a temporary file may be gone
                raise ValueError(
                    f"Expected a folder of files and folders alone, but found that '{entry.path}' is a link or not a "
                    "regular file. Try a copy without it."
                )


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before any work is done; an absent one must be possible to create.

    Raises:
        ValueError: if the folder, or the nearest existing folder above it, is not writable.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"Expected a writable run folder, but found that '{there}' is not. Try another folder.")


@final
class HeldError(ValueError):
    """Another process has locked a folder.

    Attributes:
        by: that process, in words.
    """

    def __init__(self, folder: Path, by: str) -> None:
        super().__init__(
            f"Expected a folder that no other process writes to, but found that one works in '{folder}', {by}. Try "
            "waiting until it ends, or another folder."
        )
        self.by = by


def holder(folder: Path) -> str | None:
    """Return a description of the process that has locked a folder; None if no process has."""
    if not (folder / LOCK).exists():
        return None
    try:
        with sole_writer(folder):
            return None
    except HeldError as held:
        return held.by


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes until the block or this process ends, in whatever way.

    Args:
        folder: the folder; a file ".lock" is created in it and names the process that has locked it.

    Raises:
        HeldError: if another process has locked it.

    Example:
        >>> from tempfile import mkdtemp
        >>> with sole_writer(Path(mkdtemp())):
        ...     pass
    """
    with in_place(folder / LOCK) as path:
        lock, by = FileLock(path, timeout=0), _writer(path)
        with suppress(OSError):
            if path.lstat().st_nlink > 1:  # writing the number would change the other file of a hard link
                remove_unless_held(path)
        try:
            lock.acquire()
            path.write_text(f"{os.getpid()}\n", encoding="ascii")
        except Timeout:
            raise HeldError(folder, by) from None
        except NotImplementedError:  # the file system has no locks, so there is no protection
            pass
        try:
            yield
        finally:
            lock.release()


def _writer(lock: Path) -> str:
    """Return a description of the process that a lock file names."""
    try:
        return f"process {int(lock.read_bytes()[:20])}"
    except (OSError, ValueError):
        return "another process"


def command_on(run: Path, name: str, *options: str, data_dir: Path = Path("data")) -> str:
    """Write a command on a run as one types it in a shell, with the data folder, which a run folder does not keep.

    Example:
        >>> command_on(Path("runs/first"), "evaluate", data_dir=Path("my data"))
        "pyro-gvae evaluate runs/first --data-dir 'my data'"
    """
    own = [] if data_dir == Path("data") else ["--data-dir", str(data_dir)]
    return shlex.join(["pyro-gvae", name, str(run), *options, *own])
