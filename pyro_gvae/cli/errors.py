"""Errors that a command reports in addition to its result."""

from typing import final


@final
class CellsFailedError(Exception):
    """Some cells of a comparison failed; the others finished.

    Attributes:
        report: the text to print about the others.
    """

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report
