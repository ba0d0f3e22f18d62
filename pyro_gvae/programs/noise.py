"""Draw codes and continuous latents, and draw codes again with the same noise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..distributions.parameters import gumbel_like

#: Draws codes from log pi (*batch, N, K), as many as a sample shape has; returns them, and their noise if it is kept.
DrawCodes = Callable[[Tensor, Size], tuple[Tensor, Tensor | None]]
#: Computes codes from log pi (R, *plates, N, K) and noise of the same shape.
CodesOf = Callable[[Tensor, Tensor], Tensor]


def independent(log_probs: Tensor, sample_shape: Size) -> tuple[Tensor, None]:
    """Draw codes, and keep no noise."""
    return FactorizedOneHotCategorical(logits=log_probs, validate_args=False).sample(sample_shape), None


def by_gumbel_noise(log_probs: Tensor, sample_shape: Size) -> tuple[Tensor, Tensor]:
    """Draw codes and their Gumbel noise."""
    noise = gumbel_like(log_probs, Size((*sample_shape, *log_probs.shape)))
    return largest(log_probs, noise), noise


def by_uniform_noise(codes_of: CodesOf) -> DrawCodes:
    """Return a function that draws codes and their uniform noise, from which `codes_of` computes them."""

    def draw(log_probs: Tensor, sample_shape: Size) -> tuple[Tensor, Tensor]:
        noise = torch.rand(*sample_shape, *log_probs.shape, dtype=log_probs.dtype, device=log_probs.device)
        return codes_of(log_probs, noise), noise

    return draw


def largest(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Return the codes for Gumbel noise: the category with the largest perturbed log-probability."""
    perturbed = (log_probs + noise).detach()
    return torch.zeros_like(perturbed).scatter(-1, perturbed.argmax(-1, keepdim=True), 1.0)


def anew(name: str, fn: Any) -> Tensor:
    """Draw a continuous latent with new noise, reparameterized if possible."""
    value: Tensor = fn.rsample() if fn.has_rsample else fn.sample().detach()
    return value
