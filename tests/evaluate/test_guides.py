"""Statistics of guides with several latents, against a loop over all joint codes in stock Pyro."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute import every_code, expected, kls, latents_of, sharp, weights_of
from pairs import DATA, B, D, bottom_up_guide, concatenated, two_layers_model
from torch import Tensor

from pyro_gvae import exact
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.evaluate.code_statistics import guide_log_probs, joint_mutual_information, table_mutual_information
from pyro_gvae.evaluate.guided import joined
from pyro_gvae.evaluate.guides import read_guide
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import weigh_kl
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.programs.kls import closed_kls, summed_kls
from pyro_gvae.programs.layout import lay_out
from pyro_gvae.programs.runs import bind_pair

DISCRETE = ["two layers, independent", "two layers, bottom-up", "two layers, top-down", "bits and an integer"]


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_entropies_and_kls_of_every_latent(name):
    pair = sharp(name)
    said = every_code(pair, DATA)
    found = read_guide(pair, DATA)
    assert set(found.log_probs) == set(said[0].digits)
    for latent, log_probs in found.log_probs.items():
        probs = torch.zeros_like(log_probs)
        for one, weight in zip(said, weights_of(said), strict=True):
            probs[:, 0, one.digits[latent]] += weight
        torch.testing.assert_close(log_probs.exp(), probs)
        torch.testing.assert_close(found.entropies[latent], -expected(said, [one.log_q[latent] for one in said]))
        torch.testing.assert_close(found.kls[latent], kls(said)[latent])
    assert found.is_exact and found.is_factorized == (name == "two layers, independent")
    total = -expected(said, [sum(one.log_q.values()) for one in said])
    torch.testing.assert_close(sum(found.entropies.values()), total)  # the chain rule


@pytest.mark.parametrize("name", DISCRETE)
def test_draws_tend_to_the_sums(name):
    pyro.set_rng_seed(0)
    pair = sharp(name)
    summed, drawn = (read_guide(pair, DATA, is_summed=is_summed, num_particles=4000) for is_summed in (True, False))
    assert summed.is_exact and not drawn.is_exact
    for latent in summed.log_probs:
        assert (summed.log_probs[latent].exp() - drawn.log_probs[latent].exp()).abs().max() < 5 * 0.5 / 4000**0.5
        assert (summed.kls[latent] - drawn.kls[latent]).abs().max() < 0.2
    assert max(kl.abs().max() for kl in summed.kls.values()) > 0.5  # the control


def test_the_information_in_codes_of_latents_that_depend_on_each_other():
    pair = sharp("two layers, top-down")
    q = weights_of(every_code(pair, DATA))
    expected_information = (q * (q.log() - q.mean(1, keepdim=True).log())).sum(0)
    found = read_guide(pair, DATA)
    assert table_mutual_information(found.table).value == pytest.approx(expected_information.mean().item())
    # With independent latents the table and the factors give the same numbers.
    independent = sharp("two layers, independent")
    q = weights_of(every_code(independent, DATA))
    said = read_guide(independent, DATA)
    assert joint_mutual_information(said.log_probs).value == pytest.approx(table_mutual_information(q.log()).value)


def test_chunks_are_joined():
    pair = sharp("two layers, top-down")
    whole, parts = read_guide(pair, DATA), joined([read_guide(pair, rows) for rows in DATA.split(2)])
    torch.testing.assert_close(parts.table, whole.table)
    for one, other in zip(parts[:3], whole[:3], strict=True):
        torch.testing.assert_close(one, other)


def test_latents_that_data_share_have_one_value_and_one_kl():
    pair = sharp("a global code")
    found = read_guide(pair, DATA)
    assert found.log_probs["style"].shape == (1, 1, 2) and found.log_probs["y"].shape == (B, 1, 3)
    elbo = exact.elbo(pair, DATA).sum()
    said = every_code(pair, DATA)
    style = torch.stack([one.log_q["style"] for one in said]).exp()
    local = torch.stack([one.log_q["y"] for one in said]).exp()
    kl = {name: [one.log_q[name] - one.log_p[name] for one in said] for name in ("style", "y")}
    # Each code of y occurs with each code of style, so a sum over all of them counts style once for each code of y.
    torch.testing.assert_close(found.kls["style"].sum(), sum(style * local[:, 0] * torch.stack(kl["style"])))
    torch.testing.assert_close(found.kls["y"], (style.unsqueeze(-1) * local * torch.stack(kl["y"])).sum(0))
    likelihood = sum(style[s] * local[s] * said[s].log_p["x"] for s in range(len(said))).sum()
    torch.testing.assert_close(elbo, likelihood - found.kls["style"].sum() - found.kls["y"].sum())


def test_scale_and_mask_are_those_of_the_elbo():
    pair = sharp("a subsampled plate with scale and mask")
    pyro.set_rng_seed(0)
    found = read_guide(pair, DATA)
    assert set(found.kls) == {"y", "bit", "centre"}
    masked = DATA[:, 0] <= 0
    assert (found.kls["y"][masked] == 0).all() and (found.kls["y"][~masked] != 0).all() and masked.any()
    q, p = (dist.OneHotCategorical(logits=logits) for logits in _logits_of_y(pair))
    torch.testing.assert_close(found.kls["y"][~masked], 4 * torch.distributions.kl_divergence(q, p)[~masked])


def _logits_of_y(pair: Pair) -> tuple[Tensor, Tensor]:
    traces = [pyro.poutine.trace(program).get_trace(DATA) for program in (pair.guide, pair.model)]
    logits = []
    for trace in traces:
        fn = trace.nodes["y"]["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        logits.append(fn.logits.expand(B, -1))
    return logits[0], logits[1]


@pytest.mark.parametrize("first", [False, True], ids=["after the code", "before the code"])
def test_continuous_latents_are_drawn(first):
    """A bit and a normal that depend on each other: the marginal probability and both KLs come from integration."""
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    x = torch.tensor([-1.0, 0.5], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            if first:
                c = pyro.sample("c", dist.Normal(x, 1.0))
                pyro.sample("z", dist.Bernoulli(logits=2 * c))
            else:
                z = pyro.sample("z", dist.Bernoulli(logits=x))
                pyro.sample("c", dist.Normal(z, 0.5))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
            c = pyro.sample("c", dist.Normal(2 * z, 1.0))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    probs, kl = [], {"z": [], "c": []}
    for own in x:
        log_q = {}
        for z in (0.0, 1.0):
            if first:
                log_c = dist.Normal(own, 1.0).log_prob(grid)
                log_z = dist.Bernoulli(logits=2 * grid).log_prob(torch.full_like(grid, z))
            else:
                log_z = dist.Bernoulli(logits=own).log_prob(torch.tensor(z).double()).expand_as(grid)
                log_c = dist.Normal(z, 0.5).log_prob(grid)
            log_q[z] = log_z, log_c
        step = grid[1] - grid[0]
        weights = {z: (log_z + log_c).exp() * step for z, (log_z, log_c) in log_q.items()}
        probs.append(weights[1.0].sum())
        prior = dist.Bernoulli(torch.tensor(0.3).double())
        kl["z"].append(
            sum((weights[z] * (log_q[z][0] - prior.log_prob(torch.tensor(z).double()))).sum() for z in weights)
        )
        kl["c"].append(
            sum((weights[z] * (log_q[z][1] - dist.Normal(2 * z, 1.0).log_prob(grid))).sum() for z in weights)
        )
    pyro.set_rng_seed(0)
    found = read_guide(Pair(model, guide), x, num_particles=40_000)
    assert not found.is_exact and found.is_factorized != first and found.closed == (set() if first else {"z"})
    assert (found.log_probs["z"][:, 0, 1].exp() - torch.stack(probs)).abs().max() < 0.01
    for name, values in kl.items():
        assert (found.kls[name] - torch.stack(values)).abs().max() < 0.05
    assert guide_log_probs(Pair(model, guide), x).shape == (2, 1, 2)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_neighbourhood_of_the_guides_mode(name):
    """The mode takes the most probable value of each latent given the earlier ones; neighbours differ in one digit."""
    pair = sharp(name)
    said = every_code(pair, DATA)
    joint = torch.stack([sum(one.log_p.values()) for one in said])  # (S, B)
    found = importance_weighted(pair, DATA, 2)
    modes = []
    for b in range(B):
        left = list(range(len(said)))
        for latent in latents_of(pair, DATA):
            best = max(left, key=lambda s: said[s].log_q[latent][b].item())
            left = [s for s in left if said[s].digits[latent] == said[best].digits[latent]]
        modes.append(left[0])
    for b, mode in enumerate(modes):
        near = [s for s, one in enumerate(said) if sum(one.digits[n] != said[mode].digits[n] for n in one.digits) <= 1]
        torch.testing.assert_close(found.neighbourhood[b], joint[near, b].logsumexp(0))


READY = {
    "layers": lambda: HierarchicalCategoricalVAE(6, num_latents=2, num_categories=3, hidden=(5,)),
    "bits": lambda: BernoulliVAE(6, num_bits=2, hidden=(5,)),
}


@pytest.mark.parametrize("name", READY)
def test_the_kls_of_ready_programs_are_those_of_the_elbo(name):
    """The ELBO without its KL is the reconstruction term."""
    torch.manual_seed(0)
    vae, x = READY[name]().double(), torch.rand(5, 6).round().double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter))
    without = Pair(*(weigh_kl(program, beta=0.0) for program in (vae.model, vae.guide)))
    kl = exact.elbo(without, x) - exact.elbo(vae, x)
    found = read_guide(vae, x)
    torch.testing.assert_close(sum(found.kls.values()), kl)
    runs = bind_pair(vae, x)
    layout = lay_out(runs)
    digits = summed_kls(runs, layout)
    assert {name: own.value.shape for name, own in digits.items()} == dict.fromkeys(found.kls, (2,))
    torch.testing.assert_close(sum(own.value.sum() for own in digits.values()), kl.sum())
    if name == "bits":
        torch.testing.assert_close(closed_kls(runs, layout), digits)


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes")
def test_programs_that_take_one_code_at_a_time_have_the_same_numbers():
    plain = sharp("two layers, bottom-up")
    store = pyro.get_param_store()
    matrices = {tuple(value.shape): value for _, value in store.items()}
    pair = Pair(partial(two_layers_model, dense=concatenated), partial(bottom_up_guide, dense=concatenated))
    for inputs, out in (((D, 4), 3), ((3, 4), D)):  # one matrix for the concatenated inputs
        pyro.param(f"w{sum(inputs)}x{out}", torch.cat([matrices[size, out] for size in inputs]))
    expected = read_guide(plain, DATA)
    found = read_guide(pair, DATA)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    torch.testing.assert_close(found.kls, expected.kls)
    torch.testing.assert_close(found.table, expected.table)
    near = [importance_weighted(own, DATA, 1).neighbourhood for own in (plain, pair)]
    torch.testing.assert_close(*near)
    free = [FreeBits(ExactELBO(), 0.4).loss(own.model, own.guide, DATA) for own in (plain, pair)]
    assert free[0] == pytest.approx(free[1])
