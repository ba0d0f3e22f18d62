"""The output of a command: text for people, and the same as JSON for programs."""

import json
from typing import Any, NamedTuple

from ..runs.files import plain


class Said(NamedTuple):
    """The output of a command.

    Args:
        text: the text to print.
        content: the same for `--json`: names, numbers, texts, paths, and lists and dictionaries of them.
    """

    text: str
    content: dict[str, Any]

    def as_json(self) -> str:
        """Return the content as indented JSON; numbers that are not finite become null.

        Example:
            >>> print(Said("one", {"elbo": float("nan")}).as_json())
            {
              "elbo": null
            }
        """
        return json.dumps(plain(self.content), indent=2, allow_nan=False)
