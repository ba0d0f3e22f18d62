"""Parts of a program may have different dtypes, as networks in float32 beside data in float64 of NumPy."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_gvae import estimator, exact

PARTS = ("prior of a", "prior of z", "likelihood", "guide of a", "guide of z", "scale")
X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)


def pair_of(dtypes: dict[str, torch.dtype], prior: Tensor, means: Tensor, logits: Tensor) -> exact.Pair:
    """Return a pair with three bits z after a bit a, each of whose parts computes in the dtype of its name."""
    scale = torch.tensor([1.0, 2.0, 0.5]).to(dtypes["scale"])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=scale):
            a = pyro.sample("a", dist.Bernoulli(logits=prior[0].to(dtypes["prior of a"])))
            own = prior.to(dtypes["prior of z"]) * a.unsqueeze(-1).to(dtypes["prior of z"])
            z = pyro.sample("z", dist.Bernoulli(logits=own).to_event(1))
            own = means.to(dtypes["likelihood"])
            mean = (z.to(own.dtype) * own).sum(-1)
            pyro.sample("x", dist.Normal(mean, torch.ones_like(own[0])), obs=x.to(own.dtype))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=scale):
            pyro.sample("a", dist.Bernoulli(logits=logits[:, 0].to(dtypes["guide of a"])))
            pyro.sample("z", dist.Bernoulli(logits=logits.to(dtypes["guide of z"])).to_event(1))

    return exact.Pair(model, guide)


def numbers_of(dtypes: dict[str, torch.dtype]) -> list[Tensor]:
    """Return all exact numbers of the pair, and the gradients of its losses."""
    pyro.set_rng_seed(0)
    parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3,), (3,), (3, 3))]
    pair = pair_of(dtypes, *parameters)
    with torch.no_grad():
        bounds, posterior = exact.bounds(pair, X), exact.posterior(pair, X, num_codes=2)
        found = [*bounds, *posterior.marginals.values(), posterior.probs, exact.mean_field(pair, X).elbo]
        found += [exact.elbo(pair, X), exact.log_evidence(pair, X)]
    for name in ("exact", "exact-evidence", "exact-wake"):
        bound_model, bound_guide, elbo = estimator(name).bind(pair)
        loss = elbo.differentiable_loss(bound_model, bound_guide, X)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found += [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
    return [value.double() for value in found]


@pytest.mark.parametrize("other", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", PARTS)
def test_sums_over_parts_of_several_dtypes_are_those_of_one(part, other):
    rest = torch.float64 if other is torch.float32 else torch.float32
    wanted = numbers_of(dict.fromkeys(PARTS, torch.float64))
    found = numbers_of(dict.fromkeys(PARTS, rest) | {part: other})
    assert len(found) == len(wanted)
    for one, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-5)
