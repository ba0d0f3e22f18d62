"""Straight-through methods: one-hot draws with a surrogate gradient, each a function of logits.

A method, or kind, takes logits (..., K) and a temperature t and returns z = D + s - stop_gradient(s). The value of z is
the one-hot draw D, and its gradient is that of a surrogate s. The methods differ only in s. Throughout, pi =
softmax(logits), g is standard Gumbel noise, and J(p) = diag(p) - p p^T is the derivative of softmax where its value is
p.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import check_temperature, gumbel_like

#: A function from logits (..., K) and a temperature () to one-hots (..., K) with a surrogate gradient.
Kind = Callable[[Tensor, Tensor], Tensor]


def softmax_straight_through(logits: Tensor, temperature: Tensor) -> Tensor:
    """Draw D ~ pi, with the surrogate s = softmax(logits / t).

    Bengio, Léonard, Courville 2013, arXiv 1308.3432; with a temperature as in Liu et al. 2023, arXiv 2304.08612.

    Args:
        logits: unnormalized log-probabilities, shape (..., K).
        temperature: t > 0, shape ().

    Returns:
        One-hots, shape (..., K), with the surrogate's gradient.

    Example:
        >>> softmax_straight_through(torch.zeros(5, 3), torch.tensor(1.0)).sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """
    return _straight_through(_draw(logits), F.softmax(logits / temperature, -1))


def st_gumbel_softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """Draw D = one_hot(argmax(logits + g)), with the surrogate s = softmax((logits + g) / t).

    Jang et al. 2017, arXiv 1611.01144.

    Args:
        logits: unnormalized log-probabilities, shape (..., K).
        temperature: t > 0, shape ().

    Returns:
        One-hots, shape (..., K), with the surrogate's gradient.

    Example:
        >>> st_gumbel_softmax(torch.zeros(5, 3), torch.tensor(1.0)).sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """
    perturbed = logits + gumbel_like(logits, logits.shape)  # (..., K)
    return _straight_through(largest_one_hot(perturbed), F.softmax(perturbed / temperature, -1))


@final
@dataclass(frozen=True)
class DecoupledSTGumbelSoftmax:
    """Draw D = one_hot(argmax u), with the surrogate s = softmax(u / t), for u = logits / f + g.

    Shah et al. 2024, arXiv 2410.13331. At f = 1 this is ST-Gumbel-Softmax. Dividing u by t does not change its argmax,
    so already there the draw does not depend on t. For other f, D is a draw from softmax(logits / f).

    Attributes:
        forward_temperature: f > 0. Codes are always scored by pi, but are drawn from pi only at f = 1.
    """

    forward_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.forward_temperature)

    def __call__(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Draw one-hots (..., K) with the surrogate's gradient."""
        return st_gumbel_softmax(logits / self.forward_temperature, temperature)


@final
@dataclass(frozen=True)
class GumbelRao:
    """Draw D ~ pi, with s the mean over M draws of softmax((logits + g') / t), g' given that argmax(logits + g') is D.

    Paulus, Maddison, Krause 2021, arXiv 2010.04838. Its mean over D is ST-Gumbel-Softmax's gradient, and its variance
    is lower. The noise g' is held constant in the derivative. The paper says that it is not, but the two means are
    equal only if it is, and published implementations, such as those of arXiv 2206.07235 and 2304.08612, hold it
    constant too.

    Attributes:
        num_draws: M, draws of the noise; the decoder runs once, whatever M.
    """

    num_draws: int = 100

    def __post_init__(self) -> None:
        _check_draws(self.num_draws)

    def __call__(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Draw one-hots (..., K) with the surrogate's gradient."""
        drawn = _draw(logits)
        mean_jacobian = _gumbel_rao_jacobian(F.softmax(logits, -1), drawn, temperature, self.num_draws)
        return drawn + _times(mean_jacobian, _gradient_of(logits))


@final
@dataclass(frozen=True)
class GappedStraightThrough:
    """Draw D ~ pi, with the surrogate s = softmax(u / t), where u moves logits so that D leads by a gap.

    u_D = max_k logits_k, and u_k = min(logits_k, u_D - gap) for the other categories; the derivative is du = dlogits
    (Fan et al. 2022, arXiv 2206.07235).

    Attributes:
        gap: the minimum lead of D, in nats; 1 in the paper.
    """

    gap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gap < float("inf"):
            raise ValueError(f"Expected a gap of at least 0, but found {self.gap}. Try 1.0.")

    def __call__(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Draw one-hots (..., K) with the surrogate's gradient."""
        drawn = _draw(logits)
        with torch.no_grad():
            largest = logits.amax(-1, keepdim=True)
            gapped = torch.where(drawn > 0, largest, torch.minimum(logits, largest - self.gap))  # (..., K)
        return _straight_through(drawn, F.softmax((gapped + _gradient_of(logits)) / temperature, -1))


def reinmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """Draw D ~ pi, with the derivative ds = (2 J((D + softmax(logits / t)) / 2) - J(pi) / 2) dlogits.

    At t = 1 this is accurate to second order, by Heun's method (Liu et al. 2023, arXiv 2304.08612, algorithm 2, for t
    >= 1).

    Args:
        logits: unnormalized log-probabilities, shape (..., K).
        temperature: t > 0, shape ().

    Returns:
        One-hots, shape (..., K), with the surrogate's gradient.

    Example:
        >>> reinmax(torch.zeros(5, 3), torch.tensor(1.0)).sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """
    drawn = _draw(logits)
    with torch.no_grad():
        midpoint = (drawn + F.softmax(logits / temperature, -1)) / 2  # (..., K)
    at_midpoint = F.softmax(midpoint.log() + _gradient_of(logits), -1)
    return _straight_through(drawn, 2 * at_midpoint - F.softmax(logits, -1) / 2)


@final
@dataclass(frozen=True)
class ReinMaxRao:
    """Draw D ~ pi, with ds = (2 J' - J(pi) / 2) dlogits; J' is Gumbel-Rao's mean derivative at log((D + pi) / 2).

    This is ReinMax with another derivative at the midpoint: that of softmax((log((D + pi) / 2) + g') / t), averaged
    over M draws of g' given D (Wang and Bui 2026, arXiv 2603.08257, eq. 17, implemented as in the authors' code).

    Attributes:
        num_draws: M, draws of the noise; the decoder runs once, whatever M.
    """

    num_draws: int = 100

    def __post_init__(self) -> None:
        _check_draws(self.num_draws)

    def __call__(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Draw one-hots (..., K) with the surrogate's gradient."""
        drawn, probs = _draw(logits), F.softmax(logits, -1)
        mean_jacobian = _gumbel_rao_jacobian((drawn + probs) / 2, drawn, temperature, self.num_draws)
        correction = (probs - probs.detach()) / 2
        return drawn + (2 * _times(mean_jacobian, _gradient_of(logits)) - correction)


def _check_draws(num_draws: int) -> None:
    if num_draws < 1:
        raise ValueError(f"Expected at least one draw of conditional noise, but found num_draws={num_draws}.")


def largest_one_hot(scores: Tensor) -> Tensor:
    """Return the one-hot of the largest score, shape (..., K)."""
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def _draw(logits: Tensor) -> Tensor:
    """Draw a one-hot D ~ softmax(logits), shape (..., K), by the Gumbel-max trick."""
    return largest_one_hot(logits.detach() + gumbel_like(logits, logits.shape))


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    return hard + (soft - soft.detach())


def _gradient_of(logits: Tensor) -> Tensor:
    """Return zeros that have the gradient of logits; excluded categories (-inf) have none."""
    finite = logits.clamp_min(torch.finfo(logits.dtype).min)
    return finite - finite.detach()


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def _gumbel_rao_jacobian(probs: Tensor, drawn: Tensor, temperature: Tensor, num_draws: int) -> Tensor:
    r"""Average J(s) / t over M draws of s = softmax((log probs + g') / t) given argmax(log probs + g') = D.

    With E ~ Exp(1)^K, the perturbed logits given D are -log(E_D) at D and -log(E_k / probs_k + E_D) elsewhere. So s_k
    is proportional to 1 at D and to (1 + E_k / (probs_k E_D))^(-1/t) elsewhere. The average over draws is one matrix
    product P = s s^T / M, whose rows add up to the mean of s, so nothing of size M is kept for the backward pass.

    Returns:
        Shape (..., K, K).
    """
    weight = torch.rand(*probs.shape, num_draws, dtype=probs.dtype, device=probs.device)  # (..., K, M)
    # In place: these are the largest tensors of a step, and allocating new ones would take most of its time.
    weight.clamp_min_(torch.finfo(probs.dtype).tiny).log_()  # -E
    index = drawn.argmax(-1)[..., None, None].expand(*probs.shape[:-1], 1, num_draws)
    of_drawn = weight.gather(-2, index)  # -E_D, (..., 1, M)
    others = torch.where(drawn > 0, 0.0, probs.reciprocal()).unsqueeze(-1)  # (..., K, 1)
    weight.div_(of_drawn).mul_(others).add_(1.0).log_().div_(-temperature).exp_()  # a power takes three times as long
    weight.div_(weight.sum(-2, keepdim=True))  # s
    products = weight @ weight.mT / num_draws  # (..., K, K)
    return (torch.diag_embed(products.sum(-1)) - products) / temperature


#: name -> kind, with its published options.
KINDS: dict[str, Kind] = {
    "straight-through": softmax_straight_through,
    "st-gumbel-softmax": st_gumbel_softmax,
    "decoupled-st-gumbel-softmax": DecoupledSTGumbelSoftmax(),
    "gumbel-rao": GumbelRao(),
    "gapped-straight-through": GappedStraightThrough(),
    "reinmax": reinmax,
    "reinmax-rao": ReinMaxRao(),
}


def find_kind(kind: str | Kind) -> Kind:
    """Return the kind with this name; a function is returned as it is.

    Raises:
        ValueError: if there is no kind of that name.
    """
    if not isinstance(kind, str):
        return kind
    if kind not in KINDS:
        raise ValueError(f"Expected a straight-through kind among {', '.join(KINDS)}, but found '{kind}'.")
    return KINDS[kind]
