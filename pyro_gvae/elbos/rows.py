"""The base of gradient estimators for a single latent, and the rows that a loss gives them.

Some latents y are summed: for each of their S joint codes, all other latents are drawn P times. A row is one code with
one draw, so there are R = S P rows. The cost of a row is

    w f,    w = q(y | ..),    f = log p(x, y, z, ..) - log q(y, z, .. | x),

where w is the probability of its code y given the latents that the guide declares before it. The ELBO is the sum of
costs over codes, averaged over draws. A latent z that is drawn before y has the same value in all rows that differ in y
alone. So the sum of costs over these rows is a function of z, and any estimator of the gradient of E[f(z)] that is
linear in f applies to it, with w f in place of f.
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

#: The most slices of changed rows: a recording contains the operations of every slice, and takes longer with each.
MOST_SLICES = 32


class SiteEstimate(NamedTuple):
    """The gradient of one latent's distribution.

    Attributes:
        surrogate: a scalar whose gradient is that of the costs, summed over rows and data.
        own_loss: a scalar whose gradient trains the estimator's own parameters; None if it has none.
    """

    surrogate: Tensor
    own_loss: Tensor | None = None


class SiteGradient(nn.Module):
    """Abstract base: an estimator of the gradient of one latent's distribution, however the others are treated.

    Attributes:
        sums_entropy: whether the latent's entropy, given earlier latents, is used in place of -log q of its codes.
    """

    sums_entropy = False

    def check(self, latent: Latent) -> None:
        """Refuse a latent that this estimator cannot handle."""

    @abstractmethod
    def forward(self, rows: "Rows", name: str) -> SiteEstimate:
        """Return the gradient of a latent."""

    def learn(self, mean: Tensor) -> None:
        """Update the estimator from the mean bound of a step."""


@final
class Rows:
    """The rows of a loss and their costs.

    Args:
        target: both programs.
        crossed: the codes that are summed, with P draws for each.
        entropic: latents whose entropy is used in place of -log q.
        arguments: the arguments of the programs.
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
        #: The terms with a pathwise derivative, times w: (R, B).
        self.paths = weighed(weights, self._terms(self.base, self.model, self.base.without_path).expand(self.shape))
        #: w f, (R, B), without a gradient.
        self.costs = weighed(weights, self._terms(self.base, self.model, entropic).expand(self.shape)).detach()

    @property
    def num_particles(self) -> int:
        """The number of draws for each code, P."""
        return self.crossed.num_particles

    def weights(self, drawn: Sample) -> Tensor:
        """Return the probability w of the summed codes, given the latents drawn before: (R or 1, B or 1)."""
        return self._log_weights(drawn).exp()

    def _log_weights(self, drawn: Sample) -> Tensor:
        layout = self.target.layout
        scores = [drawn.q.sites[name].score(drawn.codes) for name in drawn.codes if name in drawn.given]
        return sum(scores, torch.zeros(1, 1, dtype=layout.dtype, device=layout.device))

    def model_terms(self, drawn: Sample, model: Reading) -> Tensor:
        """Return log p, in which latents with a KL in closed form have -KL in place of their log-densities."""
        terms = model.log_prob(drawn.codes, self.analytic)
        for name in sorted(self.analytic):
            prior = model.factors[name]
            terms = terms - prior.weigh(kl_divergence(drawn.q.factors[name].fn, prior.fn))
        return terms

    def _terms(self, drawn: Sample, model: Reading, without: Collection[str]) -> Tensor:
        """Return log p - log q without the log q of some latents, plus the entropies: (R or 1, B or 1)."""
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
        """Return how many of this number of changed rows are run at once."""
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
        """Give all data and rows that share a latent's draw the value of the first: (.., R, B, N, ..)."""
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
