"""Compute marginals, most probable codes and samples as derivatives of a sum over latents that have an axis each.

The derivative of log p(x) with respect to the log-probability of a latent's value is the posterior probability of that
value. If maxima replace the sums of probabilities, the derivative is 1 at the most probable values and 0 elsewhere; if
each sum passes its derivative to one value drawn at random, the derivative is 1 at a sample of the posterior.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..distributions.codes import joint_codes
from ..distributions.parameters import gumbel_like
from ..programs.axes import Axis, Term
from ..programs.chains import Chains
from ..programs.latents import Latent
from ..programs.runs import Runs
from ..programs.shared import scale_along
from ..programs.terms import Reading
from .elimination import LogSum, collected, log_sum_exp, log_summed

#: The axis of samples, between latents and plates.
_SAMPLES = Axis(True, -(10**6), "samples")


class Best(NamedTuple):
    """The most probable joint code of all latents."""

    codes: dict[str, Tensor]  # (*plates, N, K) of each latent, by its name
    probs: Tensor  # p(z | x) of this code, for each cell of the shared plates


def marginals(runs: Runs, chains: Chains) -> dict[str, Tensor]:
    """Return p(z_n = k | x) of each latent, (*plates, N, K) by its name."""
    return _codes(chains, _derivatives(chains.read(runs).p, chains, log_sum_exp).chosen)


def best(runs: Runs, chains: Chains) -> Best:
    """Return the most probable joint code, by the Viterbi algorithm."""
    p = chains.read(runs).p
    found = _derivatives(p, chains, _highest)
    evidence = _not_scaled(log_summed(p.others.values(), p.sites.values(), chains), chains)
    return Best(_codes(chains, found.chosen), (found.value - evidence).exp())


def samples(runs: Runs, chains: Chains, num_samples: int) -> dict[str, Tensor]:
    """Return independent samples of the posterior as one-hots, (P, *plates, N, K) of each latent, by its name."""
    return _codes(chains, _derivatives(chains.read(runs).p, chains, _drawn, num_samples).chosen)


def best_given(runs: Runs, chains: Chains, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the most probable codes of the latents that the guide lacks, given values of the other latents."""
    p = chains.read_given(runs.model, values)
    return _codes(chains, _derivatives(p, chains, _highest).chosen)


def sample_given(runs: Runs, chains: Chains, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw codes of the latents that the guide lacks, given values of the other latents."""
    p = chains.read_given(runs.model, values)
    return _codes(chains, _derivatives(p, chains, _drawn).chosen)


class _Derivatives(NamedTuple):
    value: Tensor  # the value of the sum, in the shape of results
    chosen: dict[str, Tensor]  # (P or nothing, *plates, S) of each latent


def _derivatives(p: Reading, chains: Chains, log_sum: LogSum, num_samples: int | None = None) -> _Derivatives:
    rows = [] if num_samples is None else [num_samples]
    with torch.enable_grad():
        changes = {}
        for name, site in p.sites.items():
            plates = [axis for axis in chains.plates[name] if chains.sizes[axis] > 1]
            sizes = [site.latent.num_codes, *rows, *(chains.sizes[axis] for axis in plates)]
            values = site.log_probs.values.new_zeros(sizes).requires_grad_()
            axes = (site.variable, *([_SAMPLES] if rows else []), *plates)
            changes[name] = Term(values, axes, site.log_probs.plates, scale_along(site.log_probs, axes))
        left = log_summed([*p.others.values(), *changes.values()], p.sites.values(), chains, log_sum)
        total = torch.stack([term.values.sum() for term in left]).sum()
        found = torch.autograd.grad(total, [term.values for term in changes.values()])
    chosen = {name: in_plates(grad, name, chains, rows) for name, grad in zip(changes, found, strict=True)}
    value = total.new_zeros(()) if rows else _not_scaled(left, chains)
    return _Derivatives(value.detach(), chosen)


def _not_scaled(terms: Iterable[Term], chains: Chains) -> Tensor:
    return collected([term._replace(scale=1.0) for term in terms], chains)


def in_plates(values: Tensor, name: str, chains: Chains, rows: Sequence[int] = ()) -> Tensor:
    """Reshape numbers (S, ..), one for each value of a latent, to the dimensions of its plates: (*rows, *plates, S)."""
    sizes = [*rows, *(chains.sizes[axis] for axis in chains.plates[name]), len(values)]
    return values.movedim(0, -1).reshape(sizes)


def in_digits(values: Tensor, latent: Latent) -> Tensor:
    """Return the sum of the codes (.., N, K) of a latent's values, weighted by numbers (.., S)."""
    codes = joint_codes(latent.num_latents, latent.num_categories, dtype=values.dtype, device=values.device)
    return (values @ codes.flatten(1)).unflatten(-1, Size([latent.num_latents, latent.num_categories]))


def _codes(chains: Chains, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return codes (.., N, K) of each latent, in the order of the model, from numbers (.., S) for its values."""
    return {name: in_digits(chosen[name], latent) for name, latent in chains.latents.items() if name in chosen}


def _highest(values: Tensor, dim: int) -> Tensor:
    found: Tensor = values.clamp_min(torch.finfo(values.dtype).min).max(dim).values
    return found


def _drawn(values: Tensor, dim: int) -> Tensor:
    """Sum probabilities, but pass the derivative to a single value, drawn in proportion to them."""
    values = values.clamp_min(torch.finfo(values.dtype).min)
    with torch.no_grad():
        where = (values + gumbel_like(values, values.shape)).argmax(dim, keepdim=True)
    one = values.gather(dim, where).squeeze(dim)
    return values.detach().logsumexp(dim) + (one - one.detach())
