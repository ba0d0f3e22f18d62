"""Remove latents that carry no information about the data, and categories that are never used."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from ..data.batches import sample_of
from ..distributions.codes import Left
from ..evaluate.code_statistics import latent_statistics
from ..models.categorical_vae import CategoricalVAE
from ..programs.modes import judging
from .monitor import NUM_TRAIN_WATCHED
from .revive import rows_of
from .training import Training

#: Return the part of a tensor that remains.
Cut = Callable[[Tensor], Tensor]


class Pruned(NamedTuple):
    """A smaller program, and the latents and categories that remain of the original.

    Attributes:
        vae: the smaller program.
        left: what remains.
    """

    vae: CategoricalVAE
    left: Left


def prune(vae: CategoricalVAE, x: Tensor, *, information: float = 0.01, usage: float = 0.001) -> Pruned:
    r"""Copy a program without latents that carry little information about data, and categories that are hardly used.

    A latent is removed if :math:`\mathrm{I}(x; z_n)` under the guide is below a threshold; for the decoder, it is then
    fixed at its most used category. The remaining latents all have K' categories, as many as any of them uses, and
    each keeps those that it uses most. For the remaining codes, the decoder and the encoder's logits do not change.
    The prior is conditioned on the remaining codes, with removed latents fixed. Training can continue with the smaller
    program.

    Args:
        vae: the program, which is not changed.
        x: data (B, D) from which information and usage are estimated.
        information: the threshold in nats.
        usage: the mean of q(z_n = k | x) over data below which k is unused.

    Returns:
        The smaller program, and which latents and categories it has.

    Raises:
        ValueError: if no latent remains, the conditioned prior is not of the same kind (as with an autoregressive
            prior), or the networks have no rows for categories.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=3, num_categories=4, hidden=(5,))
        >>> found = prune(vae, torch.rand(50, 6).round(), information=0.0, usage=0.5)
        >>> found.vae.num_latents, found.vae.num_categories
        (3, 2)
    """
    check_prunable(vae)
    left = what_is_left(vae, x, information, usage)
    if left is None:
        raise ValueError(
            f"Expected a latent of {information:g} nats of information on data or more, but found none. Try a lower "
            "threshold, or a program that has learned more."
        )
    smaller = copy.deepcopy(vae)
    shrink(smaller, left)
    return Pruned(smaller, left)


def check_prunable(vae: Any) -> None:
    """Refuse a program that cannot be made smaller without changing its function on the remaining codes.

    Raises:
        ValueError: if it cannot.
    """
    rows = rows_of(vae)
    if vae.prior is not None:
        copy.deepcopy(vae.prior).keep(_first_codes(vae, vae.num_latents, vae.num_categories))
    if rows.decoder.bias is None:
        raise ValueError(
            "Expected a first layer of the decoder with a bias, to which removed latents are added, but "
            "found none. Try nn.Linear(.., bias=True)."
        )
    before = vae.num_latents, vae.num_categories
    if _last_shape(vae) is None:
        raise ValueError(
            f"Expected an encoder that ends in nn.Unflatten(-1, {before}), whose shape is changed, but found none. Try "
            "it as the last layer."
        )


def _last_shape(vae: CategoricalVAE) -> nn.Unflatten | None:
    shapes = [one for one in vae.encoder.modules() if isinstance(one, nn.Unflatten)]
    own = vae.num_latents, vae.num_categories
    return shapes[-1] if shapes and tuple(shapes[-1].unflattened_size) == own else None


@judging
@torch.no_grad()
def what_is_left(vae: CategoricalVAE, x: Tensor, information: float, usage: float) -> Left | None:
    """Choose latents and categories as :func:`prune` does; None if no latent has enough information."""
    log_q = vae.guide_logits(x).log_softmax(-1)  # (B, N, K)
    use = log_q.exp().mean(0)
    latents = (latent_statistics(log_q).mutual_information >= information).nonzero().squeeze(-1)
    if not len(latents):
        return None
    size = max(2, int((use[latents] >= usage).sum(-1).max()))
    return Left(latents, use[latents].topk(size, -1).indices.sort(-1).values, use.argmax(-1))


@torch.no_grad()
def shrink(vae: CategoricalVAE, left: Left) -> None:
    """Remove all but some latents and categories, in place: parameters stay the same objects, with fewer elements.

    Args:
        vae: a program that :func:`check_prunable` accepts.
        left: the latents and categories that remain.
    """
    layers, shape = rows_of(vae), _last_shape(vae)
    assert shape is not None
    removed = torch.ones(vae.num_latents, dtype=torch.bool, device=left.fixed.device)
    removed[left.latents] = False
    numbers = removed.nonzero().squeeze(-1)
    constant = numbers * vae.num_categories + left.fixed[numbers]
    layers.decoder.bias.add_(layers.decoder.weight[:, constant].sum(-1))
    for parameter, cut in cuts(vae, left).items():
        parameter.data = cut(parameter.data)
    if not isinstance(vae.prior_logits, nn.Parameter):
        vae.prior_logits = left.of_each(vae.prior_logits)
    if vae.prior is not None:
        vae.prior.keep(left)
    vae.num_latents, vae.num_categories = left.categories.shape
    layers.encoder.out_features = layers.decoder.in_features = left.categories.numel()
    shape.unflattened_size = Size(left.categories.shape)
    if vae.arguments is not None:
        vae.arguments |= {"num_latents": vae.num_latents, "num_categories": vae.num_categories}


def cuts(vae: CategoricalVAE, left: Left) -> dict[Tensor, Cut]:
    """Return how to cut each parameter of the networks, and `prior_logits`, that has a row for each category."""
    rows, layers = (left.latents.unsqueeze(-1) * vae.num_categories + left.categories).flatten(), rows_of(vae)
    found: dict[Tensor, Cut] = {
        layers.encoder.weight: lambda weight: weight[rows],
        layers.encoder.bias: lambda bias: bias[rows],
        layers.decoder.weight: lambda weight: weight[:, rows],
    }
    if isinstance(vae.prior_logits, nn.Parameter):
        found[vae.prior_logits] = left.of_each
    return found


def shrink_to(vae: Any, weights: Mapping[str, Any]) -> None:
    """Shrink a program to the sizes of pruned weights, without loading the weights.

    Sizes that pruning cannot produce are ignored; loading the weights then fails with a message.
    """
    logits = weights.get("prior_logits") if isinstance(weights, Mapping) else None
    if not isinstance(vae, CategoricalVAE) or not isinstance(logits, Tensor) or logits.dim() != 2:
        return
    (num_latents, num_categories), before = logits.shape, vae.prior_logits.shape
    if (num_latents, num_categories) != before and 1 <= num_latents <= before[0] and 2 <= num_categories <= before[1]:
        check_prunable(vae)
        shrink(vae, _first_codes(vae, num_latents, num_categories))


def _first_codes(vae: CategoricalVAE, num_latents: int, num_categories: int) -> Left:
    """Return the codes that keep the first latents, and the first categories of each."""
    device = vae.prior_logits.device
    latents, categories = (torch.arange(size, device=device) for size in (num_latents, num_categories))
    fixed = torch.zeros(vae.num_latents, dtype=torch.long, device=device)
    return Left(latents, categories.expand(num_latents, -1), fixed)


def prune_if_due(training: Training) -> None:
    """Prune the program at the beginning of an epoch or a stage, if the configuration says so.

    The result depends only on weights, data and step, so that a resumed run and all processes do the same. The
    optimizer keeps its averages for the remaining parts of the networks and of a prior of independent digits. The
    averages of a prior of dependent digits, whose parameters get other values, and of the loss's own parameters start
    anew. If no latent has enough information, the program stays as it is.
    """
    config, state, vae = training.config, training.state, training.vae
    pruning = config.pruning
    if pruning is None or not pruning.is_due(state.step, state.stage_step, training.per_epoch):
        return
    sample: Any = sample_of(training.train, NUM_TRAIN_WATCHED)
    left = what_is_left(vae, sample, pruning.information, pruning.usage)
    if left is None or left.categories.shape == vae.prior_logits.shape:
        return
    cut_averages(training.optimizer, cuts(vae, left))
    for parameter in vae.prior.parameters() if vae.prior is not None else ():
        training.optimizer.state.pop(parameter, None)
    shrink(vae, left)
    training.begin_stage_again()


def cut_averages(optimizer: torch.optim.Optimizer, cut_of: Mapping[Tensor, Cut]) -> None:
    """Cut an optimizer's averages like their parameters; drop a parameter's state if that is not possible."""
    for parameter, cut in cut_of.items():
        averages = {
            name: value
            for name, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and value.dim()
        }
        if any(value.shape != parameter.shape for value in averages.values()):
            del optimizer.state[parameter]
        else:
            for name, value in averages.items():
                optimizer.state[parameter][name] = cut(value)
