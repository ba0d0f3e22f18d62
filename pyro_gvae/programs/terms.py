"""Log-probabilities of latents and other statements, with named axes, from a run on all values of all latents."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..distributions.codes import joint_codes
from ..distributions.lowered import log_prob
from ..distributions.parameters import at_least_float32
from ..handlers.sites import Discrete, Messages
from ..runtime.compat.torch import without_repeats
from .axes import Axis, Term, term_of
from .latents import Latent, flat, latent_of

#: Statements with fewer elements are scored directly, which is faster than checking for a matrix product.
SMALL = 2**14


class Site(NamedTuple):
    """A discrete latent: the log-probability of each of its S values."""

    latent: Latent
    variable: Axis
    log_probs: Term  # not masked
    masked: Term  # its part of log p or log q
    of_digits: Callable[[Tensor], Term]  # the same, with a weight (N,) for each digit


class Reading(NamedTuple):
    """A program's log-probabilities for all values of its discrete latents."""

    sites: dict[str, Site]
    others: dict[str, Term]  # by the name of the statement, masked
    weights: Mapping[str, Callable[[], Tensor]]  # of each statement: the sum over its plates of scale and mask, ()

    def detached(self) -> Self:
        """Return the same terms without gradients."""
        sites = {
            name: site._replace(log_probs=site.log_probs.detached(), masked=site.masked.detached())
            for name, site in self.sites.items()
        }
        return self._replace(sites=sites, others={name: term.detached() for name, term in self.others.items()})


def score(msg: Messages) -> Tensor:
    """Return the log-probability of a statement, by a matrix product where it is large."""
    fn = msg["fn"]
    is_small = fn.batch_shape.numel() * fn.event_shape.numel() < SMALL
    of = fn.log_prob if is_small else partial(log_prob, fn)
    scores: Tensor = of(msg["value"], *msg["args"], **msg["kwargs"])
    return scores


def weight_of(msg: Messages, mask: Any, like: Tensor) -> Tensor:
    """Return the sum over a statement's plates of its scale and mask: how much it counts in all."""
    plates = {frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.vectorized}
    shape = [plates.get(dim, 1) for dim in range(min(plates, default=0), 0)]
    weighed: Tensor = scale_and_mask(like.new_ones(shape), msg["scale"], mask)
    return weighed.sum()


def mask_of_site(found: Discrete, msg: Messages) -> Any:
    """Return the mask of a discrete latent: that of its distribution and that around it, combined."""
    masks = [mask for mask in (found.mask, msg["mask"]) if mask is not None]
    return masks[0] & masks[-1] if masks else None


def site_of(name: str, found: Discrete, msg: Messages, axes: Mapping[int, Axis], variable: Axis, nesting: int) -> Site:
    """Return the log-probabilities of a discrete latent, with the axis `variable` of its own values."""
    latent = latent_of(name, found)
    logits = flat(at_least_float32(found.logits), found)  # (*batch, N, K)
    digits = found.normalized(without_repeats(logits, logits.dim() - 2))
    found_mask = mask_of_site(found, msg)
    mask = None if found_mask is None else torch.as_tensor(found_mask, device=digits.device).unsqueeze(-1)

    def table(own: Tensor) -> Tensor:  # of all values, (*batch, S)
        if latent.num_latents == 1:
            return own.squeeze(-2)
        codes = joint_codes(latent.num_latents, latent.num_categories, dtype=own.dtype, device=own.device)
        return own.clamp_min(torch.finfo(own.dtype).min).flatten(-2) @ codes.flatten(1).T

    def term(values: Tensor) -> Term:
        return term_of(name, values, msg, axes, nesting, variable)

    def masked(values: Tensor) -> Term:
        return term(values if mask is None else scale_and_mask(values, 1.0, mask))

    values = table(digits)
    if found.prior is not None:
        values = values + found.prior.coupling(found.prior.all_codes())
    log_probs, lowest = term(values), torch.finfo(digits.dtype).min

    def of_digits(weights: Tensor) -> Term:
        if found.prior is not None:
            raise ValueError(
                f"Expected independent digits, because the KL of each is needed, but found those of '{name}', which a "
                "prior couples. Try free_bits=None, or a prior of independent digits."
            )
        return masked(table(digits.clamp_min(lowest) * weights.unsqueeze(-1)))

    return Site(
        latent,
        variable,
        log_probs,
        masked=log_probs if mask is None else masked(values),
        of_digits=of_digits,
    )
