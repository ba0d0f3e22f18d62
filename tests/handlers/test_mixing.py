"""Guides mixed with the uniform distribution: the formula at every kind of site, and under handlers."""

import problems
import pyro
import pytest
import torch
from kinds import SITES
from problems import PROBLEMS, K
from pyro import poutine

from pyro_gvae import ExactELBO, discretize, relax
from pyro_gvae.estimators import estimator, with_kl_weight, with_unimix
from pyro_gvae.handlers import unimix
from pyro_gvae.handlers.one_hot_messenger import innermost
from pyro_gvae.handlers.sites import discrete

PROBLEM = next(problem for problem in PROBLEMS if problem.name == "bernoulli-learned")
KINDS = [kind for kind in SITES if kind != "both at once"]  # every handler refuses this one
LOGITS = torch.tensor([0.1, -2.0, 0.3])


def program_of(kind, logits):
    return lambda: pyro.sample("z", SITES[kind](logits))


def fn_of(program):
    return poutine.trace(program).get_trace().nodes["z"]["fn"]


@pytest.mark.parametrize("share", [0.0, 0.2, torch.tensor(1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_mixed_and_remains_what_it_is(kind, share):
    written, found = fn_of(program_of(kind, LOGITS)), fn_of(unimix(program_of(kind, LOGITS), share=share))
    own, mixed = (discrete(fn).logits.softmax(-1) for fn in (written, found))
    torch.testing.assert_close(mixed, (1 - share) * own + share / own.shape[-1])
    assert found.event_shape == written.event_shape and found.has_rsample == written.has_rsample
    programs = unimix(program_of(kind, LOGITS), share=share), program_of(kind, LOGITS)
    decided, expected = (fn_of(discretize(program)) for program in programs)
    assert type(innermost(decided)) is type(innermost(expected))


def test_no_share_is_the_program_itself_also_where_a_category_has_no_probability():
    logits = torch.tensor([0.5, -torch.inf, -400.0], requires_grad=True)
    mixed = discrete(fn_of(unimix(program_of("one-hot", logits), share=torch.tensor(0.0)))).logits
    [gradient] = torch.autograd.grad(mixed.flatten()[0], logits)
    assert gradient.isfinite().all() and mixed.flatten()[2] < -399


def mixed_log_q(vae, x, share):
    """Compute log q of the mixed guide, for the loops of `problems`."""
    probs = (1 - share) * vae.encoder(x).softmax(-1) + share / K
    return torch.stack([sum(probs[:, n, k].log() for n, k in enumerate(code)) for code, _ in problems.codes()])


@pytest.mark.parametrize("slice_size", [None, 3])
def test_the_objective_is_the_elbo_of_the_mixed_guide_and_the_prior_is_not_mixed(slice_size):
    vae, x = PROBLEM.vae(), PROBLEM.x()
    model, guide, elbo = with_unimix(estimator("exact", slice_size=slice_size), 0.3).bind(vae)
    log_q = mixed_log_q(vae, x, 0.3)
    expected = -(log_q.exp() * (problems.joint_in_a_loop(PROBLEM, vae, x) - log_q)).sum()
    found = elbo.differentiable_loss(model, guide, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(problems.gradients(found, vae), problems.gradients(expected, vae))
    assert (found - ExactELBO().loss(vae.model, vae.guide, x)).abs() > 0.1


@pytest.mark.parametrize("name", ["gumbel-softmax", "reinmax", "reinforce-loo"])
def test_what_is_drawn_is_drawn_from_the_mixed_guide(name):
    vae, x = PROBLEM.vae(), PROBLEM.x()
    chosen = with_kl_weight(with_unimix(estimator(name), 1.0), 0.5)
    trace = poutine.trace(discretize(chosen.bind(vae).guide)).get_trace(x)
    torch.testing.assert_close(trace.nodes["z"]["fn"].probs, torch.full((len(x), problems.N, K), 1 / K).double())


def test_it_stands_inside_of_the_handler_that_decides():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    with pytest.raises(ValueError, match="Expected unimix inside of the handler that decides what 'z' is, but found"):
        unimix(vae.guide, share=0.5)(x)
    pyro.clear_param_store()
    found = poutine.trace(relax(unimix(vae.guide, share=1.0))).get_trace(x).nodes["z_log"]["fn"]
    assert found.base_dist.logits.diff().abs().max() < 1e-6


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), torch.tensor(2.0)])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ValueError, match="Expected a share from 0 to 1, but found"):
        unimix(share=share)


def test_a_guide_that_is_not_read_is_not_mixed():
    with pytest.raises(ValueError, match="Expected an objective with a guide to mix, but found the log-evidence"):
        with_unimix(estimator("exact-evidence"), 0.1)
    assert "of the guide mixed with the uniform" in with_unimix(estimator("exact-wake"), 0.1).approximates
