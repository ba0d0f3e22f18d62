"""The exact ELBO and the exact log-evidence as Pyro losses, summed slice by slice in bounded memory."""

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ..distributions.parameters import impossible_as_infinite
from ..exact import elimination
from ..exact.sums import elbo_parts, evidence, evidence_parts, find_evidence, summed
from ..handlers.sites import Program
from ..programs.chains import Chains
from ..programs.joint import read_guide_once
from ..programs.runs import bind
from ..runtime.autograd import all_or_nothing
from .summing import ExactLoss, climb, why_searched


@final
class ExactELBO(ExactLoss):
    r"""The exact ELBO of the discrete model as a loss for `SVI`, without bias and, over codes, without variance.

    .. math::

        \mathrm{loss} = -\sum_b \Big( \sum_{z} q(z | x_b) \log p(x_b | z) - \mathrm{KL}(q(z | x_b) \,\|\, p(z)) \Big)

    The sum over all K^N joint codes is that of stock `TraceEnum_ELBO`, but decodes each code only once. It runs slice
    by slice: the backward pass of a slice is finished before the next slice starts. If there are many codes, those with
    negligible q for all data (see :func:`pyro_gvae.exact.elbo`) are not decoded, so steps become cheaper as posteriors
    sharpen.

    Several discrete latents (one-hots, bits, integers) are summed jointly: there are as many codes as the product of
    their K^N. Continuous latents beside them are drawn by `rsample`, once for each code if they depend on it; the loss
    is then an unbiased estimate.

    Latents inside of `pyro.markov`, and those that only the model has, are summed one after another; see
    :func:`pyro_gvae.exact.elbo`.

    Args:
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them; their losses and gradients add up.

    Raises:
        ValueError: when called, if the guide has latents that the model lacks or lacks continuous ones of the model, if
            a continuous latent has no `rsample`, if a statement outside of a latent's plates or reach depends on it, if
            there are more than 2^62 codes or a sum takes more than 1e15
            operations, or if a slice does not fit into `max_memory`.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyro_gvae.handlers import discretize
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> svi = SVI(discretize(vae.model), discretize(vae.guide), pyro.optim.Adam({"lr": 0.1}), ExactELBO())
        >>> x = torch.ones(4, 6)
        >>> first = svi.step(x)
        >>> svi.step(x) < first
        True
    """

    with_guide = True

    @override
    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        plan = self._plan(bind(model, guide, *args, **kwargs), model, guide, args, kwargs)
        return why_searched(plan) or super().why_not_recordable(model, guide, *args, **kwargs)

    @override
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains):
            return -elimination.elbo(runs, plan).sum()
        return -summed(plan, elbo_parts(runs, plan, read_guide_once(runs, plan.layout))).sum()

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains) or (plan.num_slices == 1 and not plan.is_searched):
            return super().tensor_loss_and_grads(model, guide, *args, **kwargs)
        found = read_guide_once(runs, plan.layout)
        return -impossible_as_infinite(climb(found, lambda cut: elbo_parts(runs, plan, cut)))


@final
class ExactEvidence(ExactLoss):
    r"""The exact log-evidence of the discrete model as a loss for `SVI`: maximum likelihood, no guide.

    .. math:: \mathrm{loss} = -\sum_b \log \sum_{z} p(x_b | z) \, p(z)

    A first pass without gradients computes log p(x). A second pass, over the codes with a posterior probability that is
    not negligible, computes the posterior mean of the gradients of log p(x, z) (Fisher's identity). If all codes fit
    into one slice, there is a single pass. Where data share a discrete latent, all codes are summed, from the innermost
    plates to the outermost.

    Args:
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them; their losses and gradients add up.

    Raises:
        ValueError: when called, if the model has a continuous latent, if the plates of its discrete latents are not
            nested, if its sites are scaled differently, if there are more than 2^62 codes or a sum takes more than 1e15
            operations, or if a slice does not fit into `max_memory`.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> ExactEvidence().loss(vae.model, lambda x: None, torch.ones(4, 6)) > 0  # any guide: it is not used
        True
    """

    with_guide = False

    @override
    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        return self.why_not_together() or super().why_not_recordable(model, guide, *args, **kwargs)

    @override
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if self.share.world_size > 1 and torch.is_grad_enabled():
            raise ValueError(
                "Expected a call of loss_and_grads when processes divide the codes, but found differentiable_loss: the "
                "terms of other processes have no gradient here. Try loss_and_grads."
            )
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        if isinstance(plan, Chains):
            return -elimination.log_evidence(runs, plan).sum()
        return self.counted_once(-evidence(runs.model, plan).sum())

    @override
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        is_one_pass = plan.num_slices == 1 and self.share.world_size == 1
        if isinstance(plan, Chains) or is_one_pass or plan.layout.is_shared:
            return super().tensor_loss_and_grads(model, guide, *args, **kwargs)
        found = find_evidence(runs.model, plan)
        with all_or_nothing() as backward:
            for part in evidence_parts(runs.model, plan, found):
                backward(-part().sum())
        return self.counted_once(-(found.scale * found.log_evidence).sum())
