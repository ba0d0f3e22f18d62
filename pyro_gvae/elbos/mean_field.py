"""Stock `TraceMeanField_ELBO`, with an error where its analytic KL terms would be wrong."""

from collections.abc import Mapping
from typing import Any, final

import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.inspect import get_dependencies

from ..handlers.discretize_messenger import DiscretizeMessenger
from ..handlers.one_hot_messenger import innermost
from ..handlers.sites import EVERY_SITE, Program, Sites
from ..programs.kept import Kept
from ..programs.modes import without_trace
from ..runtime.compat.pyro import is_random

Upstream = Mapping[str, set[str]]


@final
class MeanFieldELBO(TraceMeanField_ELBO):
    r"""The ELBO with the analytic KL of each latent, for pairs of programs for which it is valid.

    .. math:: \mathrm{E}_q \Big[\log p(x | z) - \sum_n \mathrm{KL}(q(z_n | z_{<n}, x) \,\|\, p(z_n | z_{<n}))\Big]

    The KL of a latent is taken given the drawn latents that its prior depends on, so these must not depend on it in the
    guide. They do if the model goes from the top down and the guide from the bottom up: the stock loss is then not an
    ELBO, and only warns. The order of statements does not matter, only their dependences.

    Raises:
        ValueError: when called, if a latent's prior depends on another latent that depends on it in the guide, or if a
            latent of the guide has no `rsample`.

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
        loss: float = super().loss(model, guide, *args, **kwargs)
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add gradients to `.grad` of the parameters."""
        self._check(model, guide, args, kwargs)
        loss: float = super().loss_and_grads(model, guide, *args, **kwargs)
        return loss

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Return the loss as a tensor."""
        self._check(model, guide, args, kwargs)
        return super().differentiable_loss(model, guide, *args, **kwargs)

    def _check(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def check() -> bool:
            _check_pathwise(guide, args, kwargs)
            check_analytic(model, guide, args, kwargs)
            return True

        # Dependences are the same for all sizes, and a recording of another batch size cannot contain a check.
        kinds = [type(value) for value in (*args, *kwargs.values())]
        self._checked.find((model, guide, kinds, list(kwargs)), (), {}, check)


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
        ValueError: if the prior of one of them depends on another latent that depends on it in the guide.
    """
    # Relaxed latents hide their dependences.
    with without_trace(), poutine.block(), DiscretizeMessenger():
        below = _upstream(get_dependencies(guide, args, kwargs))
        if not any(own - {name} for name, own in below.items()):
            return  # latents are independent in the guide: the model does not matter
        above = _upstream(get_dependencies(model, args, kwargs))
    for name in below:
        for other in above.get(name, set()) - {name}:
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


def _upstream(found: Any) -> Upstream:
    """Return for each site the sites that it depends on, directly or through others."""
    direct = {name: set(own) for name, own in found["prior_dependencies"].items()}
    while True:
        further = {name: own.union(*(direct.get(other, set()) for other in own)) for name, own in direct.items()}
        if further == direct:
            return direct
        direct = further
