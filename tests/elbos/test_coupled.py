"""Antithetic pairs: the published formulas, their coupling, and the exact gradient as their mean."""

import itertools

import draws
import pyro
import pytest
import torch
from draws import LeaveOneOut

from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.elbos import coupled
from pyro_gvae.elbos.coupled import DisARM, DisARMIW, couple
from pyro_gvae.elbos.sampled import Estimate, SampledELBO
from pyro_gvae.estimators import estimator
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE

CASES = [(DisARM, 1, 2), (DisARM, 3, 2), (DisARMIW, 1, 3), (DisARMIW, 3, 3), (DisARMIW, 2, 8)]
PROBS = {
    "flat": [0.25] * 4,
    "two": [0.8, 0.2],
    "sharp": [0.9, 0.06, 0.04],
    "mixed": [0.1, 0.4, 0.05, 0.3, 0.15],
    "excluded": [0.0, 0.7, 0.3],
}
EACH_PROBS = pytest.mark.parametrize("probs", PROBS.values(), ids=PROBS)


class Reinforce(SampledELBO):
    """The score-function estimator without a baseline."""

    def estimate(self, target):
        draws = target.draw(self.num_particles)
        signal = (draws.log_joint - draws.log_q).detach()  # (P, B)
        return Estimate(signal.mean(0), (signal * draws.scores[0].log_q + draws.log_joint).mean(0).sum())


def pairs_of(probs, count):
    """Draw pairs of codes from q, (K,) or (B, N, K)."""
    q = probs if probs.dim() == 3 else probs[None, None]
    return couple(q, torch.rand(count, *q.shape, dtype=q.dtype))


def joint_table(probs, *, descending=False):
    """Compute p(z, z') of the stick-breaking coupling, (K, K), by enumerating all pairs of flips."""
    order = sorted(range(len(probs)), key=lambda k: probs[k], reverse=descending)
    table = torch.zeros(len(probs), len(probs), dtype=torch.float64)
    for outcome in itertools.product([(0, 0), (0, 1), (1, 0), (1, 1)], repeat=len(probs) - 1):
        weight = 1.0
        for i, (mine, other) in enumerate(outcome):
            p = probs[order[i]] / sum(probs[k] for k in order[i:])
            both, neither, one = max(0.0, 2 * p - 1), max(0.0, 1 - 2 * p), min(p, 1 - p)
            weight *= both if mine and other else one if mine or other else neither
        z, z_other = (order[[*flips, 1].index(1)] for flips in zip(*outcome, strict=True))
        table[z, z_other] += weight
    return table


@EACH_PROBS
def test_pairs_are_drawn_from_the_coupling(probs):
    table, q = joint_table(probs), torch.tensor(probs, dtype=torch.float64)
    torch.testing.assert_close(table.sum(0), q)
    torch.testing.assert_close(table.sum(1), q)
    count = 20_000
    pairs = pairs_of(q, count)
    found = torch.einsum("pj,pk->jk", pairs.first[:, 0, 0], pairs.second[:, 0, 0]) / count
    assert ((found - table).abs() <= 5 * (table * (1 - table) / count).sqrt() + 1e-12).all()
    independent = torch.outer(q, q)
    assert table.diagonal().sum() < independent.diagonal().sum()


@EACH_PROBS
def test_weights_are_ratios_to_independent_pairs(probs):
    table, q = joint_table(probs), torch.tensor(probs, dtype=torch.float64)
    pairs = pairs_of(q, 500)
    z, z_other = pairs.first.argmax(-1).flatten(), pairs.second.argmax(-1).flatten()
    expected = torch.where(z == z_other, 0.0, q[z] * q[z_other] / table[z, z_other])
    torch.testing.assert_close(pairs.weights.flatten(), expected)
    assert pairs.weights.max() < 2


def test_only_in_ascending_order_can_all_differ():
    """This is why categories are sorted: otherwise some pairs cannot be drawn, and importance weighting is biased."""
    probs = PROBS["sharp"]
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert (joint_table(probs)[off_diagonal] > 0).all()
    assert not (joint_table(probs, descending=True)[off_diagonal] > 0).all()


@pytest.mark.parametrize(("elbo", "num_latents", "num_categories"), [(DisARM, 3, 2), (DisARMIW, 3, 3)])
def test_the_mean_is_the_exact_elbo_and_its_gradient(elbo, num_latents, num_categories):
    """Programs are scaled and masked here; plain ones are tested in `tests/estimators/test_unbiased.py`."""
    case = draws.case(num_latents, num_categories, scaled=True)
    found = case.draws(elbo(num_particles=160), 100)
    assert draws.z_scores(found, case.exact()).abs().max() < 5
    error = found.std(0).norm() / len(found) ** 0.5
    assert error < 0.05 * case.exact().norm()


@pytest.mark.parametrize(("elbo", "num_latents", "num_categories"), [(DisARM, 3, 2), (DisARMIW, 3, 3)])
def test_the_check_finds_pairs_without_weights(elbo, num_latents, num_categories, monkeypatch):
    """The negative control."""

    def unweighted(probs, noise):
        pairs = couple(probs, noise)
        return pairs._replace(weights=torch.ones_like(pairs.weights))

    case = draws.case(num_latents, num_categories)
    monkeypatch.setattr(coupled, "couple", unweighted)
    found = case.draws(elbo(num_particles=160), 100)
    assert draws.z_scores(found, case.exact()).abs().max() > 10


def log_joint(case, z):
    """log p(x, z) of codes (B, N, K)."""
    _, prior, first, second = case.parameters
    natural = torch.tanh(z.flatten(-2) @ first) @ second
    likelihood = torch.distributions.Bernoulli(logits=natural).log_prob(case.x).sum(-1)
    return likelihood + (z * torch.log_softmax(prior, -1)).sum((-2, -1))


def test_disarm_is_the_published_formula():
    """The formula is in terms of bits and logits, as in Dong, Mnih and Tucker (2020)."""
    case = draws.case(3, 2)
    log_q = torch.log_softmax(case.parameters[0].detach(), -1)
    phi = log_q[..., 1] - log_q[..., 0]  # (B, N)
    torch.manual_seed(4)
    u = torch.rand(5, draws.B, 3, 2, dtype=torch.float64)[..., 0]
    u = torch.where(phi < 0, 1 - u, u)  # our coins stand for the rarer of two categories, theirs for the second
    expected = torch.zeros_like(phi)
    for noise in u:
        bits = [(1 - noise < phi.sigmoid()).double(), (noise < phi.sigmoid()).double()]
        codes = [torch.stack([1 - b, b], -1) for b in bits]
        f, f_other = (log_joint(case, z).detach() - (z * log_q).sum((-2, -1)) for z in codes)
        sign = torch.where(bits[1] == 1, -1.0, 1.0) * (bits[0] != bits[1])
        expected += 0.5 * (f - f_other)[:, None] * sign * phi.abs().sigmoid() / len(u)
    torch.manual_seed(4)
    loss = DisARM(num_particles=5).differentiable_loss(case.model, case.guide, case.x)
    (found,) = torch.autograd.grad(-loss, case.parameters[0])
    torch.testing.assert_close(found, torch.stack([-expected, expected], -1), rtol=1e-10, atol=1e-10)


def test_disarm_iw_is_the_published_formula():
    """The formula is written flip by flip, with importance weights from the enumerated coupling."""
    case = draws.case(2, 4)
    logits, _, first, second = case.parameters
    log_q = torch.log_softmax(logits, -1)
    torch.manual_seed(4)
    u = torch.rand(3, draws.B, 2, 4, dtype=torch.float64)
    total, bound = torch.zeros((), dtype=torch.float64), 0.0
    for noise in u:
        codes = torch.zeros(2, draws.B, 2, 4, dtype=torch.float64)
        weights = torch.zeros(draws.B, 2, dtype=torch.float64)
        for b, n in itertools.product(range(draws.B), range(2)):
            probs = log_q[b, n].exp().tolist()
            order = sorted(range(4), key=lambda k: probs[k])
            found = []
            for side in (noise[b, n], 1 - noise[b, n]):
                flips = [side[i] < probs[order[i]] / sum(probs[k] for k in order[i:]) for i in range(3)]
                found.append(order[[*flips, True].index(True)])
            z, z_other = found
            codes[0, b, n, z] = codes[1, b, n, z_other] = 1
            if z != z_other:
                weights[b, n] = probs[z] * probs[z_other] / joint_table(probs)[z, z_other]
        log_p = [log_joint(case, z) for z in codes]
        f, f_other = (p - (z * log_q).sum((-2, -1)) for p, z in zip(log_p, codes, strict=True))
        score = ((codes[0] - codes[1]) * log_q).sum(-1)  # (B, N)
        total = total + (0.5 * (f - f_other).detach() * (weights * score).sum(-1)).sum() / len(u)
        total = total + 0.5 * sum(log_p).sum() / len(u)
        bound += 0.5 * (f + f_other).sum().item() / len(u)
    expected = torch.autograd.grad(total, [logits, first, second])
    torch.manual_seed(4)
    loss = DisARMIW(num_particles=3).differentiable_loss(case.model, case.guide, case.x)
    assert loss.item() == pytest.approx(-bound)
    found = torch.autograd.grad(-loss, [logits, first, second])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("elbo", "num_latents", "num_categories"), CASES)
def test_a_pair_has_less_variance_than_two_samples(elbo, num_latents, num_categories):
    """The variance is below that of samples with a baseline, and far below that without one."""
    pair, leave_one_out, reinforce = (
        draws.variance(loss, num_latents, num_categories, copies=20_000)
        for loss in (elbo(), LeaveOneOut(num_particles=2), Reinforce(num_particles=2))
    )
    assert pair < leave_one_out
    assert pair < 0.3 * reinforce


def test_excluded_categories_are_not_drawn():
    case = draws.case(2, 3)
    with torch.no_grad():
        case.parameters[0][..., 1] = -torch.inf
    assert case.gradient(DisARMIW(num_particles=5)).isfinite().all()
    pairs = pairs_of(case.parameters[0].detach().softmax(-1), 200)
    assert all((codes[..., 1] == 0).all() and (codes.sum(-1) == 1).all() for codes in pairs[:2])


def test_other_than_two_categories_are_refused_with_the_reason():
    vae, x = CategoricalVAE(6, 2, 3, (5,)), torch.ones(4, 6)
    model, guide, elbo = estimator("disarm").bind(vae)
    message = r"Expected latents of K=2 categories, but found K=3 at 'z': .* Try disarm-iw.* or local-expectation"
    for loss in (elbo, TracedELBO(elbo)):
        with pytest.raises(ValueError, match=message), pyro.get_param_store().scope():
            loss.loss_and_grads(model, guide, x)


@pytest.mark.parametrize(("elbo", "num_categories"), [(DisARM, 2), (DisARMIW, 5)])
def test_several_pairs_are_recorded(elbo, num_categories):
    case = draws.case(2, num_categories)
    losses = []
    for loss in (elbo(num_particles=3), TracedELBO(elbo(num_particles=3))):
        torch.manual_seed(5)
        losses.append([loss.loss_and_grads(case.model, case.guide, case.x) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize("name", ["disarm", "disarm-iw"])
def test_what_the_registry_says(name):
    chosen = estimator(name, num_particles=2)
    assert chosen.is_unbiased and not chosen.is_exact
    with pytest.raises(ValueError, match=r"at least one particle, but found num_particles=0"):
        estimator(name, num_particles=0)


@EACH_PROBS
def test_float32_pairs_are_codes(probs):
    pairs = pairs_of(torch.tensor(probs), 200)
    for codes in (pairs.first, pairs.second):
        FactorizedOneHotCategorical(probs=torch.tensor(probs)[None]).log_prob(codes[:, 0])  # validates
        assert (codes.sum(-1) == 1).all()
    assert ((pairs.weights >= 0) & (pairs.weights <= 2 + 1e-5)).all()
