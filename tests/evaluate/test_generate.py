"""Codes, reconstructions and samples against their distributions."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute import every_code, latents_of
from pairs import DATA, PROGRAMS, FixedNormal, chain_model, no_guide, second_order_model, topic_guide, words_model
from problems import PROBLEMS, B, D, K, N, codes, joint_in_a_loop, log_q_in_a_loop
from pyro import poutine
from pyro.distributions.transforms import SigmoidTransform

from pyro_gvae import exact
from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.evaluate.generate import digits_of, encode, numbers_of, reconstruct, sample
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.models.hidden_markov_model import HiddenMarkovModel
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.joint_vae import JointVAE

PROBLEM = next(problem for problem in PROBLEMS if problem.name == "bernoulli-learned")


def best(scores):
    """Return the code with the highest score (S, B) for each datum: (B, N, K)."""
    return torch.stack([code for _, code in codes()])[scores.argmax(0)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_modes_are_the_highest_of_all_codes(problem):
    vae, x = problem.vae(), problem.x()
    assert torch.equal(encode(vae, x), best(log_q_in_a_loop(vae, x)))
    assert torch.equal(encode(vae, x, "exact"), best(joint_in_a_loop(problem, vae, x)))
    assert (encode(vae, x).sum(-1) == 1).all()


def test_the_two_modes_differ_where_the_guide_is_wrong():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    assert not torch.equal(encode(vae, x), encode(vae, x, "exact"))


def test_drawn_codes_have_the_guides_frequencies():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    drawn = encode(vae, x.repeat(2000, 1), "sample").unflatten(0, (2000, B))
    probs = vae.encoder(x).softmax(-1)
    error = (probs * (1 - probs) / 2000).sqrt()
    assert ((drawn.mean(0) - probs).abs() < 5 * error + 1e-3).all()
    assert not ((encode(vae, x) - probs).abs() < 5 * error + 1e-3).all()


@pytest.mark.parametrize("name", ["two layers, top-down", "bits and an integer", "two layers, independent"])
def test_codes_of_several_latents_by_name(name):
    pyro.clear_param_store()
    pair = Pair(*PROGRAMS[name][:2])
    said = every_code(pair, DATA)
    joint = torch.stack([sum(one.log_p.values()) for one in said])  # (S, B)
    found = {kind: encode(pair, DATA, kind) for kind in ("map", "exact", "sample")}
    for b in range(len(DATA)):
        digits = {
            kind: {latent: one[b, 0].argmax().item() for latent, one in own.items()} for kind, own in found.items()
        }
        assert digits["exact"] == said[joint[:, b].argmax()].digits
        given = said
        for latent in latents_of(pair, DATA):  # the most probable value of each, given the earlier ones
            best = max(given, key=lambda one: one.log_q[latent][b].item())
            assert best.digits[latent] == digits["map"][latent]
            given = [one for one in given if one.digits[latent] == digits["map"][latent]]
    assert all((code.sum(-1) == 1).all() for code in found["sample"].values())


def test_continuous_latents_have_their_mean_beside_the_codes():
    pyro.clear_param_store()
    pair = Pair(*PROGRAMS["a normal given a code"][:2])
    found = encode(pair, DATA)
    fn = pyro.poutine.trace(pyro.poutine.condition(pair.guide, data={"y": found["y"].squeeze(-2)})).get_trace(DATA)
    torch.testing.assert_close(found["z"], fn.nodes["z"]["fn"].mean)
    assert encode(pair, DATA, "sample")["z"].shape == found["z"].shape
    with pytest.raises(ValueError, match="found 'z', over which no sum"):
        encode(pair, DATA, "exact")


@pytest.mark.parametrize(
    "fn", [dist.Cauchy(0.0, 1.0), dist.TransformedDistribution(dist.Normal(0.0, 1.0), [SigmoidTransform()])]
)
def test_a_continuous_latent_without_a_mean_is_refused(fn):
    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("z", fn.expand([len(x)]))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    pair = Pair(program, poutine.block(program, hide=["x"]))
    with pytest.raises(ValueError, match=r"latents that have a mean, but found 'z', a (Cauchy|Transformed).*sample"):
        encode(pair, torch.zeros(2))
    assert encode(pair, torch.zeros(2), "sample")["z"].isfinite().all()


@pytest.mark.parametrize("kind", ["map", "exact"])
def test_reconstructions_are_means_at_the_code(kind):
    for problem in PROBLEMS:
        vae, x = problem.vae(), problem.x()
        expected = problem.likelihood(vae, vae.decoder(encode(vae, x, kind)))
        if problem.name.startswith("categorical"):
            mean = (expected.probs * torch.arange(expected.probs.shape[-1])).sum(-1)
        else:
            mean = expected.mean
        torch.testing.assert_close(reconstruct(vae, x, kind), mean)


def test_samples_have_the_models_mean():
    vae = PROBLEM.vae()
    prior = vae.prior_logits.log_softmax(-1)
    weights = torch.stack([sum(prior[n, k] for n, k in enumerate(z)) for z, _ in codes()]).exp()
    means = torch.stack([torch.sigmoid(vae.decoder(code)) for _, code in codes()])
    expected = (weights.unsqueeze(-1) * means).sum(0)
    for pixels in (False, True):
        found = sample(vae, 4000, pixels=pixels)
        assert found.shape == (4000, D) and not found.requires_grad
        assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / math.sqrt(4000)).all()
        assert (set(found.unique().tolist()) == {0.0, 1.0}) == pixels


def test_samples_are_those_of_the_factorized_prior():
    """A seed gives the same numbers as in earlier versions."""
    vae = PROBLEM.vae()
    torch.manual_seed(1)
    found = sample(vae, 7, pixels=True)
    torch.manual_seed(1)
    drawn = FactorizedOneHotCategorical(logits=vae.prior_logits).sample((7,))
    assert torch.equal(found, vae.observation(vae.decoder(drawn)).sample())


READY = {
    "bits": lambda: BernoulliVAE(D, 3, (5,)),
    "layers": lambda: HierarchicalCategoricalVAE(D, 3, 2, 3, (5,)),
    "beside a Gaussian": lambda: JointVAE(D, 2, 3, 2, (5,)),
    "a mixture": lambda: GaussianMixtureVAE(D, 3, 2, (5,)),
}


def ready(name):
    torch.manual_seed(0)
    vae = READY[name]()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3)
    return vae, torch.rand(B, D).round()


@pytest.mark.parametrize("name", READY)
def test_samples_of_ready_programs_are_those_of_stock_pyro(name):
    """A z-test for the mean of each pixel and for the product of each pair of pixels."""
    vae, _ = ready(name)
    found = sample(vae, 4000, pixels=True)
    model = pyro.poutine.uncondition(discretize(vae.model))
    with torch.no_grad():
        expected = pyro.poutine.trace(model).get_trace(torch.zeros(4000, D)).nodes["x"]["value"]
    assert found.shape == expected.shape == (4000, D)
    for own, other in ((found, expected), (found * found.roll(1, 1), expected * expected.roll(1, 1))):
        error = ((own.var(0) + other.var(0)) / 4000).sqrt()
        assert ((own.mean(0) - other.mean(0)).abs() < 5 * error + 1e-6).all()
    assert not ((found.mean(0) - 0.5).abs() < 5 * error).all()


@pytest.mark.parametrize("name", READY)
def test_reconstructions_of_ready_programs_are_those_of_stock_pyro(name):
    vae, x = ready(name)
    codes = encode(vae, x)
    if name == "bits":
        values = {"z": codes[..., 1]}
    else:
        one_digit = {"y"} if name == "a mixture" else set()
        values = {site: value.squeeze(-2) if site in one_digit else value for site, value in codes.items()}
    model = pyro.poutine.condition(discretize(vae.model), data=values)
    with torch.no_grad():
        expected = pyro.poutine.trace(model).get_trace(x).nodes["x"]["fn"].mean
    torch.testing.assert_close(reconstruct(vae, x), expected)


def test_programs_of_sequences_have_no_one_observation():
    with pytest.raises(ValueError, match="Expected a model that observes x in one statement, but found 4"):
        reconstruct(HiddenMarkovModel(2, 3, hidden=4, observation="gaussian"), torch.randn(5, 4, 2))


def test_layers_are_in_the_order_of_their_numbers():
    layers = {f"z{layer}": torch.full((1, 1, 2), float(layer)) for layer in (10, 2, 1)}
    assert digits_of(layers)[0, :, 0].tolist() == [1, 2, 10] and list(numbers_of(layers)) == ["z1", "z2", "z10"]


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"Expected a kind of code among map, sample, exact, but found 'mode'"):
        encode(PROBLEM.vae(), PROBLEM.x(), "mode")
    assert encode(PROBLEM.vae(), PROBLEM.x()).shape == (B, N, K)


@pytest.mark.parametrize("count", [0, -1])
def test_no_samples_are_refused(count):
    with pytest.raises(ValueError, match=f"Expected num_samples of at least 1, but found {count}"):
        sample(PROBLEM.vae(), count)


def test_latents_that_the_guide_lacks_are_encoded_given_the_others():
    """If the guide has none, they get the most probable path; otherwise the most probable code given the guide's."""
    pyro.clear_param_store()
    for model in (chain_model, second_order_model):
        pair = Pair(model, no_guide)
        found, expected = encode(pair, DATA), encode(pair, DATA, "exact")
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    found = encode(Pair(words_model, topic_guide), DATA)
    topic = found["topic"].squeeze(-2)
    given = pyro.poutine.condition(words_model, {"topic": topic})
    expected = exact.posterior(Pair(given, no_guide), DATA).marginals
    assert torch.equal(found["on"].argmax(-1), expected.argmax(-1))
    pyro.set_rng_seed(0)
    drawn = encode(Pair(words_model, no_guide), DATA.repeat(400, 1), "sample")["on"].unflatten(0, (400, -1))
    mean = exact.posterior(Pair(words_model, no_guide), DATA).marginals["on"]
    assert ((drawn.mean(0) - mean).abs() / (mean * (1 - mean) / 400).sqrt()).max() < 5


def test_a_code_given_the_mean_of_a_continuous_latent():
    centres = torch.tensor([-1.0, 0.2, 2.0]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5]).double()))
            c = pyro.sample("c", dist.Normal(centres[k], 0.5))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", FixedNormal(2 * x[:, 0], 0.3))

    found = encode(Pair(model, guide), DATA)
    torch.testing.assert_close(found["c"], 2 * DATA[:, 0])
    scores = torch.tensor([0.2, 0.3, 0.5]).double().log() + dist.Normal(centres, 0.5).log_prob(2 * DATA[:, :1])
    assert torch.equal(found["k"].squeeze(-2).argmax(-1), scores.argmax(-1))
