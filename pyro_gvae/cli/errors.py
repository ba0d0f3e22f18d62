"""An error that a command reports in addition to its result."""

from typing import final

from .said import Said


@final
class PartlyFailedError(Exception):
    """A command ran to its end, but not all of its work succeeded: cells failed, or training diverged.

    Attributes:
        report: the output of the work that was done.
    """

    def __init__(self, message: str, report: Said) -> None:
        super().__init__(message)
        self.report = report
