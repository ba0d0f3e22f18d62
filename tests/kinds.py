"""The table of handlers and kinds of discrete latents: the effect of each handler on each kind.

`tests/handlers/test_sites.py` tests every cell, and `docs/table_page.py` shows the table in the documents.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_gvae.distributions.bits import FactorizedBernoulli, StraightThroughBernoulli
from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.distributions.straight_through import StraightThroughOneHotCategorical

N, K = 2, 3
HALF = torch.tensor(0.5)
#: Kind of site -> its distribution from logits (..., K); a bit takes one of them as its log-odds.
SITES: dict[str, Callable[[Tensor], Any]] = {
    "one-hot": lambda logits: dist.OneHotCategorical(logits=logits),
    "one-hots": lambda logits: dist.OneHotCategorical(logits=logits.expand(N, K)).to_event(1),
    "relaxed": lambda logits: dist.RelaxedOneHotCategorical(HALF, logits=logits),
    "relaxed one-hots": lambda logits: dist.RelaxedOneHotCategorical(HALF, logits=logits.expand(N, K)).to_event(1),
    "straight-through": lambda logits: StraightThroughOneHotCategorical(0.5, logits=logits),
    "factorized": lambda logits: FactorizedOneHotCategorical(logits=logits.expand(N, K)),
    "bit": lambda logits: dist.Bernoulli(logits=logits[0]),
    "bits": lambda logits: dist.Bernoulli(logits=logits).to_event(1),
    "bits of two dimensions": lambda logits: dist.Bernoulli(logits=logits.expand(N, K)).to_event(2),
    "masked bits": lambda logits: dist.Bernoulli(logits=logits).to_event(1).mask(True),
    "relaxed bit": lambda logits: dist.RelaxedBernoulli(HALF, logits=logits[0]),
    "relaxed bits": lambda logits: dist.RelaxedBernoulli(HALF, logits=logits).to_event(1),
    "factorized bits": lambda logits: FactorizedBernoulli(logits=logits),
    "straight-through bit": lambda logits: StraightThroughBernoulli(0.5, logits=logits[0]),
    "integer": lambda logits: dist.Categorical(logits=logits),
    "integers": lambda logits: dist.Categorical(logits=logits.expand(N, K)).to_event(1),
    "count": lambda logits: dist.Binomial(K - 1, logits=logits[0]),
    "both at once": lambda logits: dist.RelaxedBernoulliStraightThrough(HALF, logits=logits[0]),
}


class Refused(NamedTuple):
    """A cell that is refused, with a pattern of the message."""

    sentence: str


class Row(NamedTuple):
    """The distribution that each handler gives to a kind, and the number of enumerated codes."""

    relax: str | Refused
    straight_through: str | Refused
    discretize: str | Refused
    enumerated: int | Refused


INTEGER = Refused("an integer has no relaxation. Try OneHotCategorical")
VECTOR = Refused("stock Pyro does not enumerate a vector of integers")
BOTH = Refused("which is both. Try Bernoulli")


def _one_hots(exact: str, num_codes: int) -> Row:
    return Row("RelaxedOneHotCategorical", "StraightThroughOneHotCategorical", exact, num_codes)


def _bits(exact: str, num_codes: int) -> Row:
    return Row("RelaxedBernoulli", "StraightThroughBernoulli", exact, num_codes)


BECOMES = {
    "one-hot": _one_hots("OneHotCategorical", 3),
    "one-hots": _one_hots("FactorizedOneHotCategorical", 9),
    "relaxed": _one_hots("OneHotCategorical", 3),
    "relaxed one-hots": _one_hots("FactorizedOneHotCategorical", 9),
    "straight-through": _one_hots("OneHotCategorical", 3),
    "factorized": _one_hots("FactorizedOneHotCategorical", 9),
    "bit": _bits("Bernoulli", 2),
    "bits": _bits("FactorizedBernoulli", 8),
    "bits of two dimensions": _bits("FactorizedBernoulli", 64),
    "masked bits": _bits("FactorizedBernoulli", 8),
    "relaxed bit": _bits("Bernoulli", 2),
    "relaxed bits": _bits("FactorizedBernoulli", 8),
    "factorized bits": _bits("FactorizedBernoulli", 8),
    "straight-through bit": _bits("Bernoulli", 2),
    "integer": Row(INTEGER, INTEGER, "Categorical", 3),
    "integers": Row(INTEGER, INTEGER, "Categorical", VECTOR),
    "count": Row(INTEGER, INTEGER, "Counts", 3),
    "both at once": Row(BOTH, BOTH, BOTH, BOTH),
}


def family_of(fn: Any) -> str:
    """Return the class of a distribution, without event dimensions and masks."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return type(fn).__name__


def as_written(kind: str) -> str:
    """Say how a program writes a kind of site."""
    fn = SITES[kind](torch.zeros(K))
    event_dim, mask = 0, ""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        if isinstance(fn, dist.Independent):
            event_dim += fn.reinterpreted_batch_ndims
        else:
            mask = ".mask(..)"
        fn = fn.base_dist
    return type(fn).__name__ + (f".to_event({event_dim})" if event_dim else "") + mask
