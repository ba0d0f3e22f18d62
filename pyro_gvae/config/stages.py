"""Parse the text of a training plan: stages of estimators, amounts of training, names with options; no torch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from .checks import nearest
from .names import PER_SITE, EstimatorName

Unit = Literal["epochs", "steps", "seconds"]
_UNITS: dict[str, Unit] = {"": "epochs", "epochs": "epochs", "steps": "steps", "s": "seconds"}
EXAMPLE = "gumbel-softmax:20,exact:3"
#: The largest amount (beyond it, floating-point numbers cannot count steps), and the longest text.
MOST, LONGEST = 1e15, 10_000


@dataclass(frozen=True)
class Amount:
    """An amount of training in epochs, steps or seconds.

    Example:
        >>> Amount.parse("20"), Amount.parse("500steps"), str(Amount.parse("60s"))
        (Amount(number=20, unit='epochs'), Amount(number=500, unit='steps'), '60s')
    """

    number: float
    unit: Unit

    @classmethod
    def parse(cls, text: str | float) -> "Amount":
        """Parse `20` (epochs), `500steps` or `60s`.

        Raises:
            ValueError: if the text has another form, or the number is not positive.
        """
        found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?) *(epochs|steps|s|)", str(text).strip())
        try:
            number = float(found[1]) if found else 0.0
        except ValueError:
            number = 0.0
        unit = _UNITS[found[2]] if found else "epochs"
        if not 0 < number <= MOST or (unit != "seconds" and number % 1):
            raise ValueError(f"Expected epochs, steps or seconds, but found '{text}'. Try '20', '500steps' or '60s'.")
        return cls(number if unit == "seconds" else int(number), unit)

    def __str__(self) -> str:
        return f"{self.number:g}s" if self.unit == "seconds" else f"{self.number}{self.unit}"

    def steps(self, per_epoch: int) -> int | None:
        """Convert to steps, given the steps per epoch; None if the amount is in seconds."""
        if self.unit == "seconds":
            return None
        return int(self.number) * (per_epoch if self.unit == "epochs" else 1)

    def is_over(self, steps: int, seconds: float, per_epoch: int) -> bool:
        """Tell whether the given steps or seconds reach this amount."""
        in_steps = self.steps(per_epoch)
        return seconds >= self.number if in_steps is None else steps >= in_steps


class Named(NamedTuple):
    """A name with options, such as `SGD[momentum=0.9]`."""

    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Named":
        """Parse `name` or `name[option=value,...]`; a value is a number, True, False, None, a word, or such a name.

        Raises:
            ValueError: if the text has another form.

        Example:
            >>> Named.parse("gumbel-softmax[kl=categorical,temperature=0.67]")
            Named(name='gumbel-softmax', options={'kl': 'categorical', 'temperature': 0.67})
            >>> Named.parse("per-site[y=exact,z=gumbel-softmax[kl=categorical]]").options
            {'y': 'exact', 'z': 'gumbel-softmax[kl=categorical]'}
        """
        found = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?", text.strip())
        options: dict[str, Any] = {}
        for part in filter(None, _split(found[2] or "")) if found else ():
            key, equals, value = (word.strip() for word in part.partition("="))
            is_key = all(word.isidentifier() for word in key.split("."))  # also the name of a site, such as layer.z
            if not (is_key and equals and value and value.count("[") == value.count("]")) or key in options:
                found = None
                break
            options[key] = _value(value)
        if found is None:
            raise ValueError(
                f"Expected a name or name[option=value,...], but found '{text}'. "
                "Try 'gumbel-softmax[kl=categorical,temperature=0.67]'."
            )
        return cls(found[1], options)

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}[{options}]" if options else self.name


class Stage(NamedTuple):
    """One stage of a training plan: an estimator with its options, and how long to train with it."""

    estimator: str
    options: dict[str, Any]
    amount: Amount

    def __str__(self) -> str:
        return f"{Named(self.estimator, self.options)}:{self.amount}"

    @property
    def parts(self) -> dict[str, Named]:
        """The estimator of each site, by the site's name; empty if there is one for all sites."""
        if self.estimator != PER_SITE:
            return {}
        return {site: Named.parse(str(part)) for site, part in self.options.items()}

    @property
    def estimators(self) -> tuple[Named, ...]:
        """The estimators of its sites, or its only one."""
        return tuple(self.parts.values()) or (Named(self.estimator, self.options),)

    def with_options(self, add: Callable[[Named], dict[str, Any]]) -> "Stage":
        """Return the stage with more options, which `add` chooses for its estimator, or for that of each site."""
        if self.estimator != PER_SITE:
            return self._replace(options=self.options | add(Named(self.estimator, self.options)))
        parts = {site: str(part._replace(options=part.options | add(part))) for site, part in self.parts.items()}
        return self._replace(options=parts)


def parse_stages(text: str, default: Amount | None = None) -> tuple[Stage, ...]:
    """Parse `estimator:amount,estimator[option=value,...]:amount,...`.

    Args:
        text: the stages; each estimator by its name in the registry, with options in brackets; each amount in epochs
            (`20`), steps (`500steps`) or seconds (`60s`). `per-site[y=exact,z=gumbel-softmax,default=reinforce-loo]`
            has an estimator for each discrete site.
        default: the amount of stages that are given without one; if None, every stage must have one.

    Returns:
        One or more stages, in order.

    Raises:
        ValueError: if the text has another form, or there is no such estimator.

    Example:
        >>> [(stage.estimator, str(stage.amount)) for stage in parse_stages("gumbel-softmax:20,exact:500steps")]
        [('gumbel-softmax', '20epochs'), ('exact', '500steps')]
        >>> ",".join(map(str, parse_stages("reinmax[temperature=1.3],exact:3", Amount.parse(20))))
        'reinmax[temperature=1.3]:20epochs,exact:3epochs'
    """
    if len(text) > LONGEST:
        raise ValueError(f"Expected stages in at most {LONGEST:,} letters, but found {len(text):,}.")
    return tuple(_stage(part, text, default) for part in _split(text))


def with_more(text: str, more: str) -> str:
    """Append further stages to those of a run.

    Args:
        text: the stages of the run.
        more: further stages, or only an amount, for the last estimator.

    Raises:
        ValueError: if these are not stages.

    Example:
        >>> with_more("gumbel-softmax:20", "exact:3"), with_more("exact[max_memory=1e9]:3", "60s")
        ('gumbel-softmax:20,exact:3epochs', 'exact[max_memory=1e9]:3,exact[max_memory=1000000000.0]:60s')
    """
    last = parse_stages(text)[-1]
    further = (last._replace(amount=Amount.parse(more)),) if more[:1].isdigit() else parse_stages(more)
    return ",".join([text, *map(str, further)])


def _split(text: str) -> list[str]:
    """Split a text at commas outside of brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _stage(part: str, text: str, default: Amount | None) -> Stage:
    named, colon, amount = part.rpartition(":")
    if not colon and default is not None:
        named, amount = part, str(default)
    elif not colon:
        raise ValueError(f"Expected stages as estimator:amount, but found '{part}' in '{text}'. Try '{EXAMPLE}'.")
    stage = Stage(*Named.parse(named), Amount.parse(amount))
    if stage.estimator == PER_SITE and not stage.options:
        raise ValueError(f"Expected estimators of sites, but found none in '{part}'. Try '{PER_SITE}[y=exact]'.")
    for one in stage.estimators:
        if one.name not in get_args(EstimatorName):
            names = get_args(EstimatorName)
            raise ValueError(
                f"Expected an estimator among {', '.join(names)}, but found '{one.name}'.{nearest(one.name, names)}"
            )
    return stage


def _value(text: str) -> Any:
    """Read a number, True, False or None; any other text stays text."""
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    for kind, form in ((int, r"[+-]?\d{1,18}"), (float, r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")):
        if re.fullmatch(form, text, re.IGNORECASE):
            return kind(text)
    return text
