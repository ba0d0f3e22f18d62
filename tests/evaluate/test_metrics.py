"""Metrics of the discrete model: exact against sampled, parts of the data, warnings, and no relaxed metrics."""

import json
import math
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute import sharp
from pairs import DATA, PROGRAMS, B, chain_guide, chain_model, linear, no_guide, one_hot, weights, without_markov
from pyro import poutine

from pyro_gvae import exact
from pyro_gvae.data.dataset import Dataset
from pyro_gvae.data.parts import fixed_part
from pyro_gvae.estimators import estimator
from pyro_gvae.evaluate.bounds import is_summable
from pyro_gvae.evaluate.code_statistics import guide_log_probs
from pyro_gvae.evaluate.metrics import code_usage, discrete_scores, evaluate, own_objective
from pyro_gvae.evaluate.tables import evaluation_table
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize, weigh_kl
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.look import look
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.train.step import make_step

D, N, K = 6, 3, 4
EXACT = ["elbo", "log_evidence", "reconstruction", "kl", "posterior_entropy", "mutual_information"]
EXACT += ["latent_information", "code_perplexity", "active_units", "linear_probe_accuracy"]


def make_data(**options):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (300,), generator=generator)
    x = ((torch.rand(300, D, generator=generator) + labels.unsqueeze(-1)) / 2 > 0.5).float()
    given = {"train_labels": labels[:200], "test_labels": labels[200:]} | options
    return Dataset("two kinds", x[:200], x[200:], (2, 3), **given)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = CategoricalVAE(D, N, K, (16,))
    step = make_step(vae, estimator("exact"), lr=1e-2)
    for _ in range(150):
        step(make_data().train)
    return vae


def test_metrics_are_those_of_their_definitions(vae):
    data = make_data()
    found = evaluate(vae, data)
    assert list(found.metrics.query("part == 'test'")["metric"]) == EXACT
    assert list(found.metrics.query("part == 'train'")["metric"]) == EXACT[:-1]
    for part, x in (("train", data.train), ("test", data.test)):
        elbo, evidence = exact.elbo(vae, x), exact.log_evidence(vae, x)
        log_q = guide_log_probs(vae, x)
        kl = (log_q.exp() * log_q).sum((-2, -1)) + N * math.log(K)  # the prior is uniform
        expected = {
            "elbo": elbo,
            "log_evidence": evidence,
            "kl": kl,
            "reconstruction": elbo + kl,
            "posterior_entropy": N * math.log(K) - kl,
        }
        for name, values in expected.items():
            row = found.metrics.set_index(["part", "metric"]).loc[(part, name)]
            assert row["value"] == pytest.approx(values.mean().item(), abs=1e-4)
            error = values.std().item() / math.sqrt(len(x))
            assert row["standard_error"] == pytest.approx(error, rel=1e-3, abs=1e-6)
            assert row["method"] == "exact"
        assert found.value(part, "mutual_information") <= found.value(part, "latent_information") + 1e-9
        assert found.value(part, "latent_information") <= found.value(part, "kl") + 0.1
    assert found.value("test", "linear_probe_accuracy") > 0.8
    assert found.warnings == []


def test_sampled_metrics_agree_with_the_sums(vae):
    data = make_data()
    summed = evaluate(vae, data, evidence="exact")
    sampled = evaluate(vae, data, evidence="importance-weighted", num_particles=2000)
    assert "log_evidence" not in set(sampled.metrics["metric"]) and "iwae_bound" not in set(summed.metrics["metric"])
    for part in ("train", "test"):
        size = sampled.value(part, "effective_sample_size")
        assert size > 500
        tolerance = 5 / math.sqrt(100 * size) + 0.5 / size
        assert abs(sampled.value(part, "iwae_bound") - summed.value(part, "log_evidence")) < tolerance
        assert abs(sampled.value(part, "elbo") - summed.value(part, "elbo")) < 5 * 2 / math.sqrt(100 * 2000)
        assert summed.value(part, "log_evidence") - summed.value(part, "elbo") > tolerance  # the control
        assert sampled.value(part, "kl") == pytest.approx(summed.value(part, "kl"))
    methods = sampled.metrics.query("metric in ('elbo', 'iwae_bound', 'reconstruction')")["method"]
    assert set(methods) == {"2000 samples"}


def test_nothing_of_the_relaxation_is_in_the_metrics(vae):
    before = evaluate(vae, make_data()).metrics
    old = vae.temperature.item(), vae.prior_temperature.item()
    vae.temperature, vae.prior_temperature = 5.0, 0.1
    after = evaluate(vae, make_data()).metrics
    vae.temperature, vae.prior_temperature = old
    assert before.equals(after)
    of_pair = evaluate(Pair(discretize(vae.model), discretize(vae.guide)), make_data()).metrics
    assert before.equals(of_pair)


def test_the_sum_is_taken_where_it_can_be(vae):
    assert "log_evidence" in set(evaluate(vae, make_data(), max_operations=1e12).metrics["metric"])
    assert "iwae_bound" in set(evaluate(vae, make_data(), max_operations=0, num_particles=5).metrics["metric"])
    large = CategoricalVAE(D, 40, 30, (5,))
    found = evaluate(large, make_data(), num_data=5, num_particles=20)
    assert "iwae_bound" in set(found.metrics["metric"]) and "mutual_information" not in set(found.metrics["metric"])
    with pytest.raises(ValueError, match="30\\^40"):
        evaluate(large, make_data(), num_data=5, evidence="exact")


def test_samples_are_repeatable_and_leave_the_random_state_alone(vae):
    options = {"evidence": "importance-weighted", "num_particles": 10}
    state = torch.get_rng_state()
    first, again = (evaluate(vae, make_data(), seed=3, **options) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.metrics.equals(again.metrics)
    assert not first.metrics.equals(evaluate(vae, make_data(), seed=4, **options).metrics)


def test_few_samples_are_warned_of(vae):
    found = evaluate(vae, make_data(), evidence="importance-weighted", num_particles=5)
    assert {warning.split(":")[0] for warning in found.warnings} == {"train", "test"}
    assert "have fewer than 10 effective samples of P = 5" in found.warnings[0]
    assert f"Warning: {found.warnings[0]}" in evaluation_table(found)


def test_chunks_of_data_change_nothing(vae, monkeypatch):
    at_once = evaluate(vae, make_data())
    monkeypatch.setattr("pyro_gvae.evaluate.metrics.DATA_AT_A_TIME", 70)
    in_chunks = evaluate(vae, make_data())
    for one, other in zip(at_once.metrics.itertuples(), in_chunks.metrics.itertuples(), strict=True):
        assert one.metric == other.metric and one.value == pytest.approx(other.value, abs=1e-4)


@pytest.mark.parametrize("labels", [{"train_labels": None}, {"test_labels": torch.full((100,), 7)}])
def test_without_labels_to_learn_there_is_no_probe(vae, labels):
    assert "linear_probe_accuracy" not in set(evaluate(vae, make_data(**labels)).metrics["metric"])


def test_only_as_many_data_as_asked_for(vae):
    data = make_data()
    small = replace(
        data,
        train=data.train[:50],
        test=data.test[:50],
        train_labels=data.train_labels[:50],
        test_labels=data.test_labels[:50],
    )
    assert evaluate(vae, data, num_data=50).metrics.equals(evaluate(vae, small).metrics)
    dynamic = replace(data, train=data.train / 2, binarize="dynamic")
    one, again, other = (fixed_part(dynamic, "train", 30, seed=seed).x for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other) and set(one.unique().tolist()) == {0.0, 1.0}


def test_the_table_and_the_json_hold_all_numbers(vae):
    found = evaluate(vae, make_data())
    table = evaluation_table(found)
    for name in EXACT:
        assert name.replace("_", " ") in table
    assert f"{found.value('test', 'elbo'):.3f} ±" in table
    written = json.loads(json.dumps(found.as_json()))
    assert written["test"]["elbo"]["value"] == found.value("test", "elbo")
    assert written["test"]["elbo"]["method"] == "exact" and written["warnings"] == []
    assert len(written["latents"]) == 2 * N and written["latents"][0]["perplexity"] > 1
    rows = found.latents.query("part == 'test'")
    assert rows["active"].sum() == found.value("test", "active_units")
    assert rows["perplexity"].mean() == pytest.approx(found.value("test", "code_perplexity"))
    assert rows["mutual_information"].sum() == pytest.approx(found.value("test", "latent_information"))


def test_what_cannot_be_evaluated_is_refused(vae):
    with pytest.raises(ValueError, match=r"Expected evidence to be one of auto, exact, importance-weighted"):
        evaluate(vae, make_data(), evidence="both")
    with pytest.raises(ValueError, match=r"Expected num_data of at least 1, but found 0"):
        evaluate(vae, make_data(), num_data=0)
    with pytest.raises(ValueError, match=r"Expected a part among train, test, but found 'valid'"):
        fixed_part(make_data(), "valid")
    with pytest.raises(ValueError, match=r"Expected a metric among elbo, .*, but found 'nll' of 'test'"):
        evaluate(vae, make_data()).value("test", "nll")
    weighed = Pair(weigh_kl(vae.model, beta=0.5), weigh_kl(vae.guide, beta=0.5))
    for evidence in ("exact", "importance-weighted"):
        with pytest.raises(ValueError, match=r"Expected all sites of the model to share one scale"):
            evaluate(weighed, make_data(), evidence=evidence, num_particles=2)


def test_a_scale_and_a_mask_are_those_of_every_number_in_nats(vae):
    plain = evaluate(vae, make_data())
    scaled = evaluate(Pair(*(scaled_by_two(program) for program in (vae.model, vae.guide))), make_data())
    for name in ("elbo", "log_evidence", "reconstruction", "kl"):
        assert scaled.value("test", name) == pytest.approx(2 * plain.value("test", name), abs=1e-3)
    assert scaled.value("test", "posterior_entropy") == plain.value("test", "posterior_entropy")


def scaled_by_two(program):
    return poutine.scale(discretize(program), scale=2.0)


def test_a_slow_clock_changes_no_method(vae, slow_clock):
    assert "log_evidence" in set(evaluate(vae, make_data()).metrics["metric"])


def test_what_a_sum_takes_is_that_of_all_data():
    """The cost is measured on the first of them."""
    vae, x = CategoricalVAE(6, 2, 3, hidden=(5,)), torch.ones(20, 6)
    operations = exact.cost(vae, x[:5]).operations
    chunks, seen = [(rows,) for rows in x.split(5)], look(bind_pair(vae, x[:2]))
    assert is_summable(vae, chunks, seen, 4.01 * operations, None)
    assert not is_summable(vae, chunks, seen, 3.99 * operations, None)


def test_data_without_parts_are_refused():
    with pytest.raises(ValueError, match=r"Expected a Dataset with train and test images, but found Tensor"):
        evaluate(CategoricalVAE(6, 2, 3, hidden=(5,)), torch.ones(4, 6))


def _layered(x, *, observe, continuous):
    """Build a program with two discrete latents, with or without a normal one."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=torch.tensor([0.0, 1.0, 2.0])))
        bit = pyro.sample("bit", dist.Bernoulli(logits=k - 1.0))
        c = pyro.sample("c", dist.Normal(bit, 1.0)) if continuous else bit
        if observe:
            pyro.sample("x", dist.Normal((c + k).unsqueeze(-1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("continuous", [False, True])
def test_any_latents_have_all_numbers(continuous):
    data = make_data()
    pair = Pair(*(partial(_layered, observe=observe, continuous=continuous) for observe in (True, False)))
    found = evaluate(pair, data, num_particles=50)
    names = list(found.metrics.query("part == 'test'")["metric"])
    kls = ["kl", "kl[k]", "kl[bit]"] + ["kl[c]"] * continuous
    entropy, information, perplexity, active = (
        [name, f"{name}[k]", f"{name}[bit]"]
        for name in ("posterior_entropy", "latent_information", "code_perplexity", "active_units")
    )
    use = [*information, *perplexity[1:], *active]  # no mean perplexity: the numbers of categories differ
    table = evaluation_table(found)
    assert "kl[bit]" in table and list(found.latents["latent"]) == ["k", "bit"] * 2
    assert found.value("test", "kl") == pytest.approx(sum(found.value("test", name) for name in kls[1:]))
    assert found.value("test", "reconstruction") == pytest.approx(
        found.value("test", "elbo") + found.value("test", "kl")
    )
    if not continuous:
        first = ["elbo", "log_evidence", "reconstruction", *kls, *entropy, "mutual_information"]
        assert names == [*first, *use, "linear_probe_accuracy"]
        expected = exact.bounds(pair, data.test)
        assert found.value("test", "elbo") == pytest.approx(expected.elbo.mean().item())
        assert found.value("test", "log_evidence") == pytest.approx(expected.log_evidence.mean().item())
        assert found.value("test", "kl") == pytest.approx(0, abs=1e-6)  # the guide is the prior
        return
    sizes = ["effective_sample_size", "least_effective_sample_size"]
    collapsed = [
        f"collapsed_{name}" if name != sizes[1] else f"least_collapsed_{sizes[0]}" for name in ["iwae_bound", *sizes]
    ]
    first = ["elbo", "iwae_bound", *sizes, *collapsed, "reconstruction", *kls]
    assert names == [*first, *entropy, *use, "linear_probe_accuracy"]
    assert found.value("test", "elbo") < found.value("test", "iwae_bound") < found.value("test", "collapsed_iwae_bound")
    with pytest.raises(ValueError, match="collapsed importance-weighted bound"):
        evaluate(pair, data, evidence="exact")


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes")
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_evaluated(name):
    """Compare with the bounds of all data together; only a program without log p(x) is refused."""
    pyro.clear_param_store()
    pair = Pair(*PROGRAMS[name][:2])
    x = (DATA - DATA.min()) / (DATA.max() - DATA.min())
    data = Dataset("any", x, x, (2, 2))
    if name == "a subsampled plate with scale and mask":
        with pytest.raises(ValueError, match="share one scale"):
            evaluate(pair, data, num_particles=5)
        return
    found = evaluate(pair, data, num_particles=5)
    assert found.metrics["value"].notna().all()
    by_latent = found.metrics.query("part == 'test' and metric.str.startswith('kl[')")["value"].sum()
    assert by_latent == pytest.approx(found.value("test", "kl"))
    if "log_evidence" in set(found.metrics["metric"]):
        expected = exact.bounds(pair, x)
        assert found.value("test", "elbo") == pytest.approx(expected.elbo.sum().item() / B)
        assert found.value("test", "log_evidence") == pytest.approx(expected.log_evidence.sum().item() / B)


@pytest.mark.parametrize("name", ["two layers, top-down", "a normal given a code", "nested plates"])
def test_scores_of_a_loss_are_those_of_the_pair(name):
    pair = sharp(name)  # its parameters in Pyro's store differ from the initial ones
    own = own_objective(pair, estimator("exact"), DATA)
    assert own == pytest.approx(exact.elbo(pair, DATA).sum().item() / B)
    if name == "a normal given a code":
        return
    expected = exact.bounds(pair, DATA)
    found = discrete_scores(pair, DATA)
    assert found == pytest.approx((expected.elbo.sum().item() / B, expected.log_evidence.sum().item() / B))
    assert {len(usage) for usage in code_usage(pair, DATA).values()} == {1}


def test_a_chain_is_evaluated_as_its_joint_codes():
    pyro.clear_param_store()
    data = Dataset("sequences", DATA.sigmoid()[:, :3], DATA.sigmoid()[:, :3], (1, 3))
    found, expected = (
        evaluate(pair, data)
        for pair in (Pair(chain_model, chain_guide), Pair(without_markov(chain_model), without_markov(chain_guide)))
    )
    texts = ["part", "metric", "unit", "method"]
    assert found.metrics[texts].equals(expected.metrics[texts])
    for own, other in zip((found.metrics, found.latents), (expected.metrics, expected.latents), strict=True):
        numbers = own.select_dtypes("number").columns
        assert own[numbers].to_numpy() == pytest.approx(other[numbers].to_numpy(), abs=1e-9, nan_ok=True)


def test_latents_that_the_guide_lacks_have_the_numbers_of_their_posterior():
    pyro.clear_param_store()
    x = DATA.sigmoid()[:, :3]
    found = evaluate(Pair(chain_model, no_guide), Dataset("sequences", x, x, (1, 3)))
    evidence = exact.log_evidence(Pair(chain_model, no_guide), x).mean().item()
    assert found.value("test", "elbo") == found.value("test", "log_evidence") == pytest.approx(evidence)
    usage = code_usage(Pair(chain_model, no_guide), x)
    for name, probs in usage.items():
        perplexity = torch.special.entr(probs).sum(-1).exp().item()
        assert found.value("test", f"code_perplexity[{name}]") == pytest.approx(perplexity, abs=1e-9)
    assert set(found.metrics["method"]) == {"exact"}


def test_a_chain_beside_what_is_continuous_is_sampled_with_its_codes_summed():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(torch.zeros(()).double(), 1.0))
            z = weights(2)
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z{t}", one_hot(linear(2, z)))
                pyro.sample(f"x{t}", dist.Normal(z[..., 0] + c, 1.0), obs=x[:, t])

    def continuous(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(x.mean(-1) / 2, 0.8))

    def both(x):
        continuous(x)
        with pyro.plate("data", len(x)):
            z = weights(2)
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z{t}", one_hot(linear(2, z)))

    pyro.clear_param_store()
    x = DATA.sigmoid()[:, :3]
    data = Dataset("sequences", x, x, (1, 3))
    alone, drawn = (evaluate(Pair(model, guide), data, num_particles=300) for guide in (continuous, both))
    assert "collapsed_iwae_bound" not in set(alone.metrics["metric"])  # all codes are summed anyway
    bounds = alone.value("test", "iwae_bound"), drawn.value("test", "collapsed_iwae_bound")
    assert bounds[0] == pytest.approx(bounds[1], abs=0.1)
    assert alone.value("test", "elbo") > drawn.value("test", "elbo") + 0.05
    assert alone.value("test", "kl[c]") == pytest.approx(drawn.value("test", "kl[c]"), abs=0.2)
