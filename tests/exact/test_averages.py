"""Averages under guides whose latents have one axis each, against loops over all joint codes in stock Pyro."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute import every_code, expected, kls, weights_of
from pairs import (
    DATA,
    B,
    chain_guide,
    chain_model,
    linear,
    no_guide,
    one_hot,
    weights,
    without_markov,
    words_model,
)
from pyro import poutine

from pyro_gvae import exact
from pyro_gvae.exact import Pair
from pyro_gvae.exact.averages import Averages
from pyro_gvae.exact.plan import plan_sum
from pyro_gvae.programs.runs import bind_pair

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
SHORT = DATA[:, :3]


def averages(pair, x=DATA):
    runs = bind_pair(pair, x)
    with torch.no_grad():
        return Averages.read(runs, plan_sum(runs))


def uniform_guide(x):
    """A guide under which all codes of a chain are equally probable."""
    with pyro.plate("data", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"z{t}", one_hot(torch.zeros(3).double()))


def test_a_chain_has_the_numbers_of_its_joint_codes():
    pyro.clear_param_store()
    found = averages(Pair(chain_model, chain_guide), SHORT)
    said = every_code(Pair(without_markov(chain_model), without_markov(chain_guide)), SHORT)
    marginals, entropies, of_each = found.marginals(), found.entropies(), found.kls()
    for name, probs in marginals.items():
        right = torch.zeros_like(probs)
        for one, weight in zip(said, weights_of(said), strict=True):
            right[:, 0, one.digits[name]] += weight
        close(probs, right)
        close(entropies[name], -expected(said, [one.log_q[name] for one in said]))
        close(of_each[name], kls(said)[name])
    table = weights_of(said).log()
    close(found.table().sort(0).values, table.sort(0).values)
    assert not found.is_factorized


def test_entropies_have_no_scale():
    """A datum of a subsampled plate counts as many data; the entropy of its codes is that of one datum."""
    pairs = (Pair(*(poutine.scale(run, scale=scale) for run in (chain_model, chain_guide))) for scale in (1.0, 3.0))
    plain, scaled = (averages(pair, SHORT) for pair in pairs)
    close(scaled.entropies(), plain.entropies())
    close(scaled.kls(), {name: 3 * kl for name, kl in plain.kls().items()})


def test_latents_that_the_guide_lacks_have_their_exact_posterior():
    pyro.clear_param_store()
    found = averages(Pair(chain_model, no_guide), SHORT)
    said = every_code(Pair(without_markov(chain_model), uniform_guide), SHORT)
    joint = torch.stack([sum(one.log_p.values()) for one in said])  # log p(x, z), (S, B)
    prior = torch.stack([sum(one.log_p[f"z{t}"] for t in range(3)).expand(B) for one in said])
    posterior = joint.softmax(0)
    marginals = found.marginals()
    for name, probs in marginals.items():
        right = torch.zeros_like(probs)
        for one, weight in zip(said, posterior, strict=True):
            right[:, 0, one.digits[name]] += weight
        close(probs, right)
    close(sum(found.entropies().values()), -(posterior * posterior.log()).sum(0))
    close(sum(found.kls().values()), (posterior * (posterior.log() - prior)).sum(0))
    close(found.table().exp().sort(0).values, posterior.sort(0).values)


def test_latents_of_inner_plates_that_the_guide_lacks():
    """By hand: each word has a bit that depends on the topic of its document; the guide has only the topic."""
    pyro.clear_param_store()

    def guide(x):
        with pyro.plate("documents", len(x), dim=-2):
            pyro.sample("topic", one_hot(linear(3, x).unsqueeze(-2)))

    found = averages(Pair(words_model, guide))
    codes, bits = torch.eye(3).double(), torch.tensor([0.0, 1.0]).double()
    topic = linear(3, DATA).softmax(-1)  # (B, 3)
    on = dist.Bernoulli(logits=linear(1, codes)).log_prob(bits)  # (3, 2)
    of_words = dist.Normal(bits + codes[:, :1], 1.0).log_prob(DATA[:, :, None, None])  # (B, words, 3, 2)
    posterior = (on + of_words).log_softmax(-1)
    close(found.marginals()["on"].squeeze(-2), torch.einsum("bc,bwck->bwk", topic, posterior.exp()))
    kl = (posterior.exp() * (posterior - on)).sum((-3, -1))  # (B, 3)
    close(found.kls()["on"], (topic * kl).sum(-1))
    entropy = -(posterior.exp() * posterior).sum((-3, -1))
    close(found.entropies()["on"], (topic * entropy).sum(-1))
    elbo = exact.elbo(Pair(words_model, guide), DATA)
    likelihood = torch.einsum("bc,bwck->b", topic, posterior.exp() * of_words)
    close(elbo + sum(found.kls().values()), likelihood)


def test_a_state_that_both_programs_exclude_adds_nothing():
    allowed = torch.ones(3, 3).triu().bool()

    def program(x, observed):
        transition = weights(3, 3).masked_fill(~allowed, -torch.inf)
        z = torch.tensor(0)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=transition[z], validate_args=False))
                if observed:
                    pyro.sample(f"x{t}", dist.Normal(z.double(), 1.0), obs=x[:, t])

    pyro.clear_param_store()
    pair = Pair(partial(program, observed=True), partial(program, observed=False))
    found = averages(pair)
    close(sum(found.kls().values()), torch.zeros(B).double())
    assert found.marginals()["z1"].isfinite().all() and sum(found.entropies().values()).isfinite().all()
    plain = Pair(*map(without_markov, pair))
    close(exact.elbo(pair, DATA), exact.elbo(plain, DATA))


@pytest.mark.parametrize("guide", [chain_guide, no_guide])
def test_a_latent_of_masked_data_has_no_kl(guide):
    pyro.clear_param_store()
    mask = DATA[:, 0] > 0
    pair = Pair(*(pyro.poutine.mask(program, mask=mask) for program in (chain_model, guide)))
    found = averages(pair)
    kl = sum(found.kls().values())
    assert (kl[~mask] == 0).all() and (kl[mask] > 0.01).all()
    close(kl[mask], sum(averages(Pair(chain_model, guide)).kls().values())[mask])
    assert all(one.weight == mask.sum() for one in found.kls_of_digits().values())
