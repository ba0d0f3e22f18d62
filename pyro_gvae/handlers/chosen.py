"""Which sites of a program a handler acts on."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class AllBut(Container[str]):
    """All names of sites except some."""

    names: frozenset[str] = frozenset()

    def __contains__(self, name: object) -> bool:
        return name not in self.names


EVERY_SITE = AllBut()
#: Names of sites.
Sites = Container[str]


def as_names(sites: Sites) -> Sites:
    """Return names of sites as a frozen set; an `AllBut` is returned as it is.

    Raises:
        ValueError: if it is a string and not a collection of names.
    """
    if isinstance(sites, str):
        raise ValueError(f"Expected names of sites, but found a string, '{sites}'. Try sites=['{sites}'].")
    return frozenset(sites) if isinstance(sites, Iterable) else sites
