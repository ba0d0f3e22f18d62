"""Optional packages, which extras of this package install."""

from importlib import import_module
from typing import Any


def import_extra(package: str, *, extra: str, purpose: str) -> Any:
    """Import an optional package that an extra of `pyro-gvae` installs.

    Args:
        package: its name in Python.
        extra: the extra that installs it.
        purpose: what it is needed for, in words.

    Returns:
        The module.

    Raises:
        ValueError: if the package is not installed. An import error inside the package is raised unchanged.

    Example:
        >>> import_extra("json", extra="none", purpose="an example").dumps([1])
        '[1]'
        >>> import_extra("no_such_package", extra="none", purpose="an example")
        Traceback (most recent call last):
            ...
        ValueError: Expected the package 'no_such_package' for an example, but found none. Try: ...
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"Expected the package '{package}' for {purpose}, but found none. Try: pip install 'pyro-gvae[{extra}]'."
        ) from error
