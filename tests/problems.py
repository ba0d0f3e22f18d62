"""Small models whose codes can be enumerated in a loop, and these loops: the oracles for exact enumeration."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_gvae.exact import Pair
from pyro_gvae.handlers.parameters import announce
from pyro_gvae.models.categorical_vae import CategoricalVAE

N, K, B, D, LEVELS = 3, 2, 4, 5, 3
NUM_CODES = K**N


class Problem(NamedTuple):
    """A row of the table: the parts of the VAE, and the likelihood written with torch."""

    name: str
    options: dict[str, Any]
    likelihood: Callable[[CategoricalVAE, Tensor], torch.distributions.Distribution]
    data: Callable[[], Tensor]

    def vae(self, dtype: torch.dtype = torch.float64) -> CategoricalVAE:
        """Return the model, with weights large enough for codes to differ."""
        torch.manual_seed(1)
        vae = CategoricalVAE(D, N, K, hidden=(7,), **self.options).to(dtype)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.7)
        return vae

    def x(self, dtype: torch.dtype = torch.float64) -> Tensor:
        torch.manual_seed(2)
        return self.data().to(dtype)


def _categorical(vae: CategoricalVAE, natural: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Categorical(logits=natural.unflatten(-1, (D, LEVELS)))


LIKELIHOODS: dict[str, tuple[dict[str, Any], Callable[..., Any], Callable[[], Tensor]]] = {
    "bernoulli": ({}, lambda _, eta: torch.distributions.Bernoulli(logits=eta), lambda: torch.rand(B, D).round()),
    "continuous-bernoulli": (
        {},
        lambda _, eta: torch.distributions.ContinuousBernoulli(logits=eta),
        lambda: torch.rand(B, D),
    ),
    "gaussian": (
        {"scale": None},
        lambda vae, eta: torch.distributions.Normal(eta, vae.observation.log_scale.exp()),
        lambda: torch.randn(B, D),
    ),
    "categorical": ({"num_levels": LEVELS}, _categorical, lambda: torch.randint(LEVELS, (B, D))),
}
PROBLEMS = [
    Problem(
        f"{observation}-{'learned' if learned else 'uniform'}",
        {"observation": observation, "learn_prior": learned, **options},
        likelihood,
        data,
    )
    for observation, (options, likelihood, data) in LIKELIHOODS.items()
    for learned in (False, True)
]


def codes(dtype: torch.dtype = torch.float64) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """List all joint codes in lexicographic order, as categories and as one-hots (N, K)."""
    for categories in itertools.product(range(K), repeat=N):
        yield categories, F.one_hot(torch.tensor(categories), K).to(dtype)


def joint_in_a_loop(problem: Problem, vae: CategoricalVAE, x: Tensor) -> Tensor:
    """Compute log p(x, z) of every code, (S, B), one code and one datum at a time."""
    rows = []
    for categories, code in codes(x.dtype):
        log_prior = sum(F.log_softmax(vae.prior_logits[n], -1)[k] for n, k in enumerate(categories))
        likelihood = problem.likelihood(vae, vae.decoder(code))
        rows.append(torch.stack([log_prior + likelihood.log_prob(datum).sum() for datum in x]))
    return torch.stack(rows)


def log_q_in_a_loop(vae: CategoricalVAE, x: Tensor) -> Tensor:
    """Compute log q(z | x) of every code, (S, B)."""
    log_q = F.log_softmax(vae.encoder(x), -1)  # (B, N, K)
    return torch.stack([sum(log_q[:, n, k] for n, k in enumerate(categories)) for categories, _ in codes()])


def elbo_in_a_loop(problem: Problem, vae: CategoricalVAE, x: Tensor) -> Tensor:
    log_q = log_q_in_a_loop(vae, x)
    return (log_q.exp() * (joint_in_a_loop(problem, vae, x) - log_q)).sum(0)


def evidence_in_a_loop(problem: Problem, vae: CategoricalVAE, x: Tensor) -> Tensor:
    return joint_in_a_loop(problem, vae, x).exp().sum(0).log()


def separate_sites(vae: CategoricalVAE, likelihood: Callable[[Tensor], Any]) -> Pair:
    """Return the same pair for stock Pyro: N one-hot sites, enumerated in the guide."""

    def model(x: Tensor) -> None:
        pyro.module("vae", vae)
        with pyro.plate("data", len(x)):
            sites = [pyro.sample(f"z{n}", dist.OneHotCategorical(logits=vae.prior_logits[n])) for n in range(N)]
            z = torch.stack(torch.broadcast_tensors(*sites), -2)
            pyro.sample("x", likelihood(vae.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("vae", vae)
        with pyro.plate("data", len(x)):
            logits = vae.encoder(x)
            for n in range(N):
                site = dist.OneHotCategorical(logits=logits[:, n])
                pyro.sample(f"z{n}", site, infer={"enumerate": "parallel"})

    return Pair(model, guide)


def gradients(value: Tensor, vae: CategoricalVAE) -> dict[str, Tensor]:
    """Return d value / d parameter by name, or zeros where there is none."""
    named = dict(vae.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


class Rows(torch.nn.Module):
    """R copies of one datum, each with its own parameters, so that one backward pass gives R independent gradients.

    Guide: logits (R, N, K). Model: learned prior, and a decoder of one matrix, or of two with a tanh between.
    """

    WIDTH, DIM = 3, 2

    def __init__(self, decoder: str, num_latents: int, num_categories: int, num_rows: int = 1) -> None:
        super().__init__()
        torch.manual_seed(21)
        size = num_latents * num_categories
        shapes = {"logits": (num_latents, num_categories), "prior": (num_latents, num_categories)}
        shapes |= {"linear": {"first": (size, self.DIM)}, "mlp": {"first": (size, self.WIDTH)}}[decoder]
        if decoder == "mlp":
            shapes["second"] = (self.WIDTH, self.DIM)
        for name, shape in shapes.items():
            scale = {"first": 1.5, "second": 1.5, "logits": 1.0}.get(name, 0.5)
            row = scale * torch.randn(shape, dtype=torch.float64)
            self.register_parameter(name, torch.nn.Parameter(row.repeat(num_rows, 1, 1)))
        self.x = (torch.arange(self.DIM) % 2).double().repeat(num_rows, 1)  # (R, D)

    def decoder(self, z: Tensor) -> Tensor:
        natural = z.flatten(-2).unsqueeze(-2) @ self.first
        return (natural.tanh() @ self.second if hasattr(self, "second") else natural).squeeze(-2)

    def model(self, x: Tensor) -> None:
        self._announce()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        self._announce()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.logits).to_event(1))

    def _announce(self) -> None:
        for name, parameter in self.named_parameters():
            announce(name, parameter)

    def gradients(self) -> Tensor:
        """Return the `.grad` of all parameters: (R, coordinates)."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()]
        return torch.cat([grad.flatten(1) for grad in grads], -1)
