"""Errors that a command reports besides its result."""

from typing import final


@final
class CellsFailedError(Exception):
    """Some cells of a comparison failed; the others were finished.

    Attributes:
        said: what there is to say of the others.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said
