"""One-hot sites: what they have in common, whichever distribution wrote them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import (
    Independent,
    MaskedDistribution,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
    TorchDistribution,
)
from torch import Tensor

from ..distributions.joint import joint_one_hot
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..distributions.straight_through import StraightThroughOneHotCategorical
from ..runtime.compat.pyro import mask_of

Program = Callable[..., Any]
Messages = Any  # Pyro's messages are dictionaries that handlers edit in place.


class OneHotSite(NamedTuple):
    """The contents of a one-hot site, whichever distribution wrote it."""

    logits: Tensor  # (..., K), or (..., N, K) where the site has N latents
    num_event_dims: int  # 1 or 2
    temperature: Tensor | None  # of a relaxed or straight-through site
    mask: bool | Tensor | None
    dtype: torch.dtype  # of its samples

    def distribution(self, kind: Callable[[Tensor], TorchDistribution]) -> TorchDistribution:
        """Return `kind(logits)` with the site's event dimensions and mask."""
        found = kind(self.logits)
        found = found.to_event(self.num_event_dims - len(found.event_shape))
        return found if self.mask is None else found.mask(self.mask)

    @property
    def event_shape(self) -> torch.Size:
        """The event shape, (K,) or (N, K)."""
        return self.logits.shape[-self.num_event_dims :]

    @property
    def code_shape(self) -> tuple[int, int]:
        """The shape (N, K) of a code, with N = 1 if the event shape is (K,)."""
        num_latents, num_categories = (1, *self.event_shape)[-2:]
        return num_latents, num_categories

    def code_logits(self) -> Tensor:
        """Return log p of each joint code, shape (..., S); 0 if the site is masked, which weighs all codes alike."""
        batch_shape = self.logits.shape[: -self.num_event_dims]
        factorized = FactorizedOneHotCategorical(logits=self.logits.reshape(*batch_shape, *self.code_shape))
        logits = factorized.log_prob_table().T.reshape(*batch_shape, -1)  # (..., S)
        if self.mask is None:
            return logits
        return torch.where(torch.as_tensor(self.mask, device=logits.device).unsqueeze(-1), logits, 0.0)

    def joint(self) -> TorchDistribution:
        """Return the site as exact one-hots of a class that Pyro can turn into a posterior over joint codes."""
        if self.num_event_dims == 1:
            return OneHotCategorical(logits=self.code_logits().to(self.dtype))
        return joint_one_hot(*self.code_shape, self.dtype)(logits=self.code_logits())

    def discrete(self) -> TorchDistribution:
        """Return the site as exact one-hots. N latents are one random variable, whose joint codes can be enumerated."""
        one_site = FactorizedOneHotCategorical if self.num_event_dims == 2 else OneHotCategorical
        return self.distribution(lambda logits: one_site(logits=logits.to(self.dtype)))


def one_hot_site(fn: Any) -> OneHotSite | None:
    """Read logits, temperature and mask of a one-hot distribution, relaxed or not; return None for any other.

    Raises:
        ValueError: if it is a straight-through one-hot of Pyro's, whose gradient depends on a hidden attribute of its
            samples, or if it masks some of its latents.
    """
    if isinstance(fn, OneHotCategoricalStraightThrough | RelaxedOneHotCategoricalStraightThrough):
        raise ValueError(
            f"Expected one-hot sites that are relaxed or discrete, but found a {type(fn).__name__}, which is both. Try "
            "OneHotCategorical, and straight_through(program)."
        )
    if isinstance(fn, MaskedDistribution):
        inner = one_hot_site(fn.base_dist)
        mask = mask_of(fn)
        return inner and inner._replace(mask=mask if inner.mask is None else inner.mask & mask)
    if isinstance(fn, Independent):
        inner = one_hot_site(fn.base_dist)
        if inner and isinstance(inner.mask, Tensor):
            raise ValueError(
                "Expected a mask over data, but found one over the latents of a one-hot site. Try .mask() after "
                ".to_event(1)."
            )
        return inner and inner._replace(num_event_dims=inner.num_event_dims + fn.reinterpreted_batch_ndims)
    if isinstance(fn, FactorizedOneHotCategorical):
        return OneHotSite(fn.logits, 2, None, None, fn.sample_dtype)
    if isinstance(fn, StraightThroughOneHotCategorical):
        return OneHotSite(fn.logits, 1, fn.temperature, None, fn.sample_dtype)
    if isinstance(fn, torch.distributions.RelaxedOneHotCategorical):
        return OneHotSite(fn.logits, 1, fn.temperature, None, getattr(fn, "sample_dtype", fn.logits.dtype))
    if isinstance(fn, torch.distributions.OneHotCategorical):
        return OneHotSite(fn.logits, 1, None, None, fn.logits.dtype)
    return None


def at_temperature(temperature: Tensor) -> Any:
    """Return the settings that give a discrete site its temperature: `pyro.sample("z", .., infer=...)`."""
    return {"temperature": temperature}  # Any: the type of Pyro's settings has no such key


def plates_of(msg: Messages) -> frozenset[str]:
    """Return the names of the vectorized plates around a site."""
    return frozenset(frame.name for frame in msg["cond_indep_stack"] if frame.vectorized)


#: A program with its data bound.
Run = Callable[[], Any]
