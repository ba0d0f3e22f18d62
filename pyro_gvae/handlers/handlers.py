"""Effect handlers that choose the distribution of a Pyro program's discrete latents, or weight its latent sites.

A program is written once, with latents that are one-hots (`OneHotCategorical`, `OneHotCategorical(...).to_event(1)`,
`RelaxedOneHotCategorical`, `FactorizedOneHotCategorical`), bits (`Bernoulli`, `Bernoulli(...).to_event(n)`,
`RelaxedBernoulli`) or integers (`Categorical`). A bit is the second component of a one-hot of two categories. An
integer has no relaxation: `relax` and `straight_through` refuse it. If handlers are nested, the outermost decides:
`discretize(relax(program))` is discrete. A handled module is a module with the same parameters. A handled program can
be copied and pickled if the program can.
"""

from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..distributions.parameters import check_temperature
from ..distributions.surrogates import Kind, find_kind
from .chosen import EVERY_SITE, Sites, as_names
from .discretize_messenger import DiscretizeMessenger
from .enumerate_messenger import EnumeratedMessenger
from .handled import DecoratorOrContext, HandledModule, handler_of
from .relax_messenger import RelaxMessenger
from .sites import Program
from .straight_through_messenger import StraightThroughMessenger
from .weigh_kl_messenger import WeighKLMessenger

Temperature = float | Tensor | None


@overload
def relax(
    program: nn.Module, *, temperature: Temperature = None, otherwise: Temperature = None, sites: Sites = EVERY_SITE
) -> HandledModule: ...
@overload
def relax(
    program: Program, *, temperature: Temperature = None, otherwise: Temperature = None, sites: Sites = EVERY_SITE
) -> Program: ...
@overload
def relax(
    program: None = None, *, temperature: Temperature = None, otherwise: Temperature = None, sites: Sites = EVERY_SITE
) -> DecoratorOrContext: ...
def relax(
    program: Program | None = None,
    *,
    temperature: Temperature = None,
    otherwise: Temperature = None,
    sites: Sites = EVERY_SITE,
) -> Any:
    """Replace each latent one-hot or bit of a program by a Concrete (Gumbel-Softmax) sample with a pathwise gradient.

    A site "z" is sampled and scored in log space, as the auxiliary site "z_log", which does not underflow at any
    temperature; "z" = exp("z_log"), or its second component for bits, is a deterministic site. Relax both model and
    guide, at different temperatures if you like. They then train with stock `Trace_ELBO` (the relaxed bound: Maddison
    et al. 2017, arXiv 1611.00712) or `TraceMeanField_ELBO` (the categorical KL: Jang et al. 2017, arXiv 1611.01144;
    with soft samples this is not a bound).

    Args:
        program: a model or guide; if None, the result is a decorator and context manager.
        temperature: t > 0 for all sites. None keeps each site's own: that of its relaxed distribution, or for a
            discrete site the one in its settings, `pyro.sample(.., infer={"temperature": t})`.
        otherwise: t of sites without a temperature of their own, if `temperature` is None.
        sites: the names of the sites to relax, all by default. Others are left to other handlers. If several handlers
            act on a site, the outermost decides.

    Returns:
        The relaxed program.

    Raises:
        ValueError: if the temperature is not one positive number. When the program runs, if a site has no temperature,
            or is an integer `Categorical`, or if it has no discrete latent of a given name.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> @relax(temperature=0.5)
        ... def model():
        ...     return pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
        >>> bool(model().max() < 1)
        True
    """
    for given in (temperature, otherwise):
        if given is not None:
            check_temperature(given)
    return handler_of(partial(RelaxMessenger, temperature, as_names(sites), otherwise), program)


@overload
def straight_through(
    program: nn.Module, *, kind: str | Kind = ..., temperature: Temperature = None, sites: Sites = EVERY_SITE
) -> HandledModule: ...
@overload
def straight_through(
    program: Program, *, kind: str | Kind = ..., temperature: Temperature = None, sites: Sites = EVERY_SITE
) -> Program: ...
@overload
def straight_through(
    program: None = None, *, kind: str | Kind = ..., temperature: Temperature = None, sites: Sites = EVERY_SITE
) -> DecoratorOrContext: ...
def straight_through(
    program: Program | None = None,
    *,
    kind: str | Kind = "st-gumbel-softmax",
    temperature: Temperature = None,
    sites: Sites = EVERY_SITE,
) -> Any:
    """Draw each latent one-hot or bit of a program exactly, and give it a surrogate gradient.

    Sites become :class:`StraightThroughOneHotCategorical` or `StraightThroughBernoulli`: values are one-hots or bits,
    and are scored by the categorical or the Bernoulli. So `Trace_ELBO` and `TraceMeanField_ELBO` estimate the discrete
    ELBO without bias, and their gradients have the bias of the surrogate. Handle both model and guide, so that
    gradients through z also reach the prior's score.

    Args:
        program: a model or guide; if None, the result is a decorator and context manager.
        kind: "straight-through", "st-gumbel-softmax", "decoupled-st-gumbel-softmax", "gumbel-rao",
            "gapped-straight-through", "reinmax" or "reinmax-rao"; a kind of `distributions.surrogates` with options,
            such as `GumbelRao(num_draws=10)`; or your own function of logits (..., K) and temperature () that returns
            one-hots.
        temperature: t > 0 of the surrogate, for all sites; None keeps that of each site, as in :func:`relax`.
        sites: the names of the sites to replace, all by default, as in :func:`relax`.

    Returns:
        The straight-through program.

    Raises:
        ValueError: if the kind is unknown, or the temperature is not one positive number. When the program runs, if a
            site has no temperature, or is an integer `Categorical`, or if it has no discrete latent of a given name.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> @straight_through(kind="reinmax", temperature=1.3)
        ... def guide():
        ...     return pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3, requires_grad=True)))
        >>> z = guide()
        >>> z.max().item(), z.requires_grad
        (1.0, True)
    """
    if temperature is not None:
        check_temperature(temperature)
    return handler_of(partial(StraightThroughMessenger, find_kind(kind), temperature, as_names(sites)), program)


@overload
def discretize(program: nn.Module, *, sites: Sites = EVERY_SITE) -> HandledModule: ...
@overload
def discretize(program: Program, *, sites: Sites = EVERY_SITE) -> Program: ...
@overload
def discretize(program: None = None, *, sites: Sites = EVERY_SITE) -> DecoratorOrContext: ...
def discretize(program: Program | None = None, *, sites: Sites = EVERY_SITE) -> Any:
    """Draw each discrete latent of a program exactly: relaxed sites become one-hots or bits with the same logits.

    An `OneHotCategorical(...).to_event(1)` site becomes one :class:`FactorizedOneHotCategorical`, which can be
    enumerated, and `Bernoulli(...).to_event(n)` one `FactorizedBernoulli`.

    Args:
        program: a model or guide; if None, the result is a decorator and context manager.
        sites: the names of the sites to draw exactly, all by default, as in :func:`relax`.

    Returns:
        The discrete program.

    Raises:
        ValueError: when the program runs, if it has no discrete latent of a given name, or if an ELBO that drops the
            score of a discrete site runs it with gradients enabled.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> with discretize():
        ...     z = pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(3)))
        >>> float(z.max())
        1.0
    """
    return handler_of(partial(DiscretizeMessenger, as_names(sites)), program)


@overload
def enumerated(program: nn.Module, *, max_memory: float | None = None, sites: Sites = EVERY_SITE) -> HandledModule: ...
@overload
def enumerated(program: Program, *, max_memory: float | None = None, sites: Sites = EVERY_SITE) -> Program: ...
@overload
def enumerated(
    program: None = None, *, max_memory: float | None = None, sites: Sites = EVERY_SITE
) -> DecoratorOrContext: ...
def enumerated(program: Program | None = None, *, max_memory: float | None = None, sites: Sites = EVERY_SITE) -> Any:
    """Mark the discrete latents of a program for stock `TraceEnum_ELBO`, which then sums over all joint codes.

    `TraceEnum_ELBO().loss(enumerated(model), enumerated(guide), x)` is minus the exact ELBO of the discrete model. With
    an empty guide it is minus the exact log-evidence. Other losses would sample the sites, and are refused.

    `compute_marginals` of `TraceEnum_ELBO` returns p(z | x) as a distribution over joint codes, whose `mean` is
    p(z_n = k | x). Its `sample_posterior`, and `infer_discrete`, return codes.

    Args:
        program: a model or guide; if None, the result is a decorator and context manager.
        max_memory: bytes that the codes may take; 4 GB if None.
        sites: the names of the sites to enumerate, all by default, as in :func:`relax`.

    Returns:
        The enumerated program.

    Raises:
        ValueError: when the program runs, if it has no discrete latent, if the codes do not fit into `max_memory`, if a
            site outside a plate of latents depends on them, or if an ELBO samples the site instead of enumerating it.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import TraceEnum_ELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1))  # (N, K)
        ...     pyro.sample("x", dist.Normal(z[..., 0].sum(-1), 1.0), obs=torch.tensor(1.0))
        >>> loss = TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated(model), lambda: None)
        >>> round(loss, 4)  # -log p(x), summed over 9 codes
        1.1656
    """
    return handler_of(partial(EnumeratedMessenger, max_memory, as_names(sites)), program)


@overload
def weigh_kl(program: nn.Module, *, beta: float | Tensor) -> HandledModule: ...
@overload
def weigh_kl(program: Program, *, beta: float | Tensor) -> Program: ...
@overload
def weigh_kl(program: None = None, *, beta: float | Tensor) -> DecoratorOrContext: ...
def weigh_kl(program: Program | None = None, *, beta: float | Tensor) -> Any:
    r"""Multiply the log-densities of a program's latent sites by beta, so that every ELBO weights its KL by beta.

    .. math:: \mathrm{E}_{q(z|x)}[\log p(x | z)] - \beta \, \mathrm{KL}(q(z|x) \,\|\, p(z))

    is the objective of every ELBO of `weigh_kl(model)` and `weigh_kl(guide)`, with any other handlers. A
    constant beta gives the beta-VAE (Higgins et al. 2017, openreview.net/forum?id=Sy2fzU9gl). A beta that grows during
    training is KL annealing or warm-up (Bowman et al. 2016, arXiv 1511.06349; Soenderby et al. 2016, arXiv 1602.02282).
    Use it on both programs. For beta below 1 the objective is not a bound of log p(x). A weighted model has no log
    p(x), so `ExactEvidence` refuses it.

    Args:
        program: a model or guide; if None, the result is a decorator and context manager.
        beta: the weight, at least 0: a number, or a tensor of shape (), such as a buffer. A recorded step reads the
            tensor's current value.

    Returns:
        The program with its latent sites weighted.

    Raises:
        ValueError: if beta is negative, not finite, or not a single number.

    Example:
        >>> import torch
        >>> from pyro_gvae import CategoricalVAE, ExactELBO
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> def loss(beta):
        ...     return ExactELBO().loss(weigh_kl(vae.model, beta=beta), weigh_kl(vae.guide, beta=beta), x)
        >>> losses = [loss(beta) for beta in (0, 1, 2)]
        >>> abs(losses[2] - losses[1] - (losses[1] - losses[0])) < 1e-4  # one KL more
        True
    """
    check_kl_weight(beta)
    return handler_of(partial(WeighKLMessenger, beta), program)


def check_kl_weight(beta: float | Tensor) -> None:
    """Refuse a KL weight that is not a single finite number of at least 0.

    Raises:
        ValueError: if it is not.
    """
    value = torch.as_tensor(beta)
    if value.dim() > 0:
        raise ValueError(f"Expected one beta for all data, shape (), but found shape {tuple(value.shape)}.")
    if not 0 <= value.item() < float("inf"):
        raise ValueError(f"Expected a finite beta of at least 0, but found {value.item():g}.")
