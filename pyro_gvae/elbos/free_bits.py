"""Free bits: an ELBO that does not push the KL of a latent below a threshold."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, final

import torch
from pyro.distributions import Delta
from torch import Tensor
from typing_extensions import override

from ..exact.averages import Averages
from ..handlers.one_hot_messenger import innermost
from ..programs.chains import lay_out_chains
from ..programs.draws import lay_out_draws, read_draws
from ..programs.kls import LatentKL, closed_kls, closed_sites, drawn_kls, summed_kls
from ..programs.latents import TooManyCodesError, first_value
from ..programs.layout import lay_out
from ..programs.look import Look, any_draw, look
from ..programs.modes import without_trace
from ..programs.provenance import Provenance
from ..programs.runs import Runs
from ..programs.statements import Reader
from .exact import ExactEvidence
from .mixture import WakeMixture
from .penalized import PenalizedELBO, Penalty, fits_one_slice
from .wake import ExactWake

#: Computes the KL of each latent.
Way = Callable[[Runs], dict[str, LatentKL]]
#: Draws per datum if there are too many codes to sum over.
NUM_PARTICLES = 8


@final
class FreeBits(PenalizedELBO):
    r"""Another ELBO, in which the KL of each latent counts only where it exceeds a threshold.

    .. math::

        \mathrm{loss} = -\sum_b \mathrm{E}_{q(z|x_b)}[\log p(x_b|z)] + B \sum_n \max(\lambda_n, \mathrm{KL}_n),
        \quad \mathrm{KL}_n = \frac{1}{B} \sum_b \mathrm{E}_{q(z|x_b)}
        \Big[\log \frac{q(z_n | z'_n, x_b)}{p(z_n | z''_n)}\Big]

    (Kingma et al. 2016, arXiv 1606.04934, with each latent as a group of its own.) The latents n are the digits of
    discrete latents, and each continuous latent as a whole; z'_n and z''_n are the latents that z_n depends on in the
    guide and in the model. If these are the same, KL_n is the expected conditional KL; if there are none, it is
    KL(q(z_n|x_b) || p(z_n)). No latent gains by carrying less than lambda nats, averaged over the batch, so latents do
    not collapse to the prior early in training. The negative loss is at most the ELBO and *is no longer the ELBO*:
    evaluate the model without free bits.

    The term added to the other loss is B sum_n max(lambda_n - KL_n, 0). KL_n is in closed form if the latents do not
    depend on each other. Otherwise it is summed over all joint codes if these fit into one slice of memory, with a
    pathwise draw of continuous latents, or else estimated from 8 draws; by Jensen's inequality, the maximum of an
    estimate is too large on average. Latents inside of `pyro.markov` are summed one after another. So are latents that
    the guide lacks: each is one group, as if the guide had its exact posterior given the latents that it has. If the
    other loss samples its KL, gradients below the threshold cancel only on average. If its KL is the relaxed one of
    Concrete densities, they do not cancel, because that is a different KL. Scale and mask of the guide's sites apply to
    this KL too: masked data do not count, a latent that data share counts once, and under `weigh_kl` a latent costs
    beta max(lambda, KL_n). Latents that an autoguide computes from one auxiliary draw have one KL and the sum of their
    thresholds.

    Args:
        elbo: the loss to add the term to: any loss of Pyro or of this package that has a KL.
        nats: lambda, in nats per latent: one number for all, or one for each name; 0 for latents that are not named.

    Raises:
        ValueError: if a threshold is negative or not finite, or the loss has no KL; when called, if there is no latent
            of a given name.

    Example:
        >>> from pyro_gvae import CategoricalVAE, ExactELBO, discretize
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> model, guide = discretize(vae.model), discretize(vae.guide)
        >>> FreeBits(ExactELBO(), nats=0.0).loss(model, guide, x) == ExactELBO().loss(model, guide, x)
        True
        >>> FreeBits(ExactELBO(), nats=0.5).loss(model, guide, x) > ExactELBO().loss(model, guide, x)
        True
    """

    def __init__(self, elbo: Any, nats: float | Mapping[str, float]) -> None:
        super().__init__(elbo)
        for value in nats.values() if isinstance(nats, Mapping) else (nats,):
            if not 0 <= value < float("inf"):
                raise ValueError(f"Expected a finite number of free nats of at least 0, but found {value:g}.")
        if isinstance(elbo, ExactEvidence | ExactWake | WakeMixture):
            raise ValueError("Expected a loss with a KL to leave free, but found the log-evidence. Try ExactELBO.")
        self.nats = dict(nats) if isinstance(nats, Mapping) else float(nats)

    @override
    def plan_penalty(self, runs: Runs) -> Penalty:
        """Choose how KLs are computed; the penalty is the sum of B max(lambda - KL_n, 0) over all latents."""
        seen = look(runs)
        way, labels, computed = _find(runs, seen), frozenset(seen.labels), _computed(runs, seen)
        return lambda bound: self._of(way(bound), labels, computed)

    def _of(self, kls: dict[str, LatentKL], labels: frozenset[str], computed: "_Computed") -> Tensor:
        self._check_names([name for name in kls if name not in computed.auxiliary], labels)
        terms = []
        for names in computed.together(kls):
            value, weight = functools.reduce(torch.add, [kls[name].value for name in names]), kls[names[0]].weight
            threshold = sum(self._threshold(name) for name in names if name not in computed.auxiliary)
            mean = value / weight.clamp_min(torch.finfo(value.dtype).tiny)  # a weight of 0 is allowed
            terms.append(weight * (threshold - mean).clamp_min(0).sum())
        return functools.reduce(torch.add, terms) if terms else torch.zeros(())

    def _check_names(self, known: Iterable[str], labels: frozenset[str]) -> None:
        """Refuse names of no latent; a latent that this batch observes may be latent in another batch."""
        names = [] if isinstance(self.nats, float) else self.nats.keys() - labels
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"Expected free nats of the latents {', '.join(known)}, but found '{unknown[0]}'. Try one number for "
                "all of them."
            )

    def _threshold(self, name: str) -> float:
        return self.nats if isinstance(self.nats, float) else self.nats.get(name, 0.0)


class _Computed(NamedTuple):
    """Auxiliary draws of a guide, and the latents that it computes from them, as autoguides do."""

    auxiliary: frozenset[str]
    groups: list[frozenset[str]]  # of draws and latents

    def together(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Yield names in groups that have one KL; none of a draw from which nothing is computed."""
        known = self.auxiliary.union(*self.groups)
        yield from ([name] for name in names if name not in known)
        yield from ([name for name in names if name in group] for group in self.groups)


def _computed(runs: Runs, seen: Look) -> _Computed:
    """Find the latents of a guide whose values are computed from auxiliary draws."""
    auxiliary = frozenset(seen.guide.continuous().keys() - seen.model.messages.keys())
    if not auxiliary:
        return _Computed(auxiliary, [])
    reader, provenance = Reader(first_value, any_draw(seen.given), seen.roles.read), Provenance()
    with torch.no_grad(), without_trace(), reader, provenance:
        runs.again().guide()
    groups: list[frozenset[str]] = []
    for name, msg in reader.continuous().items():
        fn = innermost(msg["fn"])
        draws = provenance.of(fn.v) & auxiliary if isinstance(fn, Delta) else frozenset()
        if draws:
            group = draws | {name}
            others = [other for other in groups if not other & group]
            groups = [*others, group.union(*(other for other in groups if other & group))]
    return _Computed(auxiliary, groups)


def _find(runs: Runs, seen: Look) -> Way:
    """Choose how the KLs of a pair are computed."""
    if seen.needs_axes:
        try:
            chains = lay_out_chains(runs, seen)
            return lambda runs: Averages.read(runs, chains).kls_of_digits()
        except TooManyCodesError:
            if seen.alone:
                raise  # latents of the model alone cannot be drawn
    layout, with_particles, probed = lay_out(runs, seen=seen), lay_out_draws(runs), runs.again()
    with torch.no_grad(), without_trace():
        if not layout.has_continuous:
            names = {latent.name for latent in layout.space.latents}
            if [set(sites) for sites in closed_sites(probed, layout)] == [names, names]:
                return partial(closed_kls, layout=layout)
        can_be_summed = (
            fits_one_slice(probed, layout) and not read_draws(probed, with_particles, with_particles.few()[0]).scored
        )
    if can_be_summed:
        return partial(summed_kls, layout=layout)
    return partial(drawn_kls, layout=with_particles, num_particles=NUM_PARTICLES)
