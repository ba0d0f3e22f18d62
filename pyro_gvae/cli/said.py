"""What a command has to say: text for a person, and the same as JSON for a program."""

import json
from typing import Any, NamedTuple

from ..runs.files import plain


class Said(NamedTuple):
    """What a command has to say.

    Args:
        text: to print.
        content: the same for `--json`: names, numbers, texts, paths, and lists and dictionaries of them.
    """

    text: str
    content: dict[str, Any]

    def as_json(self) -> str:
        """Return the content as indented JSON; a number that is not finite is null.

        Example:
            >>> print(Said("one", {"elbo": float("nan")}).as_json())
            {
              "elbo": null
            }
        """
        return json.dumps(plain(self.content), indent=2, allow_nan=False)
