"""Paths inside of a folder that somebody else may change: no folder on the way is a link, nor becomes one.

A folder is opened from the one above it, so that no link is followed, and stays open while its name is used. Linux
shows an open folder under `/proc/self/fd`: a path that begins there leads into that very folder, whatever its own name
leads to meanwhile. Elsewhere the way is only looked at before it is gone.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

_OPEN_FOLDERS = Path("/proc/self/fd")
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_HAS_HANDLES = hasattr(os, "O_DIRECTORY") and os.open in os.supports_dir_fd  # not so on Windows


class _Root(NamedTuple):
    """A folder that is open."""

    path: Path
    handle: int


_ROOTS: ContextVar[tuple[_Root, ...]] = ContextVar("roots", default=())


@contextmanager
def staying_inside(folder: Path) -> Iterator[None]:
    """Let no path of :func:`in_place` leave a folder by a link inside of it, until the block ends.

    Args:
        folder: a folder that exists. Its own path may go through links, unless it lies in such a folder itself.

    Raises:
        ValueError: if it lies in such a folder, and a link is on the way.
        OSError: if it cannot be opened.
    """
    if not _HAS_HANDLES:
        yield
        return
    root = _Root(_absolute(folder), _opened_folder(folder))
    token = _ROOTS.set((*_ROOTS.get(), root))
    try:
        yield
    finally:
        _ROOTS.reset(token)
        os.close(root.handle)


@contextmanager
def in_place(path: Path, *, make: bool = False) -> Iterator[Path]:
    """Yield a path of the same file or folder that leads to it for as long as the block runs.

    Inside of a folder of :func:`staying_inside`, no folder on the way may be a link; elsewhere it is the path itself.

    Args:
        path: where it is, or will be.
        make: whether to make the folders on the way that are absent.

    Raises:
        ValueError: if a folder on the way is a link, or no folder.
        OSError: if one cannot be opened. It names the path that was asked for, as errors in the block do.
    """
    if _root_of(path.parent) is None:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    handle = _opened_folder(path.parent, make=make)
    open_folder = _OPEN_FOLDERS / str(handle)
    try:
        yield open_folder / path.name if open_folder.exists() else path
    except OSError as error:
        name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else Path()
        if name.is_relative_to(open_folder):
            error.filename = str(path.parent / name.relative_to(open_folder))
        raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it that are absent, where there is none.

    Raises:
        ValueError: if a folder on the way is a link that may not be followed, see :func:`in_place`.
        OSError: if it cannot be made.
    """
    with in_place(folder / "file", make=True):
        pass


def sync_folder(folder: Path) -> None:
    """Have the names of a folder on the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _root_of(folder: Path) -> _Root | None:
    """Return the innermost folder that may not be left and has this one in it."""
    path = _absolute(folder)
    return next((root for root in reversed(_ROOTS.get()) if path.is_relative_to(root.path)), None)


def _opened_folder(folder: Path, *, make: bool = False) -> int:
    root = _root_of(folder)
    if root is None:
        return os.open(folder, _FOLDER)
    handle, path = os.dup(root.handle), root.path
    for name in _absolute(folder).relative_to(root.path).parts:
        path = path / name
        try:
            inner = _opened_inner(name, handle, path, make=make)
        finally:
            os.close(handle)
        handle = inner
    return handle


def _opened_inner(name: str, handle: int, path: Path, *, make: bool) -> int:
    """Open a folder in an open one; it is no link."""
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=handle)
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ValueError(
                f"Expected a folder, but found that '{path}' is a link or no folder. Try without it."
            ) from error
        error.filename = str(path)
        raise
