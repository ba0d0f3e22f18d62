"""Mix the probabilities of a program's discrete latents with the uniform distribution."""

import math
from collections.abc import Container
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..distributions.bits import StraightThroughBernoulli
from ..distributions.parameters import at_least_float32
from ..distributions.straight_through import StraightThroughOneHotCategorical
from ..runtime.compat.pyro import handlers_on_stack, is_random
from .chosen import EVERY_SITE, Sites, as_names
from .handled import DecoratorOrContext, HandledModule, handler_of
from .one_hot_messenger import OneHotMessenger, ProgramMessenger, innermost
from .sites import Discrete, Messages, Program, discrete


@overload
def unimix(program: nn.Module, *, share: float | Tensor, sites: Sites = EVERY_SITE) -> HandledModule: ...
@overload
def unimix(program: Program, *, share: float | Tensor, sites: Sites = EVERY_SITE) -> Program: ...
@overload
def unimix(program: None = None, *, share: float | Tensor, sites: Sites = EVERY_SITE) -> DecoratorOrContext: ...
def unimix(program: Program | None = None, *, share: float | Tensor, sites: Sites = EVERY_SITE) -> Any:
    r"""Mix the probabilities of each discrete latent of a program with the uniform distribution.

    .. math:: q(z_n = k) \; \to \; (1 - u) \, q(z_n = k) + u / K

    No category of a guide then has a probability below u / K, so its gradient does not vanish (Hafner et al. 2023,
    arXiv 2301.04104, take u = 0.01). In our experiments this did not keep training from settling on few categories;
    `revive` did. The ELBO is that of the mixed guide: let u end at 0, and evaluate the guide itself.

    This handler changes only the parameters of sites; other handlers decide what the sites are. Put it inside of
    `relax`, `straight_through`, `discretize` or `enumerated`, as in `relax(unimix(guide, share=0.01))`.

    Args:
        program: a guide, or a model, whose prior is then mixed; if None, the result is a decorator and context manager.
        share: u, from 0 to 1: a number, or a tensor of shape (), such as a buffer. A recorded step reads the tensor's
            current value.
        sites: the names of the sites to mix, all by default.

    Returns:
        The program with its discrete latents mixed.

    Raises:
        ValueError: if the share is not one number from 0 to 1. When the program runs, if a handler inside of this one
            has decided what a site is.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> @unimix(share=0.1)
        ... def guide():
        ...     return pyro.sample("z", dist.Categorical(probs=torch.tensor([1.0, 0.0])))
        >>> pyro.poutine.trace(guide).get_trace().nodes["z"]["fn"].probs
        tensor([0.9500, 0.0500])
    """
    check_share(share)
    return handler_of(partial(UnimixMessenger, share, as_names(sites)), program)


def check_share(share: float | Tensor) -> None:
    """Refuse a share of the uniform distribution that is not a single number from 0 to 1.

    Raises:
        ValueError: if it is not.
    """
    value = torch.as_tensor(share)
    if value.dim() > 0:
        raise ValueError(f"Expected one share for all data, shape (), but found shape {tuple(value.shape)}.")
    if not 0 <= value.item() <= 1:
        raise ValueError(f"Expected a share from 0 to 1, but found {value.item():g}. Try share=0.01.")


class UnimixMessenger(ProgramMessenger):
    """Mixes discrete latents, before a handler outside of it decides what they are."""

    def __init__(self, share: float | Tensor, on: Container[str] = EVERY_SITE) -> None:
        super().__init__()
        self.share = share
        self.on = on

    def _pyro_sample(self, msg: Messages) -> None:
        if msg["name"] not in self.on:
            return
        self._check_is_undecided(msg["name"])
        site = None if msg["is_observed"] or not is_random(msg) else discrete(msg["fn"])
        if site is not None and site.prior is not None:
            raise ValueError(
                f"Expected independent digits to mix with the uniform distribution, but found a prior that couples "
                f"those of '{msg['name']}'. Try unimix(guide, ..), or the names of other sites."
            )
        if site is not None:
            msg["fn"] = _rewritten(msg["fn"], site.with_logits(mixed(site.logits, self.share)))

    def _check_is_undecided(self, name: str) -> None:
        handlers = handlers_on_stack()
        inside = handlers[handlers.index(self) + 1 :]
        if any(isinstance(handler, OneHotMessenger) and name in handler.sites for handler in inside):
            raise ValueError(
                f"Expected unimix inside of the handler that decides what '{name}' is, but found it outside. Try "
                "relax(unimix(guide, share=..)), or another such handler in place of relax."
            )


def mixed(logits: Tensor, share: float | Tensor) -> Tensor:
    """Return log((1 - u) p + u / K) for p = softmax(logits) (..., K); for u = 0 the logarithm of p itself."""
    logits = at_least_float32(logits)
    log_probs = logits.log_softmax(-1).clamp_min(torch.finfo(logits.dtype).min)
    own = torch.as_tensor(share, dtype=logits.dtype, device=logits.device)
    return torch.logaddexp(log_probs + torch.log1p(-own), own.log() - math.log(logits.shape[-1]))


def _rewritten(fn: Any, site: Discrete) -> Any:
    """Return a distribution of the same kind as another, with the parameters of a site."""
    written = innermost(fn)
    codes = written.codes if isinstance(written, StraightThroughBernoulli) else written
    if isinstance(codes, StraightThroughOneHotCategorical):
        return site.straight_through(codes.kind, codes.temperature)
    return site.discrete() if site.temperature is None else site.relaxed(site.temperature)
