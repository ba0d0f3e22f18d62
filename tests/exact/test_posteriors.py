"""Posteriors of programs with several discrete latents: a loop over all codes is the oracle."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, PROGRAMS, B, bits_model, m2_guide, m2_model, two_layers_model
from pyro import poutine
from torch import Size, Tensor

from pyro_gvae import exact
from pyro_gvae.exact import Pair
from pyro_gvae.exact.best import best_codes
from pyro_gvae.handlers.sites import Kind
from pyro_gvae.programs.latents import Latent

MODELS = {"two layers, independent": two_layers_model, "bits and an integer": bits_model}
SITES = {
    "two layers, independent": [("top", Kind.ONE_HOT, 3), ("below", Kind.ONE_HOT, 4)],
    "bits and an integer": [("a", Kind.BIT, 2), ("b", Kind.BIT, 2), ("k", Kind.INTEGER, 3)],
}
EACH_NAME = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _parameters():
    pyro.clear_param_store()


def in_a_loop(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log p(x, z) of all codes (S, B), and the codes (S, 1, K) of each latent."""
    joint, codes = [], []
    types = {Kind.INTEGER: torch.long}
    latents = [Latent(site, kind, Size(), count, types.get(kind, torch.float64)) for site, kind, count in SITES[name]]
    for digits in itertools.product(*(range(latent.num_categories) for latent in latents)):
        own = {
            latent.name: torch.eye(latent.num_categories).double()[[digit]]
            for latent, digit in zip(latents, digits, strict=True)
        }
        data = {latent.name: latent.value(own[latent.name].expand(B, -1, -1)) for latent in latents}
        trace = poutine.trace(poutine.condition(MODELS[name], data=data)).get_trace(DATA)
        trace.compute_log_prob()
        joint.append(sum(node["log_prob"] for node in trace.nodes.values() if "log_prob" in node).detach())
        codes.append(own)
    return torch.stack(joint), {site: torch.stack([own[site] for own in codes]) for site in codes[0]}


@EACH_NAME
@pytest.mark.parametrize("slice_size", [None, 5])
def test_marginals_and_most_probable_codes_are_those_of_a_loop(name, slice_size):
    joint, codes = in_a_loop(name)
    pair = Pair(*PROGRAMS[name][:2])
    found = exact.posterior(pair, DATA, num_codes=3, slice_size=slice_size)
    best = best_codes(pair, DATA, slice_size=slice_size)
    probs, numbers = joint.softmax(0).topk(3, 0)
    torch.testing.assert_close(found.probs, probs.T)
    for site, own in codes.items():
        torch.testing.assert_close(found.marginals[site], torch.einsum("sb,snk->bnk", joint.softmax(0), own))
        torch.testing.assert_close(found.codes[site], own[numbers.T])
        torch.testing.assert_close(best[site], own[numbers[0]])


@EACH_NAME
def test_samples_have_the_frequencies_of_joint_codes(name):
    pyro.set_rng_seed(0)
    joint, codes = in_a_loop(name)
    num_samples = 20_000
    found = exact.sample_posterior(Pair(*PROGRAMS[name][:2]), DATA, num_samples=num_samples, slice_size=5)
    same = torch.stack([torch.einsum("pbnk,snk->psb", found[site], own) for site, own in codes.items()])
    frequency, probs = same.prod(0).mean(0), joint.softmax(0)
    assert ((frequency - probs).abs() < 5 * (probs * (1 - probs) / num_samples).sqrt()).all()


@EACH_NAME
def test_the_best_factorized_posterior_is_a_stationary_point(name):
    joint, codes = in_a_loop(name)
    pair = Pair(*PROGRAMS[name][:2])
    best = exact.mean_field(pair, DATA, tolerance=1e-14, max_sweeps=1000)

    def elbo(logits: dict[str, Tensor]) -> Tensor:
        log_q = sum(torch.einsum("snk,bnk->sb", codes[site], own.log_softmax(-1)) for site, own in logits.items())
        return (log_q.exp() * (joint - log_q)).sum(0)

    logits = {site: own.requires_grad_() for site, own in best.logits.items()}
    torch.testing.assert_close(elbo(logits).detach(), best.elbo)
    assert (best.elbo < exact.log_evidence(pair, DATA)).all()
    gradients = torch.autograd.grad(elbo(logits).sum(), list(logits.values()))
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)
    elsewhere = elbo({site: own + own.sin() for site, own in logits.items()}).sum()
    assert any(gradient.abs().max() > 1e-3 for gradient in torch.autograd.grad(elsewhere, list(logits.values())))
    if name == "two layers, independent":  # the only factorized guide here
        assert (exact.elbo(pair, DATA) < best.elbo).all()


def test_a_model_that_takes_no_axis_of_codes_has_a_best_factorized_posterior():
    """Its guide, which has one latent, is a starting point there, too."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([[0.0, 3.0], [3.0, 0.0]])).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 2)).to_event(1)).reshape(len(x), 4)
            pyro.sample("x", dist.Normal((z[:, 0] - z[:, 2]).square(), 0.1), obs=x)

    pair, x = Pair(model, guide), torch.ones(1)
    with pytest.warns(UserWarning, match="run for one joint code after another"):
        best = exact.mean_field(pair, x)
    with pytest.warns(UserWarning, match="run for one joint code after another"):
        assert exact.elbo(pair, x) <= best.elbo
    assert best.logits.shape == (1, 2, 2)


def test_continuous_latents_are_refused_with_the_name_of_their_bound():
    for function in (exact.posterior, exact.sample_posterior, exact.mean_field, exact.log_evidence):
        with pytest.raises(ValueError, match=r"found 'z', over which no sum can be .* collapsed importance-w"):
            function(Pair(m2_model, m2_guide), DATA)
