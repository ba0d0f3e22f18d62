"""Enumerate the joint codes of a pair with stock Pyro alone: the oracle for sums over codes."""

import itertools
from typing import Any, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pairs import DATA, PROGRAMS
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_gvae.exact import Pair


class Said(NamedTuple):
    """One joint code: the category of each latent, and log-densities by site, scaled and masked."""

    digits: dict[str, int]
    log_w: Tensor  # log q of the code, neither scaled nor masked
    log_q: dict[str, Tensor]
    log_p: dict[str, Tensor]


def sharp(name: str, factor: float = 3.0) -> Pair:
    """Return a pair of `pairs.PROGRAMS` with larger parameters, so that the KLs of its latents are not small."""
    pyro.clear_param_store()
    program = PROGRAMS[name]
    store = pyro.get_param_store()
    for half in (program.guide, program.model):
        poutine.trace(half).get_trace(DATA)
    for parameter in list(store.keys()):
        store[parameter] = factor * store[parameter].detach()
    return Pair(program.model, program.guide)


def values_of(fn: Any) -> list[Tensor]:
    """Return all values of a one-hot, a bit or an integer, in order."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    count = fn.event_shape[0] if fn.event_shape else 2 if isinstance(fn, torch.distributions.Bernoulli) else 0
    numbers = torch.arange(count or fn.logits.shape[-1])
    if fn.event_shape:
        return list(F.one_hot(numbers, count).double())
    return list(numbers.double() if count else numbers)


def is_discrete(fn: Any) -> bool:
    """Return whether a distribution is discrete, and therefore summed."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    kinds = torch.distributions.OneHotCategorical, torch.distributions.Bernoulli, torch.distributions.Categorical
    return isinstance(fn, kinds)


def latents_of(pair: Any, x: Tensor) -> dict[str, Any]:
    """Return the latents of the guide in order, as stock Pyro traces them."""
    nodes: dict[str, Any] = poutine.trace(pair.guide).get_trace(x).nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}


def every_code(pair: Any, x: Tensor) -> list[Said]:
    """Run both programs once for each joint code, the same for all data; draw continuous latents."""
    sites = latents_of(pair, x)
    values = {name: values_of(site["fn"]) for name, site in sites.items() if is_discrete(site["fn"])}
    found = []
    for choice in itertools.product(*(range(len(own)) for own in values.values())):
        digits = dict(zip(values, choice, strict=True))
        given = {name: values[name][own].expand(sites[name]["value"].shape) for name, own in digits.items()}
        guide = poutine.trace(poutine.condition(pair.guide, data=given)).get_trace(x)
        given |= {name: guide.nodes[name]["value"] for name in sites}
        model = poutine.trace(poutine.condition(pair.model, data=given)).get_trace(x)
        scores = []
        for trace in (guide, model):
            trace.compute_log_prob()
            own = {name: site for name, site in trace.nodes.items() if "log_prob" in site}
            scores.append({name: site["log_prob"] for name, site in own.items() if not site_is_subsample(site)})
        log_w = sum(guide.nodes[name]["unscaled_log_prob"] for name in digits)
        found.append(Said(digits, log_w, *scores))
    return found


def weights_of(said: list[Said]) -> Tensor:
    """Return q(z | x) of every code, (S, B)."""
    return torch.stack([one.log_w for one in said]).exp()


def expected(said: list[Said], values: list[Tensor]) -> Tensor:
    """Return E_q of values, one for each code, (B,); values that are the same for all codes keep their shape."""
    if all(torch.equal(value, values[0]) for value in values):
        return values[0]
    return sum(weight * value for weight, value in zip(weights_of(said), values, strict=True))


def kls(said: list[Said]) -> dict[str, Tensor]:
    """Return E_q[log q - log p] of each latent, (B,)."""
    ratios = {name: [one.log_q[name] - one.log_p[name] for one in said] for name in said[0].log_q}
    return {name: expected(said, own) for name, own in ratios.items()}
