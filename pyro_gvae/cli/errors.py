"""Errors that a command reports in addition to its result."""

from typing import final


@final
class PartlyFailedError(Exception):
    """A command came to its end, but not all of its work succeeded: cells failed, or training diverged.

    Attributes:
        report: the text to print about what was done.
    """

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report
