"""Losses with codes drawn without replacement: brute force over all sets, exact gradients, and several latents."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from draws import exact_gradient, standard_scores
from pairs import DATA, PROGRAMS, linear, m2_guide, m2_model, observe, one_hot, weights, with_gradients
from problems import Rows

from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.distributions.without_replacement import Prefixes, log_exceeds
from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.elbos.without_replacement import NormalizedReinforceWOR, ReinforceWOR, UnorderedSet
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair
from pyro_gvae.programs import without_replacement

LOSSES = [UnorderedSet, ReinforceWOR, NormalizedReinforceWOR]


@pytest.fixture
def given(monkeypatch):
    """Fix the codes that each datum draws, and the variables of all other codes."""

    def give(codes, thresholds):
        def extend(beam, site):
            last = joint_codes(*codes.shape[-2:], 0, 1, dtype=codes.dtype).expand(1, *codes.shape[1:])
            rows = torch.cat([codes, last])
            beam.codes["z"] = rows
            beam.prefixes = Prefixes(site.score(beam.codes).detach(), thresholds.expand(len(rows), -1))

        monkeypatch.setattr(without_replacement._Beam, "extend", extend)

    return give


def all_sets(size, num_codes, log_q):
    """Return all sets of P codes as numbers, and the probability of each: (sets, P), (sets,)."""
    sets = list(itertools.combinations(range(len(log_q)), num_codes))
    probs = log_q.exp().tolist()

    def probability(order):
        found, left = 1.0, 1.0
        for s in order:
            found, left = found * probs[s] / left, left - probs[s]
        return found

    return torch.tensor(sets), torch.tensor(
        [sum(map(probability, itertools.permutations(codes))) for codes in sets], dtype=torch.float64
    )


def gradients(loss, rows, num_codes):
    found = loss(num_particles=num_codes).loss_and_grads(rows.model, rows.guide, rows.x)
    return found, rows.gradients()


@pytest.mark.parametrize(("size", "num_codes"), [((2, 3), 2), ((2, 3), 4), ((3, 2), 3), ((3, 3), 2), ((3, 3), 3)])
def test_the_mean_over_all_sets_is_the_exact_gradient(size, num_codes, given):
    """Each datum draws a different set; the mean, weighted by the probabilities of the sets, is the exact gradient."""
    one, codes = Rows("mlp", *size), joint_codes(*size, dtype=torch.float64)
    log_q = (codes * one.logits.detach()[0].log_softmax(-1)).sum((-2, -1))
    sets, probs = all_sets(size, num_codes, log_q)
    assert probs.sum().item() == pytest.approx(1.0, rel=1e-12)
    given(codes[sets].transpose(0, 1), torch.zeros(1, len(sets)).double())
    rows = Rows("mlp", *size, len(sets))
    _, found = gradients(UnorderedSet, rows, num_codes)
    expected = exact_gradient("mlp", *size)
    torch.testing.assert_close(probs @ found, expected, rtol=1e-8, atol=1e-8)
    assert ((found - expected).abs() > 0.01).any(-1).all()  # no single set has it


@pytest.mark.parametrize(("size", "num_codes"), [((2, 3), 2), ((3, 2), 3)])
def test_the_mean_over_all_sets_and_thresholds_is_the_exact_gradient(size, num_codes, given):
    """The density of a set and a threshold is that of the largest other variable, if it is below those of the set."""
    one, codes = Rows("mlp", *size), joint_codes(*size, dtype=torch.float64)
    log_q = (codes * one.logits.detach()[0].log_softmax(-1)).sum((-2, -1))
    sets = torch.tensor(list(itertools.combinations(range(len(log_q)), num_codes)))
    others = (1 - log_q[sets].exp().sum(-1)).log()
    step = 0.2
    points = torch.arange(-9.0, 40.0, step, dtype=torch.float64)
    below = others.unsqueeze(-1) - points  # (sets, points)
    log_density = below - below.exp() + log_exceeds(log_q[sets].unsqueeze(-1) - points).sum(1)
    probs = (log_density.exp() * step).flatten()
    assert probs.sum().item() == pytest.approx(1.0, rel=1e-10)
    each = codes[sets].transpose(0, 1).repeat_interleave(len(points), 1)  # (P, sets and points, N, K)
    given(each, points.repeat(len(sets)).unsqueeze(0))
    expected, found = exact_gradient("mlp", *size), {}
    for loss in (ReinforceWOR, NormalizedReinforceWOR):
        rows = Rows("mlp", *size, len(probs))
        _, every = gradients(loss, rows, num_codes)
        found[loss] = probs @ every
    torch.testing.assert_close(found[ReinforceWOR], expected, rtol=1e-8, atol=1e-8)
    assert (found[NormalizedReinforceWOR] - expected).abs().max() > 1e-3  # it is biased


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_codes", [9, 20])
def test_all_codes_give_the_exact_gradient(loss, num_codes):
    rows = Rows("mlp", 2, 3, 4)
    found, every = gradients(loss, rows, num_codes)
    expected = exact_gradient("mlp", 2, 3)
    torch.testing.assert_close(every, expected.expand(4, -1), rtol=1e-9, atol=1e-9)
    one = Rows("mlp", 2, 3)
    model, guide, elbo = estimator("exact").bind(one)
    assert found == pytest.approx(4 * elbo.loss(model, guide, one.x), rel=1e-9)


def test_different_codes_have_less_variance_than_independent_ones():
    spread = {}
    for loss in (UnorderedSet, NormalizedReinforceWOR, ReinforceLOO):
        torch.manual_seed(0)
        _, found = gradients(loss, Rows("mlp", 3, 2, 4000), 4)
        spread[loss] = found.var(0).sum().item()
    assert spread[UnorderedSet] < 0.5 * spread[ReinforceLOO]
    assert spread[NormalizedReinforceWOR] < 0.5 * spread[ReinforceLOO]


def test_normalized_weights_are_biased():
    rows = Rows("mlp", 3, 2, 20_000)
    _, found = gradients(NormalizedReinforceWOR, rows, 2)
    assert standard_scores(found, exact_gradient("mlp", 3, 2), 3, 2).max() > 5


@pytest.mark.parametrize("loss", LOSSES)
def test_the_three_forms_of_the_loss_agree(loss):
    rows, elbo = Rows("mlp", 3, 2, 4), loss(num_particles=3)
    losses = []
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        torch.manual_seed(1)
        losses.append(method(rows.model, rows.guide, rows.x))
    assert losses[0] == losses[1] == pytest.approx(losses[2].item())
    found = rows.gradients()
    rows.zero_grad()
    losses[2].backward()
    torch.testing.assert_close(rows.gradients(), found)


def counts_model(x):
    with pyro.plate("data", len(x)):
        before = pyro.sample("before", dist.Poisson(torch.ones(()).double()))
        y = pyro.sample("y", one_hot(weights(3)))
        n = pyro.sample("n", dist.Poisson(1 + y[..., 0]))
        observe(y, 0.3 * (n + before).unsqueeze(-1), obs=x)


def counts_guide(x):
    with pyro.plate("data", len(x)):
        before = pyro.sample("before", dist.Poisson(weights(1).exp()))
        y = pyro.sample("y", one_hot(linear(3, x) + before.unsqueeze(-1) * weights(3)))
        pyro.sample("n", dist.Poisson(1 + (y @ weights(3, 1).exp()).squeeze(-1)))


def test_latents_without_a_path_are_scored():
    """Test a latent that the codes depend on, which all codes share, and one that depends on the code."""

    def repeated(name, copies=150, **options):
        def copied(program):
            def run(x):
                with pyro.plate("copies", copies, dim=-2):
                    program(x)

            return run

        model, guide, elbo = estimator(name, **options).bind(Pair(copied(counts_model), copied(counts_guide)))
        pyro.set_rng_seed(0)
        rows = [with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)) for _ in range(16)]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    found, reference = repeated("unordered-set", num_particles=2), repeated("reinforce-loo", num_particles=4)
    for name, values in found.items():
        error = ((values.var(0) + reference[name].var(0)) / len(values)).sqrt()
        assert ((values.mean(0) - reference[name].mean(0)).abs() / (error + 1e-9)).max() < 6


@pytest.mark.parametrize("name", ["unordered-set", "reinforce-wor"])
def test_a_code_without_more_codes_is_exact_in_programs_of_several_latents(name):
    for program in ("two layers, bottom-up", "a normal given a code", "a code given a normal", "nested plates"):
        model, guide, elbo = estimator(name, num_particles=48).bind(Pair(*PROGRAMS[program][:2]))
        found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))  # noqa: B023
        exactly = estimator("exact").elbo()
        expected = with_gradients(lambda: exactly.loss_and_grads(model, guide, DATA))  # noqa: B023
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_programs_without_an_axis_of_codes_keep_the_normal_of_each_prefix():
    def dense(out, *inputs):
        return linear(out, *(value.reshape(len(DATA), -1) for value in inputs))

    guide = functools.partial(m2_guide, dense=dense)
    model, guide, elbo = estimator("unordered-set", num_particles=3).bind(Pair(m2_model, guide))
    with pytest.warns(UserWarning, match="one joint code after another"):
        found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
    exactly = estimator("exact").elbo()
    expected = with_gradients(lambda: exactly.loss_and_grads(m2_model, m2_guide, DATA))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
