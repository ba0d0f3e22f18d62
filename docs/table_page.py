"""Make the HTML tables of what works with what, from the data of the tests that check every cell."""

import re
from html import escape
from string import ascii_uppercase

from kinds import BECOMES, Refused, as_written
from table import COLUMNS, PROGRAMS, REASONS, Cell, cell

SIGNS = {
    Cell.EXACT: "●",
    Cell.UNBIASED: "○",
    Cell.SURROGATE: "◐",
    Cell.BIASED: "△",
}
LETTERS = dict(zip(REASONS, "abcdefghijklmnopqrstuvwxyz", strict=False))
HANDLERS = ("relax", "straight_through", "discretize", "enumerated")


def programs() -> str:
    """Return the list of program letters and names."""
    return "<ol class='cells'>" + "".join(f"<li>{escape(name)}</li>" for name in PROGRAMS) + "</ol>"


def estimators() -> str:
    """Return a table with a row for each estimator and a column for each program, and a legend of the signs."""
    found = {(column, program): cell(column, program) for column in COLUMNS for program in PROGRAMS}
    rows = []
    for column in COLUMNS:
        cells = "".join(
            f"<td title='{escape(program)}: {kind.value}'>{SIGNS.get(kind, '') or LETTERS[reason]}</td>"
            for program in PROGRAMS
            for kind, reason in [found[column, program]]
        )
        rows.append(f"<tr>{_row_head(column)}{cells}</tr>")
    kinds = {kind for kind, _ in found.values()}
    signs = "".join(f"<li>{sign} {kind.value}</li>" for kind, sign in SIGNS.items() if kind in kinds)
    given = {reason for _, reason in found.values()}
    reasons = "".join(f"<li>{LETTERS[reason]}: {escape(reason.because)}</li>" for reason in REASONS if reason in given)
    head = _head("estimator", *ascii_uppercase[: len(PROGRAMS)])
    return f"<table class='cells'>{head}<tbody>{''.join(rows)}</tbody></table><ul class='cells'>{signs}{reasons}</ul>"


def objectives() -> str:
    """Return a table of what each estimator estimates, and of its bias."""
    rows = ""
    for name, column in COLUMNS.items():
        made = column.make()
        rows += f"<tr>{_row_head(name)}<td>{escape(made.approximates)}</td><td>{made.bias.value}</td></tr>"
    return f"<table class='cells words'>{_head('estimator', 'estimates', 'bias')}<tbody>{rows}</tbody></table>"


def sites() -> str:
    """Return a table with a row for each kind of site and a column for each handler, and the reasons for refusals."""
    reasons: list[Refused] = []
    rows = ""
    for kind, row in BECOMES.items():
        rows += f"<tr>{_row_head(as_written(kind))}"
        for handler in HANDLERS:
            value = getattr(row, handler)
            if isinstance(value, Refused):
                reasons += [value] * (value not in reasons)
                text = "abc"[reasons.index(value)]
            else:
                text = f"{value} codes" if handler == "enumerated" else _breakable(value)
            rows += f"<td>{text}</td>"
        rows += "</tr>"
    refusals = "".join(f"<li>{'abc'[i]}: {escape(reason.sentence)}</li>" for i, reason in enumerate(reasons))
    table = f"<table class='cells words'>{_head('site', *HANDLERS)}<tbody>{rows}</tbody></table>"
    return f"{table}<ul class='cells'>{refusals}</ul>"


def _head(*names: str) -> str:
    return "<thead><tr>" + "".join(f"<th scope='col'>{_breakable(name)}</th>" for name in names) + "</tr></thead>"


def _row_head(name: str) -> str:
    return f"<th scope='row'>{_breakable(name)}</th>"


def _breakable(name: str) -> str:
    """Return a name that browsers may break between its words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z.\[])|(?<=[-_.])", "<wbr>", escape(name))
