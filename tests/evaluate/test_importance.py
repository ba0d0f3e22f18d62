"""Importance-weighted bounds against the sum over all codes, in chunks, and warnings where they are unreliable."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PROBLEMS, B, K, N, codes, evidence_in_a_loop, joint_in_a_loop, log_q_in_a_loop

from pyro_gvae import exact
from pyro_gvae.evaluate.importance import ImportanceWeighted, importance_weighted, log_importance_weights
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize, weigh_kl
from pyro_gvae.models.categorical_vae import CategoricalVAE

PROBLEM = next(problem for problem in PROBLEMS if problem.name == "bernoulli-learned")


def fair(problem):
    """Return a model whose guide draws every code now and then."""
    vae = problem.vae()
    with torch.no_grad():
        vae.encoder[-2].weight.mul_(0.2)
        vae.encoder[-2].bias.mul_(0.2)
    return vae


def repeated(x, count):
    """Repeat each datum."""
    return x.repeat(count, 1)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_bounds_agree_with_the_sum_over_all_codes(problem):
    vae, x = fair(problem), problem.x()
    particles, repeats = 2000, 20
    found = importance_weighted(vae, repeated(x, repeats), particles)
    elbos, bounds, sizes = (part.unflatten(0, (repeats, B)) for part in found[:3])
    size = sizes.mean(0)
    assert (size > 20).all() and (size < 0.9 * particles).any()
    error = 1 / (size * repeats).sqrt()
    assert ((bounds.mean(0) - evidence_in_a_loop(problem, vae, x)).abs() < 5 * error + 1 / size).all()
    # The variance of log w is known from the codes.
    log_q = log_q_in_a_loop(vae, x)
    log_w = joint_in_a_loop(problem, vae, x) - log_q
    elbo = (log_q.exp() * log_w).sum(0)
    deviation = (log_q.exp() * (log_w - elbo).square()).sum(0).sqrt()
    assert ((elbos.mean(0) - elbo).abs() < 5 * deviation / math.sqrt(particles * repeats)).all()
    assert not (
        (elbos.mean(0) - bounds.mean(0)).abs() < 5 * error + 1 / size
    ).all()  # the control: the two numbers differ


def test_sampling_error_and_sample_size_are_those_of_repeated_draws():
    vae, x = fair(PROBLEM), PROBLEM.x()
    found = importance_weighted(vae, repeated(x, 400), 500)
    spread = found.bound.unflatten(0, (400, B)).std(0)
    claimed = found.sampling_error.unflatten(0, (400, B)).mean(0)
    torch.testing.assert_close(spread, claimed, rtol=0.2, atol=0.01)
    log_q = log_q_in_a_loop(vae, x)
    log_w = joint_in_a_loop(PROBLEM, vae, x) - log_q
    share = (log_q + log_w).logsumexp(0).mul(2).exp() / (log_q + 2 * log_w).logsumexp(0).exp()  # E[w]^2 / E[w^2]
    size = found.effective_sample_size.unflatten(0, (400, B)).mean(0)
    torch.testing.assert_close(size / 500, share, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("max_memory", [None, 20_000], ids=["at once", "in chunks"])
def test_weights_are_those_of_the_bounds(max_memory):
    vae, x, particles = fair(PROBLEM), PROBLEM.x(), 300
    pyro.set_rng_seed(0)
    found = importance_weighted(vae, x, particles, max_memory=max_memory)
    pyro.set_rng_seed(0)
    log_weights = log_importance_weights(vae, x, particles, max_memory=max_memory)
    assert log_weights.shape == (particles, B)
    torch.testing.assert_close(log_weights.mean(0), found.elbo)
    torch.testing.assert_close(log_weights.logsumexp(0) - math.log(particles), found.bound)
    with pytest.raises(ValueError, match="at least one particle"):
        log_importance_weights(vae, x, 0)


def test_each_datum_has_its_own_bound():
    """Not one bound of the batch: pyro-ppl/pyro#3104."""
    vae, x = fair(PROBLEM), PROBLEM.x()
    together = importance_weighted(vae, x, 3000)
    alone = torch.cat([importance_weighted(vae, row.unsqueeze(0), 3000).bound for row in x])
    assert together.bound.shape == (B,)
    assert ((together.bound - alone).abs() < 5 * 2**0.5 * together.sampling_error + 0.01).all()
    joint = vae_weights_of_the_batch(vae, x, 3000)
    assert abs(joint - together.bound.sum()) > 5 * together.sampling_error.square().sum().sqrt()


def vae_weights_of_the_batch(vae, x, particles):
    """Compute the wrong bound, which weights samples by products over the batch."""
    q = dist.OneHotCategorical(logits=vae.encoder(x)).to_event(1)
    z = q.sample((particles,))
    prior = dist.OneHotCategorical(logits=vae.prior_logits).to_event(1)
    log_w = vae.observation(vae.decoder(z)).log_prob(x) + prior.log_prob(z) - q.log_prob(z)
    return (log_w.sum(-1).logsumexp(0) - math.log(particles)).item()


@pytest.mark.parametrize(
    ("particles", "max_memory"), [(1, 1.0), (7, 1.0), (7, 3e4), (500, 3e4), (1, None), (7, None), (500, None)]
)
def test_chunks_change_no_shape_and_no_number(particles, max_memory):
    vae, x = fair(PROBLEM), PROBLEM.x()
    found = importance_weighted(vae, x, particles, max_memory=max_memory)
    assert all(part.shape == (B,) for part in found[:4])
    assert ((found.effective_sample_size >= 1 - 1e-6) & (found.effective_sample_size <= particles + 1e-6)).all()
    evidence = exact.log_evidence(vae, x)
    if particles == 500:
        assert ((found.bound - evidence).abs() < 5 * found.sampling_error + 0.05).all()
    if particles == 1:
        torch.testing.assert_close(found.bound, found.elbo)


def test_more_particles_are_nearer_from_below():
    vae, x = fair(PROBLEM), PROBLEM.x()
    evidence, means = exact.log_evidence(vae, x), []
    for particles in (1, 5, 50):
        bounds = importance_weighted(vae, repeated(x, 300), particles).bound.unflatten(0, (300, B))
        means.append(bounds.mean(0).sum().item())
        assert means[-1] < evidence.sum() + 5 * (bounds.sum(-1).std() / math.sqrt(300))
    assert means[0] < means[1] - 0.05 and means[1] < means[2] - 0.01


def test_codes_beyond_counting():
    vae = CategoricalVAE(6, 40, 30, (5,))  # 30^40 codes
    found = importance_weighted(vae, torch.rand(3, 6).round(), 20)
    assert (found.bound >= found.elbo - 1e-4).all() and found.bound.isfinite().all()


def test_scales_and_masks_are_those_of_the_exact_sum():
    vae, x = fair(PROBLEM), PROBLEM.x()
    keep = torch.tensor([True, False, True, False])
    programs = [pyro.poutine.mask(discretize(program), mask=keep) for program in (vae.model, vae.guide)]
    pair = Pair(*(pyro.poutine.scale(program, scale=3.0) for program in programs))
    found = importance_weighted(pair, x, 4000)
    wanted = exact.log_evidence(pair, x)
    torch.testing.assert_close(found.bound[~keep], torch.zeros(2, dtype=x.dtype))
    assert ((found.bound - wanted).abs() < 3 * (5 * found.sampling_error + 0.01)).all()
    assert ((found.elbo - exact.elbo(pair, x)).abs() < 0.5).all()


def test_a_weighted_kl_has_no_evidence():
    vae, x = fair(PROBLEM), PROBLEM.x()
    with pytest.raises(ValueError, match=r"Expected all sites of the model to share one scale"):
        importance_weighted(Pair(weigh_kl(vae.model, beta=0.5), weigh_kl(vae.guide, beta=0.5)), x, 10)
    with pytest.raises(ValueError, match=r"share one scale, .* but found several: log p\(x\) is not defined"):
        importance_weighted(Pair(vae.model, weigh_kl(vae.guide, beta=2.0)), x, 10)


def test_no_particles_are_refused():
    with pytest.raises(ValueError, match=r"Expected at least one particle, but found num_particles=0"):
        importance_weighted(PROBLEM.vae(), PROBLEM.x(), 0)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_neighbours_of_the_mode_in_a_loop(problem):
    vae, x = problem.vae(), problem.x()
    joint = joint_in_a_loop(problem, vae, x)
    modes = vae.encoder(x).argmax(-1).tolist()
    expected = []
    for b, mode in enumerate(modes):
        near = [s for s, (z, _) in enumerate(codes()) if sum(i != j for i, j in zip(z, mode, strict=True)) <= 1]
        assert len(near) == 1 + N * (K - 1)
        expected.append(joint[near, b].logsumexp(0))
    found = importance_weighted(vae, x, 3)
    torch.testing.assert_close(found.neighbourhood, torch.stack(expected))
    assert (found.neighbourhood <= exact.log_evidence(vae, x)).all()


def test_warnings_say_how_many_data_they_are_about():
    def found(few, many, missed=0):
        size = torch.cat([torch.full((few,), 9.0), torch.full((many,), 50.0)])
        bound = torch.zeros(few + many)
        near = torch.where(torch.arange(few + many) < missed, 0.2, -0.2)
        return ImportanceWeighted(bound, bound, size, near, 100).warnings()

    assert found(0, 100) == found(1, 99) == found(0, 100, missed=1) == []
    assert found(2, 98)[0].startswith("2 of 100 data have fewer than 10 effective samples of P = 100")
    assert found(0, 100, missed=3)[0].startswith("3 of 100 data have probable codes near the guide's mode that P = 100")
    assert len(found(5, 5, missed=3)) == 2 and "Try more particles" in found(1, 0)[0]


def test_a_guide_that_is_sure_of_the_wrong_code_is_found_out():
    """All its samples are the same code, so their weights are equal and the effective sample size is maximal."""
    vae, other, x = PROBLEM.vae(), PROBLEM.vae(), PROBLEM.x()
    with torch.no_grad():
        other.encoder[2].bias.copy_(torch.tensor([90.0, -90.0] * 3))
    found = importance_weighted(Pair(vae.model, other.guide), x, 50)
    assert (found.effective_sample_size > 49).all()
    assert (found.bound < exact.log_evidence(vae, x) - 0.5).any()  # it is right to warn
    assert any("have missed" in warning for warning in found.warnings())


def test_a_good_guide_earns_no_warning():
    vae, x = fair(PROBLEM), PROBLEM.x()
    assert importance_weighted(vae, x, 1000).warnings() == []


SEQUENCE = torch.linspace(-1.0, 1.0, 6).double().reshape(3, 2)


def one_sequence(x):
    """All rows are one datum."""
    yield pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
    pyro.sample("x", dist.Normal(torch.zeros(x.shape).double(), 1.0).to_event(2), obs=x)


def columns(x):
    """Each column is a datum."""
    with pyro.plate("columns", x.shape[1]):
        yield pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
        pyro.sample("x", dist.Normal(torch.zeros(x.shape[::-1]).double(), 1.0).to_event(1), obs=x.T)


def a_common_statement(x):
    """Each row is a datum, and one more number belongs to none of them."""
    with pyro.plate("rows", len(x)):
        yield pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
        pyro.sample("x", dist.Normal(torch.zeros(x.shape).double(), 1.0).to_event(1), obs=x)
    pyro.sample("scale", dist.Normal(torch.tensor(0.0).double(), 1.0), obs=torch.tensor(2.0).double())


@pytest.mark.parametrize("guide", [lambda program: next(program), lambda program: None], ids=["drawn", "summed"])
@pytest.mark.parametrize("program", [one_sequence, columns, a_common_statement])
def test_rows_are_scored_in_parts_only_where_each_is_a_datum(program, guide):
    """The observations do not depend on the code, so that every weight is p(x)."""
    pair = Pair(lambda x: list(program(x)), lambda x: guide(program(x)))
    bound = importance_weighted(pair, SEQUENCE, 2, max_memory=64).bound
    expected = exact.log_evidence(pair, SEQUENCE)
    assert bound.numel() == expected.numel()
    torch.testing.assert_close(bound.sum(), expected.sum())
