"""Log-probabilities of a program's statements at given joint codes, each with the axes that it depends on."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Size, Tensor

from .cells import Cells
from .latents import READ_ALL, Roles, Space
from .site import Codes, Site


def add(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors, from the first to the last."""
    return functools.reduce(torch.add, terms)


def coupling_of(name: str) -> str:
    """Return the name of the factor that couples the digits of a latent of the model."""
    return f"{name}|coupling"


class Factor(NamedTuple):
    """The log-probability of any other statement, scaled and masked as in the program.

    Attributes:
        log_prob: (s, B) if it depends on the codes, else (1, B).
        own_shape: the batch shape of all discrete latents, with 1 where data share the statement.
        scales: as of a site.
        unscaled: returns the log-probability without its scale.
        unweighed: returns it neither scaled nor masked, nor divided among the data that share it.
        weigh: scales, masks and divides other values than the log-probability.
        fn: the distribution.
        value: what was drawn or observed.
        weight_depends: whether its scale or its mask depends on the codes.
    """

    log_prob: Tensor
    own_shape: Size
    scales: float | Tensor
    unscaled: Callable[[], Tensor]
    unweighed: Callable[[], Tensor]
    weigh: Callable[[Tensor], Tensor]
    fn: Any
    value: Tensor
    weight_depends: bool

    @property
    def is_scored(self) -> bool:
        """Whether a latent has no pathwise derivative, so that its draw needs a score."""
        return not self.fn.has_rsample


class Reading(NamedTuple):
    """A program's log-probabilities at given codes.

    Attributes:
        sites: its discrete latents, by name.
        factors: its other statements, by name.
        values: the values of its continuous latents, by name.
    """

    sites: dict[str, Site]
    factors: dict[str, Factor]
    values: dict[str, Tensor]

    def statements(self) -> list[Site | Factor]:
        """Return all sites and factors."""
        return [*self.sites.values(), *self.factors.values()]

    def rows(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each statement, and its log-probability of each code, (s or 1, ..)."""
        yield from ((name, site.log_probs) for name, site in self.sites.items())
        yield from ((name, factor.log_prob) for name, factor in self.factors.items())

    def dtypes(self) -> list[torch.dtype]:
        """Return the dtypes of all log-probabilities, and of scales that differ between data."""
        scales = [site.scale for site in self.sites.values() if isinstance(site.scale, Tensor) and site.scale.dim()]
        scores = [site.log_probs for site in self.sites.values()] + [one.log_prob for one in self.factors.values()]
        return [values.dtype for values in scores + scales]

    def score_of(self, name: str, codes: Codes) -> Tensor:
        """Return the log-probability (s, B or 1) of a discrete latent's codes in nats, neither scaled nor masked."""
        site = self.sites[name]
        own = site.score(codes)
        return own if site.prior is None else own + self.factors[coupling_of(name)].unweighed()

    def others(self) -> dict[str, Factor]:
        """Return the factors that are not part of a discrete latent's log-probability."""
        couplings = {coupling_of(name) for name in self.sites}
        return {name: factor for name, factor in self.factors.items() if name not in couplings}

    def log_prob(self, codes: Codes, without: Collection[str] = ()) -> Tensor:
        """Return the log-probability (s or 1, B or 1) of codes and all other statements, scaled and masked.

        Args:
            codes: codes (s, B, N, K) of the discrete latents.
            without: names of statements to leave out.
        """
        parts = [factor.log_prob for name, factor in self.factors.items() if name not in without]
        parts += [site.weigh(site.score(codes)) for name, site in self.sites.items() if name not in without]
        return add(parts) if parts else torch.zeros(1, 1)

    def detached(self) -> Self:
        """Return the same log-probabilities without gradients."""
        sites = {name: site._replace(log_probs=site.log_probs.detach()) for name, site in self.sites.items()}
        factors = {name: factor._replace(log_prob=factor.log_prob.detach()) for name, factor in self.factors.items()}
        return self._replace(sites=sites, factors=factors)

    def at(self, rows: Tensor) -> Self:
        """Select rows (r,), possibly repeated, of everything that depends on the codes."""
        return self._replace(
            sites={name: site.at(rows) for name, site in self.sites.items()},
            factors={
                name: factor._replace(log_prob=factor.log_prob.index_select(0, rows))
                if len(factor.log_prob) > 1
                else factor
                for name, factor in self.factors.items()
            },
        )

    @classmethod
    def stacked(cls, readings: Sequence["Reading"]) -> "Reading":
        """Concatenate readings of one row each, as if all rows had been read at once.

        A statement that the program makes only with some codes adds nothing to the log-probability of others.
        """
        first = readings[0]
        known = {name: factor for reading in reversed(readings) for name, factor in reading.factors.items()}

        def stack(name: str, factor: Factor) -> Factor:
            each = [reading.factors.get(name) for reading in readings]

            def rows(of: Callable[[Factor], Tensor]) -> Tensor:
                found = [None if one is None else of(one) for one in each]
                like = next(own for own in found if own is not None)
                return torch.cat([torch.zeros_like(like) if own is None else own for own in found])

            return factor._replace(
                log_prob=rows(lambda one: one.log_prob),
                unscaled=lambda: rows(lambda one: one.unscaled()),
                unweighed=lambda: rows(lambda one: one.unweighed()),
            )

        return cls(
            sites={name: Site.stacked([reading.sites[name] for reading in readings]) for name in first.sites},
            factors={name: stack(name, factor) for name, factor in known.items()},
            values=first.values,
        )

    @property
    def depends(self) -> bool:
        """Whether any log-probability depends on codes, apart from those of a site's own codes."""
        return any(site.depends for site in self.sites.values()) or any(
            len(factor.log_prob) > 1 for factor in self.factors.values()
        )


class Level(NamedTuple):
    """Discrete latents that the same data share.

    Attributes:
        names: the names of the latents.
        num_codes: the number of their joint codes.
        shape: the batch shape of all discrete latents, with 1 where data share these.
    """

    names: tuple[str, ...]
    num_codes: int
    shape: Size

    def holds(self, shape: Size) -> bool:
        """Return whether another such shape is this one with some dimensions set to 1: its cells contain those here."""
        return all(other in (1, own) for own, other in zip(self.shape, shape, strict=True))

    def spread(self, values: Tensor, inner: Self) -> Tensor:
        """Give each cell of an inner level the value of the cell that contains it: (s, cells) -> (s, inner cells)."""
        return values.reshape(-1, *self.shape).expand(-1, *inner.shape).reshape(len(values), -1)


class Layout(NamedTuple):
    """The latents and plates of a pair, found by a few small runs.

    Attributes:
        space: the discrete latents, those that more data share first, otherwise in the order of the model.
        levels: the same, grouped by the data that share them, the most shared first; one level if none is shared.
        site_shapes: the sizes of the batch dimensions that each discrete latent has.
        nesting: the number of batch dimensions that plates take.
        cells: where the cells of all discrete latents lie.
        plates: names of the plates that a discrete latent is in.
        sizes: the sizes of all batch dimensions and plates.
        obstacle: why the programs do not accept codes in an additional dimension, or None if they do.
        guide_depends: whether the guide's probabilities of one latent depend on the codes of another.
        has_continuous: whether the guide has continuous latents.
        roles: which latents are read or scored.
        labels: the discrete statements that the model observes.
        analytic: other latents whose KL is in closed form.
    """

    space: Space
    levels: tuple[Level, ...]
    site_shapes: dict[str, Size]
    nesting: int
    cells: Cells
    plates: frozenset[str]
    sizes: frozenset[int]
    dtype: torch.dtype
    device: torch.device
    obstacle: str | None
    guide_depends: bool
    has_continuous: bool
    roles: Roles = READ_ALL
    labels: frozenset[str] = frozenset()
    analytic: frozenset[str] = frozenset()

    @property
    def batch_shape(self) -> Size:
        """The batch shape of all discrete latents together: the number of cells along each dimension."""
        return self.cells.shape

    @property
    def batch_size(self) -> int:
        """B."""
        return self.batch_shape.numel()

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """The batch shape of all discrete latents, with the batch dimensions of all plates."""
        return (1,) * (self.nesting - len(self.batch_shape)) + tuple(self.batch_shape)

    @property
    def evidence_shape(self) -> Size:
        """The shape of log p(x): one number for each cell of the latents that most data share."""
        return min(self.site_shapes.values(), key=len, default=self.batch_shape)

    @property
    def is_shared(self) -> bool:
        """Whether several data share a discrete latent."""
        return len(self.levels) > 1

    def widened(self, values: Tensor) -> Tensor:
        """Convert log-probabilities to the dtype of sums, if it is wider than theirs."""
        return values.to(torch.promote_types(values.dtype, self.dtype))

    def few(self) -> tuple[int, int]:
        """Return two small numbers of codes that no plate has as its size, so that pairing codes with data fails."""
        numbers = (number for number in itertools.chain((3, 5), itertools.count(6)) if number not in self.sizes)
        return next(numbers), next(numbers)

    def some_codes(self, count: int) -> dict[str, Tensor]:
        """Return a few codes (count, N, K) of each latent: the first, mixed ones, the last. K^N may be of any size."""
        found, before = {}, 0
        rows = torch.arange(count, device=self.device).unsqueeze(-1)
        for latent in self.space.latents:
            # Without writing in place, so that a recording can drop what a guide does not use.
            places = torch.arange(before, before + latent.num_latents, device=self.device)
            mixed = (rows + places) % latent.num_categories  # (count, N)
            digits = torch.where(rows == 0, 0, torch.where(rows == count - 1, latent.num_categories - 1, mixed))
            before += latent.num_latents
            found[latent.name] = torch.eye(latent.num_categories, dtype=self.dtype, device=self.device)[digits]
        return found
