"""A different estimator for each site: stock TraceEnum_ELBO, stock Trace_ELBO and sums by hand are the oracles."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    DATA,
    PROGRAMS,
    B,
    Program,
    linear,
    observe,
    one_hot,
    stock,
    validated_once,
    weights,
    with_gradients,
)
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_gvae import ExactELBO, make_step
from pyro_gvae.distributions.concrete import ExpConcrete
from pyro_gvae.elbos import per_site as loss
from pyro_gvae.elbos.baselines import RunningBaseline
from pyro_gvae.elbos.mean_field import MeanFieldELBO
from pyro_gvae.estimators import Bias, Objective, estimator, with_kl_weight
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import relax, straight_through
from pyro_gvae.models.joint_vae import JointVAE
from pyro_gvae.programs import samples

NUM_CALLS, COPIES = 30, 60


def estimate(chosen, pair, x=DATA):
    model, guide, elbo = chosen.bind(pair)
    return with_gradients(lambda: elbo.loss_and_grads(model, guide, x))


def worst_score(chosen, program, expected, *, copies=COPIES, only_loss=False):
    """Return how many standard errors the mean of a loss and its gradients is off, the maximum over coordinates."""
    pyro.set_rng_seed(0)
    x = DATA.repeat(copies, 1)  # independent rows: one call gives many estimates
    model, guide, elbo = chosen.bind(Pair(*program[:2]))
    rows = validated_once(lambda: with_gradients(lambda: elbo.loss_and_grads(model, guide, x)), NUM_CALLS)
    worst = 0.0
    for key in ["loss"] if only_loss else expected:
        values = torch.stack([row[key] for row in rows]) / copies
        error = values.std(0) / NUM_CALLS**0.5
        worst = max(worst, float(((values.mean(0) - expected[key]).abs() / (error + 1e-9)).max()))
    return worst


def poisson_model(x, *, count=dist.Poisson):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(2)))
        n = pyro.sample("n", count(1 + y[..., 0]))
        pyro.sample("x", dist.Normal(n.to(x.dtype) * weights(1)[0] + y[..., 1], 2.0), obs=x[:, 0])


def poisson_guide(x, *, count=dist.Poisson):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(linear(2, x)))
        pyro.sample("n", count((0.3 * linear(1, x, y)).exp().squeeze(-1)))


def truncated(rate):
    return dist.Categorical(logits=dist.Poisson(rate.unsqueeze(-1)).log_prob(torch.arange(40.0).double()))


#: Programs, the site that is scored while others are summed, and copies of the data; global latents allow no copies.
#: `test_table.py` scores the first site of each program.
SCORED = [
    ("two layers, top-down", "below", COPIES),  # drawn for each code of the other layer
    ("two layers, bottom-up", "top", COPIES),
    ("bits and an integer", "a", COPIES),  # after one bit, and before an integer
    ("a global code", "y", 1),
    ("a subsampled plate with scale and mask", "bit", 1),
    ("nested plates", "on", COPIES),
]


@pytest.mark.parametrize(("name", "site", "copies"), SCORED)
def test_scored_beside_summed_sites_have_the_exact_mean(name, site, copies):
    chosen = estimator({site: "reinforce-loo[num_particles=2]"})
    assert chosen.is_unbiased and chosen.objective is Objective.ELBO
    assert worst_score(chosen, PROGRAMS[name], stock(PROGRAMS[name]), copies=copies) < 5


@pytest.mark.parametrize("site", ["top", "below"])
def test_with_half_the_scores_the_gradient_is_wrong(monkeypatch, site):
    """The negative control."""
    program = PROGRAMS["two layers, top-down"]
    scored = loss._scored
    monkeypatch.setattr(loss, "_scored", lambda *given: 0.5 * scored(*given))
    assert worst_score(estimator({site: "reinforce-loo"}), program, stock(program)) > 5


def test_latents_without_rsample_are_scored_if_others_are():
    pair = Program(poisson_model, poisson_guide)
    enumerable = Program(lambda x: poisson_model(x, count=truncated), lambda x: poisson_guide(x, count=truncated))
    expected = stock(enumerable)
    for chosen in (estimator({"n": "reinforce-loo"}), estimator({"y": "exact"}, default="reinforce-loo")):
        assert worst_score(chosen, pair, expected) < 5
    with pytest.raises(
        ValueError, match=r"found 'n', a Poisson without rsample.*estimator\(\{'n': 'reinforce-loo'\}\)"
    ):
        estimate(estimator({"y": "exact"}), Pair(*pair[:2]))
    with pytest.raises(ValueError, match=r"one-hots, bits or integers at 'n', but found one of other values"):
        estimate(estimator({"n": "rebar"}), Pair(*pair[:2]))
    assert worst_score(estimator({"y": "disarm-iw[num_particles=2]", "n": "reinforce-loo"}), pair, expected) < 5


COUNTED = ["local-expectation", "disarm-iw", "rebar", "reinforce-baseline"]


@pytest.mark.parametrize("name", COUNTED)
def test_counts_beside_a_code_are_scored_with_a_baseline(name, monkeypatch):
    """The mean is exact with the baseline; without it, the variance is far larger."""
    enumerable = Program(lambda x: poisson_model(x, count=truncated), lambda x: poisson_guide(x, count=truncated))
    pair, chosen = Program(poisson_model, poisson_guide), estimator(name, num_particles=2)
    assert worst_score(chosen, pair, stock(enumerable)) < 5
    with_baseline = variance(chosen, pair)
    monkeypatch.setattr(samples, "above_others", lambda costs: costs)
    monkeypatch.setattr(RunningBaseline, "forward", lambda self, x: torch.zeros(()).double())
    assert variance(chosen, pair) > 2 * with_baseline


def variance(chosen, pair):
    """Return the variance of the gradient of the rate's parameters, after a call from which a baseline learns."""
    pyro.set_rng_seed(0)
    model, guide, elbo = chosen.bind(Pair(*pair[:2]))
    rows = [with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))["w4x1"] for _ in range(33)]
    return float(torch.stack(rows[3:]).var(0).sum())


@pytest.mark.parametrize("kl", ["categorical", "sampled"])
def test_the_value_of_a_surrogate_beside_a_sum_is_exact(kl):
    program = PROGRAMS["two layers, top-down"]
    chosen = estimator({"below": f"st-gumbel-softmax[kl={kl}]"})
    assert chosen.bias is Bias.SURROGATE and chosen.objective is Objective.SURROGATE_ELBO
    assert worst_score(chosen, program, stock(program), only_loss=True) < 5
    relaxed = estimator({"below": "gumbel-softmax[kl=relaxed,temperature=1.0]"})
    assert worst_score(relaxed, program, stock(program), only_loss=True) > 5  # the negative control


def fixed(self, sample_shape=()):
    noise = torch.linspace(-1.0, 1.5, self.logits.shape[-1], dtype=self.logits.dtype)
    return ((self.logits + noise) / self.temperature).log_softmax(-1)


def by_hand(pair, summed, relaxed, kl, temperature=0.5):
    """Compute minus the sum over the codes of one site of q times log p - log q, with the other site relaxed."""
    model, guide = (relax(program, temperature=temperature, sites=[relaxed]) for program in pair)
    size, total = {"top": 3, "below": 4}[summed], 0.0
    for code in torch.eye(size).double():
        given = {summed: code.expand(B, -1)}
        q = poutine.trace(poutine.condition(guide, given)).get_trace(DATA)
        drawn = {f"{relaxed}_log": q.nodes[f"{relaxed}_log"]["value"]}
        p = poutine.trace(poutine.condition(model, given | drawn)).get_trace(DATA)
        q.compute_log_prob()
        p.compute_log_prob()
        log_q = q.nodes[summed]["log_prob"]
        difference = p.nodes[summed]["log_prob"] + p.nodes["x"]["log_prob"] - log_q
        z = f"{relaxed}_log"
        if kl == "relaxed":
            difference = difference + p.nodes[z]["log_prob"] - q.nodes[z]["log_prob"]
        else:
            own, prior = (trace.nodes[z]["fn"].logits.log_softmax(-1) for trace in (q, p))
            difference = difference - (own.exp() * (own - prior)).sum(-1)
        total = total - (log_q.exp() * difference).sum()
    return total


@pytest.mark.parametrize("kl", ["relaxed", "categorical"])
@pytest.mark.parametrize(
    ("name", "summed", "relaxed"),
    [
        ("two layers, independent", "top", "below"),
        ("two layers, top-down", "top", "below"),
        ("two layers, top-down", "below", "top"),
        ("two layers, bottom-up", "below", "top"),
    ],
)
def test_relaxed_beside_summed_sites_are_a_sum_by_hand(monkeypatch, name, summed, relaxed, kl):
    monkeypatch.setattr(ExpConcrete, "rsample", fixed)
    monkeypatch.setattr(ExpConcrete, "sample", fixed)
    pair = PROGRAMS[name][:2]

    def expected(temperature):
        def backward():
            total = by_hand(pair, summed, relaxed, kl, temperature)
            total.backward()
            return total.item()

        return with_gradients(backward)

    chosen = estimator({relaxed: f"gumbel-softmax[kl={kl},temperature=0.5]"})
    found = estimate(chosen, Pair(*pair))
    torch.testing.assert_close(found, expected(0.5), rtol=1e-9, atol=1e-9)
    assert abs(found["loss"] - expected(0.6)["loss"]) > 1e-3  # the negative control
    assert chosen.objective is (Objective.RELAXED_ELBO if kl == "relaxed" else Objective.SOFT_ELBO)
    assert chosen.bias is Bias.RELAXATION


def test_an_analytic_kl_is_refused_where_it_is_no_term_of_the_elbo():
    pair = Pair(*PROGRAMS["two layers, bottom-up"][:2])
    with pytest.raises(ValueError, match=r"prior of 'below' .*, which depends on 'below' .*kl=\"sampled\""):
        estimate(estimator({"below": "gumbel-softmax[kl=categorical]"}), pair)
    estimate(estimator({"top": "gumbel-softmax[kl=categorical]"}), pair)


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_sites_summed_are_the_exact_elbo(name):
    pair = Pair(*PROGRAMS[name][:2])
    summed = with_gradients(lambda: ExactELBO().loss_and_grads(*pair, DATA))
    torch.testing.assert_close(estimate(estimator({}), pair), summed, rtol=1e-9, atol=1e-9)
    sliced = estimator({}, default="exact[slice_size=2]")
    torch.testing.assert_close(estimate(sliced, pair), summed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["two layers, top-down", "a subsampled plate with scale and mask", "nested plates"])
def test_two_kinds_of_draws_are_stock_trace_elbo(name):
    pair = Pair(*PROGRAMS[name][:2])
    first, second = {"t": ("top", "below"), "a": ("y", "bit"), "n": ("topic", "on")}[name[0]]
    model, guide = (
        relax(straight_through(program, kind="straight-through", temperature=0.7), temperature=0.5, sites=[first])
        for program in pair
    )
    chosen = estimator(
        {first: "gumbel-softmax[kl=relaxed,temperature=0.5]", second: "straight-through[temperature=0.7,kl=sampled]"}
    )
    assert chosen.bias is Bias.RELAXATION_AND_SURROGATE
    pyro.set_rng_seed(0)
    expected = with_gradients(lambda: Trace_ELBO().loss_and_grads(model, guide, DATA))
    pyro.set_rng_seed(0)
    torch.testing.assert_close(estimate(chosen, pair), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")  # by order alone
def test_two_temperatures_with_analytic_kls_are_stock_too():
    pair = Pair(*PROGRAMS["two layers, independent"][:2])
    model, guide = (relax(relax(program, temperature=0.7), temperature=0.5, sites=["top"]) for program in pair)
    parts = {"top": 0.5, "below": 0.7}
    chosen = estimator(
        {site: estimator("gumbel-softmax", kl="categorical", temperature=t) for site, t in parts.items()}
    )
    pyro.set_rng_seed(0)
    expected = with_gradients(lambda: MeanFieldELBO().loss_and_grads(model, guide, DATA))
    pyro.set_rng_seed(0)
    torch.testing.assert_close(estimate(chosen, pair), expected, rtol=1e-9, atol=1e-9)


def test_a_relaxed_site_beside_a_normal_is_stock_trace_elbo():
    vae = JointVAE(data_dim=4, num_latents=2, num_categories=3, latent_dim=2, hidden=(5,)).double()
    x, losses = DATA.round().clamp(0, 1), []
    for chosen in (
        estimator({"y": "gumbel-softmax[kl=relaxed]"}),
        estimator("gumbel-softmax", kl="relaxed"),
        estimator({"y": "exact"}),
    ):
        model, guide, elbo = chosen.bind(vae)
        pyro.set_rng_seed(0)
        losses.append(elbo.loss_and_grads(model, guide, x))
    assert abs(losses[0] - losses[1]) < 1e-9 < abs(losses[2] - losses[1])


def test_a_score_weighs_the_costs_in_its_plates_alone():
    def model(x):
        with pyro.plate("data", len(x)):
            y, z = (pyro.sample(name, one_hot(torch.zeros(3).double())) for name in "yz")
            observe(y, z, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", one_hot(pyro.param("own", torch.zeros(B, 3).double())))
            pyro.sample("z", one_hot(linear(3, x)))

    found = []
    for other in (DATA, torch.cat([DATA[:1], DATA[1:] + 1])):
        pyro.set_rng_seed(0)
        found.append(estimate(estimator({"y": "reinforce-loo"}), Pair(model, guide), other)["own"])
    torch.testing.assert_close(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1:], found[1][1:])


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("sites", [{"y": "reinforce-loo"}, {"y": "gumbel-softmax"}, {"y": "exact"}])
def test_a_step_is_recorded(sites):
    vae = JointVAE(data_dim=4, num_latents=1, num_categories=3, latent_dim=2, hidden=(5,))
    step = make_step(vae, estimator(sites), lr=0.05)
    x = DATA.float().round().clamp(0, 1)
    losses = [step(x).item() for _ in range(20)]  # an unrecorded step would warn, and warnings are errors
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("name", ["vimco", "exact-evidence", "reweighted-wake-sleep"])
def test_bounds_of_all_latents_together_are_refused(name):
    with pytest.raises(ValueError, match=rf"found '{name}' for z: .* is the logarithm of a sum over all latents"):
        estimator({"z": name})


@pytest.mark.parametrize("name", ["unordered-set", "reinforce-wor"])
def test_losses_of_joint_codes_are_refused(name):
    with pytest.raises(ValueError, match=rf"found '{name}' for all other sites, whose codes are joint codes"):
        estimator({"z": "exact"}, default=name)


def test_what_cannot_be_put_together_is_refused():
    with pytest.raises(ValueError, match=r"found 'exact' for z, of .* its KL weighted by beta\. Try the same"):
        estimator({"z": with_kl_weight(estimator("exact"), 0.5)})
    with pytest.raises(ValueError, match=r"Expected options that estimator\({..}\) has, but .*'kl'"):
        estimator({"z": "gumbel-softmax"}, kl="categorical")
    pair = Pair(*PROGRAMS["a normal given a code"][:2])
    for part in ("exact", "gumbel-softmax", "reinforce-loo", "straight-through"):
        with pytest.raises(ValueError, match=r"at 'z', but found a FixedNormal"):
            estimate(estimator({"z": part}), pair)
        with pytest.raises(ValueError, match=r"Expected the program to have a site 'w', but found 'y', 'z', 'x'"):
            estimate(estimator({"w": part}), pair)


def test_slices_are_refused_beside_draws_that_all_codes_share():
    """The setting would have no effect, so it must not be accepted silently."""
    with pytest.raises(ValueError, match="exact without a slice_size beside an estimator that draws one site"):
        estimator("per-site[y=exact[slice_size=2],z=rebar,default=exact]")
    assert estimator("per-site[y=exact[slice_size=2],z=reinforce-loo,default=exact]").is_unbiased
