"""The reward for using all categories: sums against the formula over all joint codes, and estimates against sums."""

import problems
import pyro
import pytest
import torch
from brute import every_code, sharp, weights_of
from pairs import DATA, B, standard_errors, with_gradients
from problems import PROBLEMS

from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.usage_entropy import UsageEntropy
from pyro_gvae.estimators import estimator, with_kl_weight, with_usage_entropy
from pyro_gvae.programs.draws import lay_out_draws
from pyro_gvae.programs.layout import lay_out
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.programs.usage import drawn_usage, summed_usage

PROBLEM = next(problem for problem in PROBLEMS if problem.name == "bernoulli-learned")
#: Number of data that have each latent, where it is not all of them.
COUNTS = {"a global code": {"style": 1}}


def entropy(probs):
    return -(probs * probs.log()).sum()


@pytest.mark.parametrize("weight", [0.0, 0.7, torch.tensor(2.0)])
def test_the_use_of_independent_digits_is_rewarded(weight):
    vae, x = PROBLEM.vae(), PROBLEM.x()
    expected = -problems.elbo_in_a_loop(PROBLEM, vae, x).sum() - weight * len(x) * entropy(
        vae.encoder(x).softmax(-1).mean(0)
    )
    found = UsageEntropy(ExactELBO(), weight).differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(problems.gradients(found, vae), problems.gradients(expected, vae))


@pytest.mark.parametrize("name", ["two layers, bottom-up", "bits and an integer", "a global code"])
def test_latents_that_depend_on_others_are_summed(name):
    pair = sharp(name, 1.0)
    said = every_code(pair, DATA)
    weights = weights_of(said)  # (S, B)
    expected = ExactELBO().differentiable_loss(pair.model, pair.guide, DATA)
    for latent in said[0].digits:
        own = torch.tensor([one.digits[latent] for one in said])
        probs = torch.stack([weights[own == k].sum(0).mean() for k in range(int(own.max()) + 1)])
        expected = expected - 0.7 * COUNTS.get(name, {}).get(latent, B) * entropy(probs)
    found = UsageEntropy(ExactELBO(), 0.7).differentiable_loss(pair.model, pair.guide, DATA)
    torch.testing.assert_close(found, expected)
    leaves = [value.unconstrained() for value in pyro.get_param_store().values()]
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, **options), torch.autograd.grad(expected, leaves, **options)
    )


@pytest.mark.parametrize("name", ["two layers, bottom-up", "a global code"])
def test_estimates_of_the_use_and_their_gradients_have_the_mean_of_the_sums(name):
    pair = sharp(name, 1.0)
    runs = bind_pair(pair, DATA)
    layouts = lay_out(runs), lay_out_draws(runs)

    def climbed(use):
        """Add an arbitrary linear function of the probabilities."""
        values = torch.stack([(one.probs * torch.arange(one.probs.numel()).view_as(one.probs)).sum() for one in use])
        values.sum().backward()
        return values.sum().detach()

    expected = with_gradients(lambda: climbed(summed_usage(runs, layouts[0])))
    rows = [with_gradients(lambda: climbed(drawn_usage(runs, layouts[1], 500))) for _ in range(16)]
    found = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    assert standard_errors(found, expected) < 8.3  # Student's t, 15 degrees of freedom: like 5 of a normal variable
    wrong = {key: value + 0.1 * (key != "loss") for key, value in expected.items()}
    assert standard_errors(found, wrong) > 8.3


def test_it_stays_where_the_kl_is_left_out():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    losses = []
    for weight in (0.0, 1.0):
        model, guide, elbo = with_usage_entropy(with_kl_weight(estimator("exact"), 0.0), weight).bind(vae)
        losses.append(elbo.loss(model, guide, x))
    assert losses[0] - losses[1] == pytest.approx(len(x) * entropy(vae.encoder(x).softmax(-1).mean(0)).item())


@pytest.mark.parametrize("weight", [-0.1, float("inf"), torch.ones(2)])
def test_weights_out_of_range_are_refused(weight):
    with pytest.raises(ValueError, match="Expected one finite weight of the entropy of at least 0, but found"):
        UsageEntropy(ExactELBO(), weight)


def test_a_guide_that_is_not_read_is_not_rewarded():
    with pytest.raises(ValueError, match="Expected an objective with a guide to reward, but found the log-evidence"):
        with_usage_entropy(estimator("exact-evidence"), 0.1)
