"""Stock `TraceMeanField_ELBO`, with an error where its analytic KL terms would be wrong."""

from collections.abc import Mapping
from typing import Any, final

import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution, TransformedDistribution
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..handlers.chosen import EVERY_SITE, Sites
from ..handlers.discretize_messenger import DiscretizeMessenger
from ..handlers.one_hot_messenger import innermost
from ..handlers.sites import Messages, Program
from ..handlers.upstream import direct_upstream
from ..programs.kept import Kept
from ..programs.modes import without_trace
from ..runtime.compat.pyro import is_random, mask_of

Upstream = Mapping[str, frozenset[str]]


@final
class MeanFieldELBO(TraceMeanField_ELBO):
    r"""The ELBO with the analytic KL of each latent, for pairs of programs for which it is valid.

    .. math:: \mathrm{E}_q \Big[\log p(x | z) - \sum_n \mathrm{KL}(q(z_n | z_{<n}, x) \,\|\, p(z_n | z_{<n}))\Big]

    The KL of a latent is taken given the drawn latents that its prior depends on, so these must not depend on it in the
    guide. They do if the model goes from the top down and the guide from the bottom up: the stock loss is then not an
    ELBO, and only warns. The order of statements does not matter, only their dependences.

    A value that an autoguide computes, as that of a positive latent, is a `Delta` with a density, which Pyro's KL of
    `Delta` leaves out. Its KL is sampled: log q - log p of the value.

    Raises:
        ValueError: when called, if a latent's prior depends on another latent that depends on it in the guide, if a
            latent of the guide has no `rsample`, or if model and guide scale or mask a latent differently, which no
            KL does.

    Example:
        >>> from pyro_gvae import CategoricalVAE, relax
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> MeanFieldELBO().loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    def __init__(self, *, num_particles: int = 1, vectorize_particles: bool = False) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self._checked: Kept[bool] = Kept()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""
        self._check(model, guide, args, kwargs)
        loss: float = super().loss(model, _without_closed_deltas(guide), *args, **kwargs)
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add gradients to `.grad` of the parameters."""
        self._check(model, guide, args, kwargs)
        loss: float = super().loss_and_grads(model, _without_closed_deltas(guide), *args, **kwargs)
        return loss

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Return the loss as a tensor."""
        self._check(model, guide, args, kwargs)
        return super().differentiable_loss(model, _without_closed_deltas(guide), *args, **kwargs)

    def _check(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def check() -> bool:
            _check_pathwise(guide, args, kwargs)
            check_analytic(model, guide, args, kwargs)
            return True

        # Dependences are the same for all sizes, and a recording of another batch size cannot contain a check.
        kinds = [type(value) for value in (*args, *kwargs.values())]
        self._checked.find((model, guide, kinds, list(kwargs)), (), {}, check)


@final
class _SampledDeltas(Messenger):
    """Wraps each `Delta` in a distribution with the same values and density, whose KL is in no closed form."""

    def _pyro_sample(self, msg: Messages) -> None:
        if isinstance(innermost(msg["fn"]), Delta):
            msg["fn"] = TransformedDistribution(msg["fn"], [])


def _without_closed_deltas(guide: Program) -> Program:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _SampledDeltas():
            return guide(*args, **kwargs)

    return run


@torch.no_grad()
def check_analytic(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites = EVERY_SITE
) -> None:
    """Refuse latents whose analytic KL is not a term of the ELBO.

    Args:
        model: the model.
        guide: the guide.
        args: arguments of both.
        kwargs: keyword arguments of both.
        sites: the latents whose KL is analytic.

    Raises:
        ValueError: if the prior of one of them depends on another latent that depends on it in the guide, or if model
            and guide scale or mask one differently.
    """
    _check_weights(model, guide, args, kwargs, sites)
    with without_trace():
        below = _upstream(direct_upstream(guide, args, kwargs))
        if not any(own - {name} for name, own in below.items()):
            return  # latents are independent in the guide: the model does not matter
        above = _upstream(direct_upstream(model, args, kwargs))
    for name in below:
        for other in above.get(name, frozenset()) - {name}:
            if name in sites and name in below.get(other, ()):
                raise ValueError(
                    f"Expected a prior of '{name}' that depends on no latent below it in the guide, but found "
                    f"that it depends on '{other}', which depends on '{name}' in the guide: the analytic KL of "
                    f"'{name}' is then no term of the ELBO. Try the sampled KL (kl=\"sampled\" or "
                    'kl="relaxed"), or Trace_ELBO.'
                )


@torch.no_grad()
def _check_pathwise(guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse latents without `rsample`: this loss has no score terms, so their draws would have no gradient."""
    with without_trace(), poutine.block():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    nodes: Any = trace.nodes
    for name, msg in nodes.items():
        if msg["type"] == "sample" and is_random(msg) and not msg["is_observed"] and not msg["fn"].has_rsample:
            raise ValueError(
                f"Expected reparameterized latents in the guide, but found '{name}', a "
                f"{type(innermost(msg['fn'])).__name__} without rsample: its gradient needs a score term, which a loss "
                'with analytic KL terms lacks. Try the sampled KL (kl="sampled" or kl="relaxed"), whose loss has one.'
            )


def _check_weights(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites) -> None:
    """Refuse latents that model and guide scale or mask differently: a KL has one weight."""
    with without_trace(), poutine.block(), DiscretizeMessenger():
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        nodes: Any = poutine.trace(poutine.replay(model, drawn)).get_trace(*args, **kwargs).nodes
    for name, own in drawn.nodes.items():
        if own["type"] == "sample" and is_random(own) and name in sites and name in nodes:
            for what, weight in {"scale": _scale_of, "mask": _mask_of}.items():
                one, other = weight(own).float(), weight(nodes[name]).float()
                if ((one - other).abs() > 1e-6 * one.abs()).any():
                    raise ValueError(
                        f"Expected model and guide to {what} '{name}' alike, since its analytic KL has one {what}, but "
                        f'found several. Try poutine.{what} around both, or the sampled KL (kl="sampled" or '
                        'kl="relaxed").'
                    )


def _scale_of(msg: Messages) -> Tensor:
    return torch.as_tensor(msg["scale"])


def _mask_of(msg: Messages) -> Tensor:
    """Return the mask of a statement: that around it and those over events in its distribution, combined."""
    found, fn = torch.as_tensor(True if msg["mask"] is None else msg["mask"]), msg["fn"]
    while isinstance(fn, MaskedDistribution | ExpandedDistribution):
        found = found & mask_of(fn) if isinstance(fn, MaskedDistribution) else found
        fn = fn.base_dist
    return found


def _upstream(direct: Upstream) -> Upstream:
    """Return for each site the sites that it depends on, directly or through others."""
    while True:
        further = {name: own.union(*(direct.get(other, frozenset()) for other in own)) for name, own in direct.items()}
        if further == direct:
            return direct
        direct = further
