"""What one latent's gradient needs of a loss in which other latents are treated in other ways.

Some latents are summed: each of their S joint codes has P draws of all others. A row is one code with one draw, R = S P
rows in all, and its cost is

    w f,    w = q(y | ..),    f = log p(x, y, z, ..) - log q(y, z, .. | x),

w the probability of its codes y, given what the guide declares before them. The ELBO is the mean over draws of the sum
of costs over codes. A draw z that comes before a code is the same in all rows that differ in that code alone. So for
each latent z that is drawn, the costs of rows are one function of its value, summed over rows, and any estimator of the
gradient of E[f(z)] applies to it that is linear in f, with w f in place of f.
"""

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ..exact.expectation import finite
from ..programs.crossed import Crossed
from ..programs.factors import Reading
from ..programs.latents import Latent
from ..programs.noise import by_gumbel_noise, largest
from ..programs.samples import Change, Sample
from ..programs.target import Target
from ..runtime.tuning import tuning

#: Most slices of changed rows: a recording holds the operations of every slice, and takes longer with each.
MOST_SLICES = 32


class SiteEstimate(NamedTuple):
    """The gradient of one latent's distribution.

    Attributes:
        surrogate: a scalar whose gradient is that of the costs, summed over rows and data.
        own_loss: a scalar whose gradient trains what the estimator learns itself; None if it learns nothing.
    """

    surrogate: Tensor
    own_loss: Tensor | None = None


class SiteGradient(nn.Module):
    """Abstract base: an estimator of the gradient of one latent's distribution, whatever happens to the others.

    Attributes:
        sums_entropy: whether the entropy of the latent, given those before, is summed in place of -log q of its codes.
    """

    sums_entropy = False

    def check(self, latent: Latent) -> None:
        """Refuse a latent that this estimator is not for."""

    @abstractmethod
    def forward(self, rows: "Rows", name: str) -> SiteEstimate:
        """Return the gradient of a latent."""

    def learn(self, mean: Tensor) -> None:
        """Take note of the mean bound of a step."""


@final
class Rows:
    """The rows of a loss, and what they cost.

    Args:
        target: both programs.
        crossed: the codes that are summed, with P draws of each.
        entropic: latents whose entropy is summed.
        arguments: of the programs.
    """

    def __init__(
        self,
        target: Target,
        crossed: Crossed,
        entropic: frozenset[str],
        arguments: tuple[Any, ...],
    ) -> None:
        self.target = target
        self.crossed = crossed
        self.entropic = entropic
        self.analytic = target.layout.analytic
        self.arguments = arguments
        self.shape = crossed.num_rows, target.layout.batch_size
        self.base = target.drawn(crossed.num_rows, by_gumbel_noise, crossed.given())
        self.model = target.read(self.base.values)
        self.log_weights = self._log_weights(self.base).expand(self.shape)
        weights = self.log_weights.detach().exp()
        #: What has a pathwise derivative, weighed: (R, B).
        self.paths = weighed(weights, self._terms(self.base, self.model, self.base.without_path).expand(self.shape))
        #: w f, (R, B), without a gradient.
        self.costs = weighed(weights, self._terms(self.base, self.model, entropic).expand(self.shape)).detach()

    @property
    def num_particles(self) -> int:
        """P."""
        return self.crossed.num_particles

    def weights(self, drawn: Sample) -> Tensor:
        """Return the probability w of the codes that are summed, given what was drawn before: (R or 1, B or 1)."""
        return self._log_weights(drawn).exp()

    def _log_weights(self, drawn: Sample) -> Tensor:
        layout = self.target.layout
        scores = [drawn.q.sites[name].score(drawn.codes) for name in drawn.codes if name in drawn.given]
        return sum(scores, torch.zeros(1, 1, dtype=layout.dtype, device=layout.device))

    def model_terms(self, drawn: Sample, model: Reading) -> Tensor:
        """Return log p, with minus the KLs that are in closed form in place of the log-densities of their latents."""
        terms = model.log_prob(drawn.codes, self.analytic)
        for name in sorted(self.analytic):
            prior = model.factors[name]
            terms = terms - prior.weigh(kl_divergence(drawn.q.factors[name].fn, prior.fn))
        return terms

    def _terms(self, drawn: Sample, model: Reading, without: Collection[str]) -> Tensor:
        """Return log p - log q without that of some latents, with the entropies that are summed: (R or 1, B or 1)."""
        entropies = [drawn.q.sites[name].entropy() for name in sorted(self.entropic & drawn.q.sites.keys())]
        log_q = drawn.q.log_prob(drawn.codes, {*without, *self.analytic})
        return sum(entropies, self.model_terms(drawn, model) - log_q)

    def costs_of(self, name: str, codes: Tensor) -> Tensor:
        """Return the costs (m, R, B) of m other codes (m, R, B, N, K) of a latent, slice by slice, without a graph."""
        count, num_rows = codes.shape[:2]
        numbers = torch.arange(num_rows, device=codes.device).repeat(count)
        size = self.slice_size(count * num_rows)
        parts = zip(codes.flatten(0, 1).split(size), numbers.split(size), strict=True)
        found = [self.costs_of_change(Change(name, part, rows)) for part, rows in parts]
        return torch.cat(found).unflatten(0, (count, num_rows))

    def slice_size(self, number: int) -> int:
        """Return how many changed rows, of so many, are run at once."""
        return max(tuning(self.costs.device).decoded_rows // self.shape[1], -(-number // MOST_SLICES), 1)

    @torch.no_grad()
    def costs_of_change(self, change: Change) -> Tensor:
        """Return the costs (m, B) of the m rows of a change, without a graph."""
        drawn = self.target.changed(self.base, change, largest)
        terms = self._terms(drawn, self.target.read(drawn.values), self.entropic)
        return weighed(self.weights(drawn), terms).expand(len(change.codes), self.shape[1])

    def above_others(self, values: Tensor) -> Tensor:
        """Subtract from values (R, ...) the mean of the other draws for the same code."""
        return self.crossed.above_others(values)

    def mean(self, values: Tensor) -> Tensor:
        """Return the sum of values (R, ...) over codes, and the mean over draws."""
        return values.sum(0) / self.num_particles

    def shared(self, name: str, values: Tensor) -> Tensor:
        """Give data and rows that share a latent's draw the value of the first of them: (.., R, B, N, ..)."""
        site, layout = self.base.q.sites[name], self.target.layout
        cells = values.movedim(-3, 0)  # (B, ...)
        cells = cells.reshape(*layout.batch_shape, *cells.shape[1:])
        cells = cells[tuple(slice(size) for size in site.own_shape)]
        cells = cells.expand(*layout.batch_shape, *cells.shape[len(layout.batch_shape) :])
        spread = cells.reshape(layout.batch_size, *cells.shape[len(layout.batch_shape) :]).movedim(0, -3)
        return spread.index_select(-4, self._sources(name))

    def uniform(self, name: str) -> Tensor:
        """Return a uniform number for each digit and category of a latent's draw: (R, B, N, K)."""
        return self.shared(name, torch.rand_like(self.base.codes[name]))

    def by_cell(self, name: str, values: Tensor) -> Tensor:
        """Sum values (R, B, N, K) over the data and the rows that share a latent's draw: one number for each draw."""
        cells = self.base.q.sites[name].by_cell(values)
        return torch.zeros_like(cells).index_add(0, self._sources(name), cells)

    def _sources(self, name: str) -> Tensor:
        order = list(self.base.values)
        return self.crossed.sources([other for other in order[: order.index(name)] if other in self.base.given])


def weighed(weights: Tensor, terms: Tensor) -> Tensor:
    """Multiply terms by weights; a code of weight 0 may be impossible, and must add 0, not NaN."""
    return torch.where(weights > 0, weights * finite(terms), 0.0)
