"""Errors that a command reports in addition to its result."""

from typing import final

from .said import Said


@final
class PartlyFailedError(Exception):
    """A command came to its end, but not all of its work succeeded: cells failed, or training diverged.

    Attributes:
        report: what to print about what was done.
    """

    def __init__(self, message: str, report: Said) -> None:
        super().__init__(message)
        self.report = report
