"""The best factorized posterior of chains, against coordinate ascent on the table of all joint codes."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, B, chain_guide, chain_model, no_guide, one_hot, weights, without_markov, words_model
from pyro import poutine

from pyro_gvae import exact
from pyro_gvae.exact import Pair
from pyro_gvae.exact.factorized import _tables as tables_of
from pyro_gvae.exact.factorized import mean_field, shared_sweep
from pyro_gvae.exact.factorized_apart import sweep
from pyro_gvae.exact.factorized_chains import Statements
from pyro_gvae.exact.plan import make_plan, plan_sum
from pyro_gvae.programs.runs import bind_pair

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def test_the_best_posterior_of_a_chain_is_that_of_its_joint_codes():
    pyro.clear_param_store()
    pair = Pair(chain_model, chain_guide)
    found, expected = (
        mean_field(one, DATA, tolerance=1e-14, max_sweeps=1000) for one in (pair, Pair(*map(without_markov, pair)))
    )
    close(found.elbo, expected.elbo)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)  # the ELBO is flat at the optimum
    assert (found.elbo < exact.log_evidence(pair, DATA) - 1e-4).all()


def two_bits(x, observed):
    """A chain whose states are two bits."""
    z = torch.zeros(2).double()
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=z @ weights(2, 2) + weights(2)).to_event(1))
            if observed:
                pyro.sample(f"x{t}", dist.Normal(z.prod(-1) + z[..., 0], 1.0), obs=x[:, t])


def words_guide(x):
    with pyro.plate("documents", len(x), dim=-2):
        pyro.sample("topic", one_hot(torch.zeros(3).double()))
        with pyro.plate("words", x.shape[1], dim=-1):
            pyro.sample("on", dist.Bernoulli(logits=torch.zeros(()).double()))


def test_a_sweep_is_that_over_the_table_of_joint_codes():
    """Test a chain of pairs of digits, and nested plates, from the same start."""
    chain = Pair(partial(two_bits, observed=True), partial(two_bits, observed=False))
    for ours, joint in (
        (chain, Pair(*map(without_markov, chain))),
        (Pair(words_model, no_guide), Pair(words_model, words_guide)),
    ):
        pyro.clear_param_store()
        runs, of_joint = bind_pair(ours, DATA), bind_pair(joint, DATA)
        with torch.no_grad():
            statements = Statements(runs, plan_sum(runs))
            plan = make_plan(of_joint)
            generator = torch.Generator().manual_seed(0)
            levels = {name: level for level in plan.layout.levels for name in level.names}
            digits = {
                latent.name: torch.randn(
                    levels[latent.name].shape.numel(), latent.num_latents, latent.num_categories, generator=generator
                )
                .double()
                .log_softmax(-1)
                for latent in plan.layout.space.latents
            }
            start = tuple(digit for own in digits.values() for digit in own.unbind(1))
            tables, _ = tables_of(of_joint.model, plan, None)
            expected = shared_sweep(start, tables, plan) if plan.layout.is_shared else sweep(start, tables[0], plan)
            found = statements.sweep(
                {name: own.reshape(*plan.layout.site_shapes[name], *own.shape[1:]) for name, own in digits.items()}
            )
        close(found.elbo.flatten(), expected.elbo)
        updated = torch.cat([own.reshape(-1) for own in found.logits.values()])
        right = {name: [] for name in digits}
        rest = iter(expected.logits)
        for name, own in digits.items():
            right[name] = torch.stack([next(rest) for _ in range(own.shape[1])], 1)
        close(updated, torch.cat([right[name].reshape(-1) for name in found.logits]))


def test_latents_that_the_guide_lacks_are_factorized_too():
    pyro.clear_param_store()
    found = mean_field(Pair(chain_model, no_guide), DATA)
    assert found.elbo.shape == (B,) and found.logits["z2"].shape == (B, 1, 3)
    evidence = exact.log_evidence(Pair(chain_model, no_guide), DATA)
    assert (found.elbo < evidence).all() and (evidence - found.elbo).max() < 1.0
    # Its ELBO is that of a guide with these probabilities.
    logits = found.logits

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                pyro.sample(f"z{t}", one_hot(logits[f"z{t}"].squeeze(-2)))

    close(exact.elbo(Pair(chain_model, guide), DATA), found.elbo)


def test_statements_of_one_chain_need_one_scale():
    def model(x):
        z = torch.tensor(0)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(2)):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=torch.eye(2).double()[z]))
                with poutine.scale(scale=1.0 + t):
                    pyro.sample(f"x{t}", dist.Normal(z.double(), 1.0), obs=x[:, t])

    with pytest.raises(ValueError, match="share one scale"):
        mean_field(Pair(model, no_guide), DATA)
