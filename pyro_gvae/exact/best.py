"""Find the most probable joint code of each datum under the exact posterior, without computing the posterior."""

from typing import Any

import torch

from ..programs.chains import Chains
from ..programs.joint import joint_scores
from ..programs.pair import HasPair
from ..programs.runs import bind_pair
from . import backwards
from .endless import plan_to_end
from .plan import PerLatent, per_latent
from .posteriors import check_latents, in_plates, no_own_code


@torch.no_grad()
def best_codes(
    pair: HasPair, *args: Any, max_memory: float | None = None, slice_size: int | None = None, **kwargs: Any
) -> PerLatent:
    """Find the most probable joint code of each datum, argmax_z p(x, z), without the sum p(x).

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        One-hots (B, N, K), the first code of :func:`posterior`; a dictionary by name if there are several latents.

    Raises:
        ValueError: as :func:`posterior`.

    Example:
        >>> from pyro_gvae.exact import posterior
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> torch.equal(best_codes(vae, x), posterior(vae, x, num_codes=1).codes.squeeze(1))
        True
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan = plan_to_end(runs, with_guide=False, with_gradient=False, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return per_latent(backwards.best(runs, plan).codes)
    check_latents(plan)
    if plan.layout.is_shared:
        raise no_own_code(1)
    highest = torch.full((plan.batch_shape.numel(),), -torch.inf, dtype=plan.dtype, device=plan.device)
    best = torch.zeros(highest.shape, dtype=torch.long, device=plan.device)
    for numbers in plan.numbers():
        found = joint_scores(runs.model, plan.layout, plan.codes(numbers)).joint.max(0)  # (B,)
        best = torch.where(found.values > highest, numbers[found.indices], best)
        highest = torch.maximum(highest, found.values)
    return per_latent(in_plates(plan, plan.codes(best)))
