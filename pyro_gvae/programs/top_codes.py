"""The most probable joint codes of a guide, found digit by digit, and samples of all others.

The probability of a datum's joint code under the guide is a product, as long as no latent that has to be drawn stands
between its discrete latents. Latents that data share are drawn first, and so are continuous latents that the guide
declares before all codes: the probabilities of joint codes are conditional on these. Latents that are declared later,
and may depend on codes, are drawn for each code.
"""

from typing import final

import torch
from torch import Tensor

from ..distributions.best_codes import Best, add_exits, draw_exits, draw_others, extend, no_digits, no_exits
from .factors import Layout
from .latents import Latent
from .noise import independent
from .runs import Runs
from .samples import Given, Sample, sample
from .values import value_of_codes


@final
class TopCodes:
    """The joint codes of each datum, given each of G rows of a sample from the guide.

    Datum b with row g is case (g, b), of G B cases in all. The code of a case is written as the digits of its latents,
    one after another.

    Attributes:
        names: the latents whose joint codes have a probability, in the order of the guide.
        kept: latents that depend on none of these, and keep the sample's values.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        base: the sample, (G, B).
    """

    def __init__(self, runs: Runs, layout: Layout, base: Sample) -> None:
        self.runs = runs
        self.layout = layout
        self.base = base
        self.names, self.kept = _names(layout, base)
        self._latents = [base.q.sites[name].latent for name in self.names]

    @property
    def num_rows(self) -> int:
        """G."""
        return len(next(iter(self.base.values.values()))) if self.base.values else 1

    @property
    def num_codes(self) -> int:
        """The number of joint codes of a case."""
        total = 1
        for latent in self._latents:
            total *= latent.num_codes
        return total

    @property
    def num_categories(self) -> list[int]:
        """K of each digit of a code."""
        return [latent.num_categories for latent in self._latents for _ in range(latent.num_latents)]

    @property
    def drawn(self) -> frozenset[str]:
        """Latents that are drawn for each code."""
        return frozenset(self.base.values) - self.kept - frozenset(self.names)

    @torch.no_grad()
    def most_probable(self, count: int) -> Best:
        """Return the C most probable codes of each case, or all if there are fewer.

        If the probabilities of a latent depend on the codes of others, this is a beam search (see
        `distributions.best_codes`).
        """
        best = no_digits(self.num_rows * self.layout.batch_size, self.layout.device)
        for i in range(len(self.names)):
            best = extend(best, self._log_probs(i, best.digits), count)
        return best

    @torch.no_grad()
    def others(self, best: Best, count: int) -> Tensor:
        """Draw codes of each case from the guide, given that they are not among the best: (count, G B, n) digits."""
        exits, begun = no_exits(best), 0
        for i, latent in enumerate(self._latents):
            exits = add_exits(exits, best, self._log_probs(i, best.digits[..., :begun]))
            begun += latent.num_latents
        leaving = draw_exits(exits, count)
        digits = best.digits.new_zeros(count, best.digits.shape[1], 0)
        for i, taken in enumerate(exits.taken):
            digits = draw_others(digits, best, leaving, taken, self._log_probs(i, digits))
        return digits

    def sample(self, digits: Tensor) -> Sample:
        """Return values of all latents for given codes of each case, (R, G B, n) digits.

        Latents of the base sample that depend on no code are kept, and the others are drawn. Rows are ordered by those
        of the base: (G R, B).
        """
        codes = self.codes(digits)
        rows = torch.arange(self.num_rows, device=digits.device).repeat_interleave(len(digits))  # (G R,)
        base = self.base
        if not self.layout.guide_depends:  # nothing is drawn again
            values = {
                latent.name: value_of_codes(self.layout, latent, base.values[latent.name], codes[latent.name])
                for latent in self._latents
            }
            return Sample(
                codes={name: codes[name] if name in codes else own[rows] for name, own in base.codes.items()},
                values={name: values[name] if name in values else own[rows] for name, own in base.values.items()},
                noise={},
                scored=base.scored,
                q=base.q.at(rows),
            )
        found = sample(
            self.runs,
            self.layout,
            len(rows),
            independent,
            given=Given(
                codes | {name: own[rows] for name, own in base.codes.items() if name in self.kept},
                {name: base.values[name][rows] for name in self.kept - base.codes.keys()},
            ),
        )
        return found._replace(scored=found.scored | (base.scored & self.kept))

    def codes(self, digits: Tensor) -> dict[str, Tensor]:
        """Return digits (R, G B, n) of the first latents as one-hots (G R, B, N, K) of all; others have digits 0."""
        number = sum(latent.num_latents for latent in self._latents)
        missing = digits.new_zeros(*digits.shape[:2], number - digits.shape[-1])
        batch_size = self.layout.batch_size
        rows = torch.cat([digits, missing], -1).reshape(len(digits), self.num_rows, batch_size, number)
        rows = rows.movedim(1, 0).reshape(len(digits) * self.num_rows, batch_size, number)  # (G R, B, n)
        parts = rows.split([latent.num_latents for latent in self._latents], -1)
        return {latent.name: self._one_hots(latent, part) for latent, part in zip(self._latents, parts, strict=True)}

    def by_case(self, values: Tensor) -> Tensor:
        """Rearrange values of the rows of a sample, (G R, B), by the codes of each case: (R, G B)."""
        rows = values.reshape(self.num_rows, -1, self.layout.batch_size).movedim(1, 0)
        return rows.reshape(len(rows), -1)

    def _log_probs(self, i: int, digits: Tensor) -> Tensor:
        """Return log q of a latent given digits (R, G B, n) of those before, (R or 1, G B, N, K)."""
        name, cases = self.names[i], self.num_rows * self.layout.batch_size
        if i == 0 or not self.base.q.sites[name].depends:
            log_probs = self.base.q.sites[name].rows()
            return log_probs.expand(self.num_rows, -1, -1, -1).reshape(1, cases, *log_probs.shape[-2:])
        log_probs = self.sample(digits).q.sites[name].rows()  # (G R, B, N, K)
        log_probs = log_probs.reshape(self.num_rows, len(digits), *log_probs.shape[1:])
        return log_probs.movedim(1, 0).reshape(len(digits), cases, *log_probs.shape[-2:])

    def _one_hots(self, latent: Latent, digits: Tensor) -> Tensor:
        categories = torch.arange(latent.num_categories, device=digits.device)
        return (digits.unsqueeze(-1) == categories).to(self.base.codes[latent.name].dtype)


def _names(layout: Layout, base: Sample) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the latents whose joint codes have a probability, and the latents that depend on none of these codes.

    A continuous latent declared after a code may depend on it. A code declared after such a latent may depend on that
    latent in turn, and has no probability before it is drawn.
    """
    names: list[str] = []
    kept: set[str] = set()
    are_drawn = False
    for name in base.values:
        if name in base.codes:
            site = base.q.sites[name]
            if site.own_shape != layout.batch_shape:
                kept.add(name)  # data share it
            elif not (site.depends and are_drawn):
                names.append(name)
        elif layout.guide_depends and names and base.q.factors[name].own_shape == layout.batch_shape:
            are_drawn = True
        else:
            kept.add(name)
    return tuple(names), frozenset(kept)
