"""Use paths inside a folder safely while somebody else may change it: no folder on the path is a link, or becomes one.

Each folder is opened from the one above it, so no link is followed, and it stays open while the path is used. Linux
shows an open folder under `/proc/self/fd`: a path that begins there leads into that very folder, even if its own name
is replaced meanwhile. On other systems the path is only checked before it is used.
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
    """An open folder."""

    path: Path
    handle: int


_ROOTS: ContextVar[tuple[_Root, ...]] = ContextVar("roots", default=())


@contextmanager
def staying_inside(folder: Path) -> Iterator[None]:
    """Until the block ends, keep every path of :func:`in_place` from leaving a folder through a link inside it.

    Args:
        folder: a folder that exists. Its own path may contain links, unless it lies inside another such folder.

    Raises:
        ValueError: if it lies inside another such folder, and its path contains a link.
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
    """Yield a path to the same file or folder that stays valid while the block runs, even if a folder is replaced.

    Inside a folder of :func:`staying_inside`, no folder on the path may be a link; elsewhere, yield the path itself.

    Args:
        path: the file or folder, which need not exist yet.
        make: whether to create the absent folders above it.

    Raises:
        ValueError: if a folder on the path is a link, or not a folder.
        OSError: if one cannot be opened. It names the path that was given, and so do errors raised in the block.
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
    """Create a folder and the absent folders above it, unless it exists.

    Raises:
        ValueError: if a folder on the path is a link that may not be followed, see :func:`in_place`.
        OSError: if it cannot be created.
    """
    with in_place(folder / "file", make=True):
        pass


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _root_of(folder: Path) -> _Root | None:
    """Return the innermost folder of :func:`staying_inside` that contains this one."""
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
    """Open a folder inside an open one; refuse a link."""
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=handle)
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ValueError(
                f"Expected a folder, but found that '{path}' is a link or not a folder. Try removing it."
            ) from error
        error.filename = str(path)
        raise
