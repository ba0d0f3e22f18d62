"""Packages that only some users need, each brought by an extra of this one."""

from importlib import import_module
from typing import Any


def import_extra(package: str, *, extra: str, purpose: str) -> Any:
    """Import a package that an extra of `pyro-gvae` installs.

    Args:
        package: The name by which Python imports it.
        extra: The extra that brings it.
        purpose: What needs it, in words.

    Returns:
        The module.

    Raises:
        ValueError: If the package is absent. An import that fails within the package is raised as it is.

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
