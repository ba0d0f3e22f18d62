"""The gap decomposition: the order of bounds, the relaxed one against stock Trace_ELBO, a run folder end to end."""

import json
import math
import shutil
from dataclasses import replace

import pandas as pd
import pyro
import pytest
import torch
from brute import sharp
from pairs import DATA, chain_guide, chain_model, no_guide, without_markov
from pyro.infer import Trace_ELBO

from pyro_gvae import exact
from pyro_gvae.compare.run import compare
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.evaluate.code_statistics import table_mutual_information
from pyro_gvae.evaluate.gaps import BOUNDS, GAPS, gaps, prior_gap, relaxed_bound, summarize_gaps
from pyro_gvae.evaluate.guides import read_guide
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import relax
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.report.gaps import draw_gaps, gaps_table, run_gaps
from pyro_gvae.runs.folder import cell_folder
from pyro_gvae.runs.frames import read_json_lines
from pyro_gvae.train.trained import load_model

SMALL = CompareConfig(
    estimators=("gumbel-softmax", "exact"),
    num_latents=2,
    num_categories=4,
    hidden=(32,),
    epochs=2,
    evaluations=1,
    seeds=(0,),
)


def make(scale=2.0):
    vae = CategoricalVAE(6, 3, 4, (16,)).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(scale)
    return vae, torch.rand(20, 6).round().double()


def test_bounds_stand_in_their_order():
    vae, x = make()
    found = gaps(vae, x, num_particles=2)
    assert (found.elbo <= found.mean_field_elbo + 1e-9).all()
    assert (found.mean_field_elbo <= found.log_evidence + 1e-9).all()
    assert (found.mean_field_elbo - found.elbo).mean() > 0.01  # this encoder was never trained
    torch.testing.assert_close(found.elbo, exact.elbo(vae, x))
    torch.testing.assert_close(found.log_evidence, exact.log_evidence(vae, x))


@pytest.mark.parametrize("prior", ["independent", "mixture"])
def test_the_prior_gap_is_the_divergence_of_the_aggregated_posterior(prior):
    vae = CategoricalVAE(6, 3, 4, (16,), prior=prior).double()
    x = torch.rand(20, 6).round().double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter))
    codes = joint_codes(3, 4).double()
    log_q = codes.flatten(1) @ vae.encoder(x).log_softmax(-1).flatten(1).T  # (S, B)
    log_p = (
        codes.flatten(1) @ vae.prior_logits.log_softmax(-1).flatten()
        if vae.prior is None
        else vae.prior.log_prob(codes)
    )
    aggregated = log_q.exp().mean(1)
    expected = (aggregated * (aggregated.log() - log_p)).sum()
    torch.testing.assert_close(prior_gap(vae, x).mean(), expected)
    assert expected > 0.1


def test_latents_that_depend_on_each_other_have_a_prior_gap():
    pair = sharp("two layers, top-down")
    said = read_guide(pair, DATA)
    expected = sum(said.kls.values()).mean() - table_mutual_information(said.table).value
    torch.testing.assert_close(prior_gap(pair, DATA).mean(), expected)
    assert prior_gap(sharp("a global code"), DATA) is None


@pytest.mark.parametrize("name", ["two layers, independent", "two layers, top-down", "a global code", "nested plates"])
def test_several_latents_have_their_gaps(name):
    pair = sharp(name)
    found = gaps(pair, DATA, num_particles=20, temperature=0.5)
    expected = exact.bounds(pair, DATA)
    torch.testing.assert_close(found.elbo, expected.elbo)
    assert found.relaxed_bound.shape == found.elbo.shape == found.mean_field_elbo.shape
    assert (found.mean_field_elbo <= found.log_evidence + 1e-9).all()
    if name == "two layers, independent":
        assert (found.elbo <= found.mean_field_elbo + 1e-9).all()
    # The relaxed bound is the loss of stock Trace_ELBO, with the same random numbers.
    model, guide = (relax(program, temperature=0.5) for program in pair)
    pyro.set_rng_seed(3)
    bound = relaxed_bound(pair, DATA, num_particles=2, temperature=0.5).sum()
    pyro.set_rng_seed(3)
    stock = sum(Trace_ELBO().loss(model, guide, DATA) for _ in range(2)) / 2
    torch.testing.assert_close(bound, torch.tensor(-stock).double())


def test_excluded_categories_have_no_relaxation_gap():
    """A Concrete variable is never 0, but all other bounds are known."""
    vae, x = CategoricalVAE(6, 2, 3, (16,)).double(), torch.rand(4, 6).double()
    with torch.no_grad():
        vae.encoder[-2].bias[0] = -math.inf
    found = gaps(vae, x)
    assert found.relaxed_bound is None
    torch.testing.assert_close(found.elbo, exact.elbo(vae, x))
    assert (found.elbo <= found.mean_field_elbo + 1e-9).all()


def test_integers_have_no_relaxation_gap():
    pair = sharp("bits and an integer")
    found = gaps(pair, DATA)
    row = summarize_gaps(found)
    assert found.relaxed_bound is None and "relaxation_gap" not in row and "relaxed_bound" not in row
    assert row["mean_field_gap"] >= 0
    with pytest.raises(ValueError, match="no sum can be taken"):
        gaps(sharp("a normal given a code", 1.0), DATA)
    with pytest.raises(ValueError, match="Expected a temperature"):
        gaps(sharp("two layers, independent", 1.0), DATA)


def test_a_chain_has_the_gaps_of_its_joint_codes():
    pyro.clear_param_store()
    found = []
    for model, guide in ((chain_model, chain_guide), (without_markov(chain_model), without_markov(chain_guide))):
        pyro.set_rng_seed(0)
        found.append(gaps(Pair(model, guide), DATA, num_particles=2, temperature=0.5))
    one, other = found
    torch.testing.assert_close(one.mean_field_elbo, other.mean_field_elbo, rtol=0, atol=1e-6)  # the ascent's tolerance
    torch.testing.assert_close(
        one._replace(mean_field_elbo=None), other._replace(mean_field_elbo=None), rtol=1e-9, atol=1e-9
    )


def test_latents_that_the_guide_lacks_are_not_relaxed():
    pyro.clear_param_store()
    found = gaps(Pair(chain_model, no_guide), DATA)
    assert found.relaxed_bound is None
    torch.testing.assert_close(found.elbo, found.log_evidence)
    assert (found.mean_field_elbo < found.elbo).all()  # the exact posterior is not factorized


@pytest.mark.slow
def test_the_relaxed_bound_is_that_of_trace_elbo():
    vae, x = make()
    ours = relaxed_bound(vae, x, num_particles=100)
    assert ours.shape == (20,)
    stock = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    theirs = torch.tensor([-stock.loss(vae.model, vae.guide, x) for _ in range(10)])
    mine = torch.stack([relaxed_bound(vae, x, num_particles=100).sum() for _ in range(10)])
    standard_error = math.sqrt((theirs.var() + mine.var()) / 10)
    assert abs(theirs.mean() - mine.mean()) < 5 * standard_error
    assert standard_error < 0.01 * abs(theirs.mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory, without_reports):
    with without_reports():
        return compare(replace(SMALL, output=tmp_path_factory.mktemp("runs") / "run"))


def test_the_weights_of_a_run_come_back(run):
    final = read_json_lines(run / "metrics.jsonl").query("step > 0").set_index("estimator")
    for name in SMALL.estimators:
        found = load_model(run, name, 0)
        assert exact.elbo(found.vae, found.data.test).mean().item() == pytest.approx(
            final.loc[name, "test_elbo"], abs=1e-4
        )


def test_a_run_folder_is_decomposed(run):
    table = run_gaps(run, num_data=50, num_particles=3)
    assert list(table["estimator"]) == list(SMALL.estimators) and (table["data"] == 50).all()
    assert list(table["relaxed"]) == ["gumbel-softmax" in name for name in SMALL.estimators]
    for low, high, gap in zip(BOUNDS[:-1], BOUNDS[1:], GAPS, strict=True):
        assert (table[high] - table[low]).values == pytest.approx(table[gap].values, abs=1e-3)
    pd.testing.assert_frame_equal(pd.read_csv(run / "gaps.csv"), table)
    assert (run / "figures" / "gaps.png").stat().st_size > 1000 and (run / "figures" / "gaps.svg").exists()
    assert "amortization gap" in gaps_table(table) and "±" in gaps_table(table)
    best = table.loc[table["log_evidence"].idxmax()]
    page = (run / "gaps.html").read_text()
    assert f"<b>{best['estimator']}</b> has the highest log p(x)" in page and "data:image/svg" in page


def test_the_figure_names_gaps_and_unit(run, unrendered):
    figure = draw_gaps(run_gaps(run, num_data=20, num_particles=1))
    whole, close = figure.axes
    assert "nats" in whole.get_xlabel() and "nats" in close.get_xlabel()
    assert [text.get_text() for text in whole.get_yticklabels()] == list(SMALL.estimators)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*GAPS.values(), "log p(x)"]


@pytest.mark.parametrize("changed", [{"num_latents": 3}, {"num_latents": "2"}])
def test_a_configuration_that_does_not_fit_the_weights_is_refused(run, tmp_path, changed):
    shutil.copytree(run, tmp_path / "run")
    written = cell_folder(tmp_path / "run", "exact", 0) / "config.json"
    config = json.loads(written.read_text())
    written.write_text(json.dumps(config | {"train": config["train"] | changed}))
    with pytest.raises(ValueError, match="Expected"):
        load_model(tmp_path / "run", "exact", 0)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected"):
        run_gaps(tmp_path)
    with pytest.raises(ValueError, match=r"Expected a run folder"):
        load_model(tmp_path, "exact", 0)
