"""Programs with known gradients, and repeated draws of sampled losses on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pairs import validated_once
from problems import Rows
from pyro import poutine
from torch import Tensor
from torch.nn import functional as F

from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.sampled import Estimate, SampledELBO
from pyro_gvae.estimators import estimator

B, D = 3, 4


class Case(NamedTuple):
    """A model and a guide with data, and the parameters: q's logits (B, N, K) come first."""

    model: Callable[[Tensor], Any]
    guide: Callable[[Tensor], Any]
    x: Tensor
    parameters: list[Tensor]

    def gradient(self, elbo: Any) -> Tensor:
        """Return one draw of the loss and its gradient, as one vector."""
        loss = elbo.differentiable_loss(self.model, self.guide, self.x)
        found = torch.autograd.grad(loss, self.parameters)
        return torch.cat([loss.detach().reshape(1), *(part.flatten() for part in found)])

    def exact(self) -> Tensor:
        return self.gradient(ExactELBO())

    def draws(self, elbo: Any, count: int) -> Tensor:
        """Return independent draws (count, 1 + number of parameters)."""
        return torch.stack(validated_once(lambda: self.gradient(elbo), count))


def case(
    num_latents: int, num_categories: int, *, scaled: bool = False, copies: int = 1, sharpness: float = 1.0
) -> Case:
    """Build a case with a decoder that mixes the latents, a learned prior and free logits, all in float64.

    Args:
        num_latents: N.
        num_categories: K.
        scaled: whether prior, likelihood and guide are scaled by different numbers, and the last datum is masked.
        copies: number of copies of each datum, each with its own logits.
        sharpness: factor of q's logits.
    """
    torch.manual_seed(1)
    real = {"dtype": torch.float64}
    logits = sharpness * torch.randn(B, num_latents, num_categories, **real)
    logits = logits.repeat(copies, 1, 1).requires_grad_()
    prior = torch.randn(num_latents, num_categories, **real).requires_grad_()
    first = torch.randn(num_latents * num_categories, 5, **real).requires_grad_()
    second = torch.randn(5, D, **real).requires_grad_()
    x = torch.rand(B, D, **real).round().repeat(copies, 1)
    kept = (torch.arange(B) < B - 1).repeat(copies)
    scales = (2.0, 3.0, 1.5) if scaled else (1.0, 1.0, 1.0)

    def masked() -> Any:
        return poutine.mask(mask=kept if scaled else torch.tensor(True))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), masked():
            with poutine.scale(scale=scales[0]):
                z = pyro.sample("z", dist.OneHotCategorical(logits=prior).to_event(1))
            with poutine.scale(scale=scales[1]):
                natural = torch.tanh(z.flatten(-2) @ first) @ second
                pyro.sample("x", dist.Bernoulli(logits=natural).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), masked(), poutine.scale(scale=scales[2]):
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))

    return Case(model, guide, x, [logits, prior, first, second])


def z_scores(draws: Tensor, expected: Tensor) -> Tensor:
    """Return how many standard errors the mean is off, by coordinate; 0 where nothing varies and nothing is off."""
    off = draws.mean(0) - expected
    error = draws.std(0) / len(draws) ** 0.5
    rounding = 1e-10 * (1 + expected.abs())
    return off / (error + rounding)


def variance(elbo: Any, num_latents: int, num_categories: int, *, copies: int = 4000, sharpness: float = 1.0) -> float:
    """Estimate the variance of the gradient of q's logits, summed over logits, from one draw per copy of the data."""
    several = case(num_latents, num_categories, copies=copies, sharpness=sharpness)
    loss = elbo.differentiable_loss(several.model, several.guide, several.x)
    (gradient,) = torch.autograd.grad(loss, several.parameters[:1])
    return float(gradient.reshape(copies, -1).var(0).sum())


def exact_gradient(*problem: Any) -> Tensor:
    """Return the exact gradient of the loss: (coordinates,)."""
    rows = Rows(*problem)
    model, guide, elbo = estimator("exact").bind(rows)
    elbo.loss_and_grads(model, guide, rows.x)
    return rows.gradients().squeeze(0)


def log_densities(rows: Rows, codes: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """Compute log p(x, z) and log q(z | x) of one row's codes (P, N, K) with plain torch: (P,) each."""
    natural = codes.flatten(-2) @ rows.first[row]
    if hasattr(rows, "second"):
        natural = natural.tanh() @ rows.second[row]
    log_likelihood = -F.binary_cross_entropy_with_logits(natural, rows.x[row].expand_as(natural), reduction="none")
    log_prior = (codes * rows.prior[row].log_softmax(-1)).sum((-2, -1))
    log_q = (codes * rows.logits[row].log_softmax(-1)).sum((-2, -1))
    return log_likelihood.sum(-1) + log_prior, log_q


def standard_scores(samples: Tensor, expected: Tensor, num_latents: int, num_categories: int) -> Tensor:
    """Return how many standard errors the mean is off: (coordinates,); also assert that these errors are small."""
    standard_errors = samples.std(0) / len(samples) ** 0.5
    size = num_latents * num_categories
    for part in (slice(size), slice(size, None)):  # the guide's and the model's
        assert standard_errors[part].norm() < 0.08 * expected[part].norm()
    # An estimate without variance may still be off by rounding.
    return (samples.mean(0) - expected).abs() / (standard_errors + 1e-12 * expected.abs().max())


class LeaveOneOut(SampledELBO):
    """REINFORCE with the mean of the other samples as baseline (Kool et al. 2019), in its simplest form."""

    def estimate(self, target):
        draws = target.draw(self.num_particles)
        signal = (draws.log_joint - draws.log_q).detach()  # (P, B)
        centered = (signal - signal.mean(0)) * self.num_particles / (self.num_particles - 1)
        return Estimate(signal.mean(0), (centered * draws.scores[0].log_q + draws.log_joint).mean(0).sum())
