"""Every command on a run of every ready program for images: what it writes, or why it refuses."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pyro_gvae import exact
from pyro_gvae.cli.main import main
from pyro_gvae.compare import cell
from pyro_gvae.data.labels import judged
from pyro_gvae.data.parts import fixed_part
from pyro_gvae.evaluate.generate import encode, reconstruct, sample
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.trained import load_model

SIZES = {
    "bernoulli": ["--num-latents", 3],
    "hierarchical": ["--num-latents", 1, "--num-categories", 3],
    "joint": ["--num-categories", 3, "--latent-dim", 2],
    "gaussian-mixture": ["--num-categories", 3, "--latent-dim", 2],
    "semi-supervised": ["--latent-dim", 2, "--labelled-share", 0.1],
    "conditional": ["--num-categories", 3],
}
#: The files of a model trained by these stages.
STAGES, NAME = "reinforce-loo:1steps,exact:1steps", "reinforce-loo-1steps-exact-1steps-seed0"
CONTINUOUS = {"joint", "gaussian-mixture", "semi-supervised"}
COLUMNS = {
    "bernoulli": ["latent_0", "latent_1", "latent_2"],
    "hierarchical": ["z1_0", "z2_0"],
    "joint": ["y_0", "z_0", "z_1"],
    "gaussian-mixture": ["y_0", "z_0", "z_1"],
    "semi-supervised": ["y_0", "z_0", "z_1"],
    "conditional": ["latent_0", "latent_1"],
}
#: A small number of data or samples, so that no command takes long.
FEW = {
    "encode": ["--num-data", 5],
    "reconstruct": ["--num-data", 3],
    "sample": ["--num-samples", 3],
    "gaps": ["--num-data", 5, "--num-particles", 2],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, without_reports):
    """Return a run of each program, trained for two steps."""
    top = tmp_path_factory.mktemp("runs")
    for model in SIZES:
        stages = ["--stages", STAGES, "--judge", "none", "--hidden", 8]
        arguments = ["train", "--model", model, *SIZES[model], *stages, "--output", top / model]
        with without_reports():
            assert main([str(word) for word in arguments]) == 0
    return top


@pytest.fixture(params=SIZES)
def run(runs, request):
    return runs / request.param


def shown_to(trained, count):
    """Return the first test data in the form that the program takes."""
    return judged(trained.vae, *fixed_part(trained.data, "test", count))


def say(capsys, *arguments):
    assert main(list(map(str, arguments))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


def test_a_model_is_evaluated(run, capsys):
    say(capsys, "evaluate", run, "--num-data", 10, "--num-particles", 5)
    written = json.loads((run / "evaluation" / f"{NAME}.json").read_text())["test"]
    trained = load_model(run)
    if run.name in CONTINUOUS:
        assert math.isfinite(written["collapsed_iwae_bound"]["value"]) and "log_evidence" not in written
        assert "collapsed importance-weighted bound" in refused(capsys, "evaluate", run, "--evidence", "exact")
    else:
        evidence = exact.log_evidence(trained.vae, shown_to(trained, 10)).mean().item()
        assert written["log_evidence"]["value"] == pytest.approx(evidence, abs=1e-3)


@pytest.mark.parametrize("kind", ["map", "sample", "exact"])
def test_images_are_encoded(run, kind, capsys):
    command = ["encode", run, "--kind", kind, *FEW["encode"]]
    if kind == "exact" and run.name in CONTINUOUS:
        assert "whose latents are all discrete, but found 'z'" in refused(capsys, *command)
        return
    assert "5 data" in say(capsys, *command)
    path = run / "codes" / f"{NAME}-test-{kind}"
    table, arrays = pd.read_csv(f"{path}.csv"), load_file(f"{path}.safetensors")
    assert list(table) == [*COLUMNS[run.name], "code", "p(code)", "label"] and table["p(code)"].between(0, 1).all()
    trained = load_model(run)
    if kind != "sample":
        found = encode(trained.vae, shown_to(trained, 5), kind)
        named = found if isinstance(found, dict) else {"codes": found}
        assert arrays.keys() == named.keys() | {"labels"}
        for name, values in named.items():
            assert torch.equal(arrays[name], values.argmax(-1) if values.dim() == 3 else values)
    columns = torch.cat([own.double() for name, own in sorted(arrays.items()) if name != "labels"], 1)
    torch.testing.assert_close(torch.tensor(table[COLUMNS[run.name]].values).double(), columns, rtol=1e-6, atol=1e-6)


def test_images_are_reconstructed_and_sampled(run, capsys):
    assert "3 images" in say(capsys, "reconstruct", run, *FEW["reconstruct"])
    arrays = load_file(run / "reconstructions" / f"{NAME}-test-map.safetensors")
    trained = load_model(run)
    torch.testing.assert_close(arrays["reconstructions"], reconstruct(trained.vae, shown_to(trained, 3)))
    assert "3 samples" in say(capsys, "sample", run, *FEW["sample"], "--pixels")
    drawn = load_file(run / "samples" / f"{NAME}-pixels.safetensors")["samples"]
    assert drawn.shape == (3, 64) and set(drawn.unique().tolist()) == {0.0, 1.0}


def test_samples_of_a_class_are_asked_by_its_name(runs, capsys):
    for model in ("semi-supervised", "conditional"):
        assert "3 samples" in say(capsys, "sample", runs / model, *FEW["sample"], "--label", 7)
        found = load_file(runs / model / "samples" / f"{NAME}-means-7.safetensors")["samples"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.testing.assert_close(found, sample(load_model(runs / model).vae, 3, label=7))
        assert "Expected a label among 0, 1, 2" in refused(capsys, "sample", runs / model, "--label", "x")
    assert "Expected no label, since the program" in refused(capsys, "sample", runs / "joint", "--label", 7)


def test_gaps_are_measured_or_refused(run, capsys, unrendered):
    if run.name in CONTINUOUS:
        assert "collapsed importance-weighted bound" in refused(capsys, "gaps", run, *FEW["gaps"])
        assert not (run / "gaps.csv").exists()
        return
    say(capsys, "gaps", run, *FEW["gaps"])
    [row] = pd.read_csv(run / "gaps.csv").to_dict("records")
    assert row["elbo"] <= row["mean_field_elbo"] + 1e-4 and row["mean_field_elbo"] <= row["log_evidence"] + 1e-4


def test_pages_of_tiles_are_of_codes_alone(run, capsys):
    if run.name in ("bernoulli", "hierarchical"):
        assert "explorer:" in say(capsys, "explore", run)
        return
    said = refused(capsys, "explore", run)
    assert "Expected a run of the model 'categorical'" in said and not (run / "explorer.html").exists()


def test_a_finished_run_stays_finished(run, capsys, unreported):
    before = (run / "weights.safetensors").read_bytes()
    assert "2 steps" in say(capsys, "resume", run)
    assert (run / "weights.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_run_is_reported(run, capsys):
    say(capsys, "report", run)
    page = (run / "report.html").read_text()
    words = {
        "bernoulli": "whose code is 3 bits",
        "hierarchical": "2 layers of 1 categorical latent of 3 categories",
        "joint": "1 categorical latent of 3 categories and a Gaussian of dimension 2",
        "gaussian-mixture": "one of 3 components and a Gaussian of dimension 2 that depends on it",
        "semi-supervised": "one of 10 classes and a Gaussian of dimension 2",
        "conditional": "2 categorical latents of 3 categories, beside the class that is given",
    }
    assert words[run.name] in page and page.count("<img") == 5


@pytest.mark.slow
def test_gradients_are_measured(run, capsys, tmp_path, unrendered):
    options = ["--estimators", "exact", "reinforce-loo", "--num-data", 3, "--num-samples", 32]
    assert "reinforce-loo" in say(capsys, "gradients", run, *options, "--output", tmp_path / "gradients")


@pytest.mark.slow
@pytest.mark.parametrize("model", SIZES)
def test_estimators_are_compared(model, capsys, tmp_path, unrendered, monkeypatch, without_reports):
    monkeypatch.setattr(cell, "NUM_DRAWS", 2)
    run = tmp_path / "run"
    options = ["--hidden", 8, "--estimators", "exact:2steps", "reinforce-loo:2steps", "--seeds", 0, "--evaluations", 1]
    said = say(capsys, "compare", "--model", model, *SIZES[model], *options, "--output", run)
    evidence = "test bound of log p(x)" if model in CONTINUOUS else "test log p(x)"
    assert "reinforce-loo:2steps" in said and evidence in said
    joint = {
        "bernoulli": "3 bits (8 joint codes)",
        "hierarchical": "of 3 categories (9 joint codes)",
        "joint": "a Gaussian of dimension 2 (3 joint codes)",
        "gaussian-mixture": "a Gaussian of dimension 2 that depends on it (3 joint codes)",
        "semi-supervised": "a Gaussian of dimension 2 (10 joint codes)",
        "conditional": "beside the class that is given (9 joint codes)",
    }
    assert joint[model] in (run / "report.html").read_text()
    say(capsys, "evaluate", run, "--estimator", "exact:2steps", "--num-data", 5)
    if model in CONTINUOUS:
        results = pd.read_csv(run / "results.csv")
        assert (results["test_elbo"] < results["test_collapsed_iwae_bound"]).all()
        assert "test_log_evidence" not in results
    else:
        say(capsys, "gaps", run, *FEW["gaps"])
    with without_reports():  # the same as above
        say(capsys, "resume", run)


@pytest.mark.slow
def test_pictures_of_tensorboard(tmp_path, capsys, unreported):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--stages", "reinforce-loo:1steps", "--hidden", 8, "--log", "tensorboard", "--output", tmp_path / "run"]
    say(capsys, "train", "--model", "gaussian-mixture", *SIZES["gaussian-mixture"], *options)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"reconstructions", "samples"} <= set(board.Tags()["images"])
    assert "perplexity/latent 0" in board.Tags()["scalars"]


def test_a_run_without_a_named_program_is_categorical(tmp_path, capsys, unreported):
    run = tmp_path / "run"
    options = ["--num-latents", 1, "--hidden", 8, "--stages", "exact:1steps", "--judge", "none", "--output", run]
    say(capsys, "train", *options)
    written = json.loads((run / "config.json").read_text())
    for name in ("model", "num_layers", "latent_dim"):
        del written["train"][name]
    (run / "config.json").write_text(json.dumps(written))
    assert type(load_model(run).vae) is CategoricalVAE
    assert "1 step " in say(capsys, "resume", run)


@pytest.mark.parametrize("command", ["evaluate", "encode", "sample", "gaps", "report", "resume"])
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "transformer"}, "Expected 'model' to be one of categorical, bernoulli,"),
        ({"num_categories": 8}, "Expected num_categories=2 with model='bernoulli'"),
        ({"model": "categorical"}, "Expected the weights in"),
    ],
)
def test_an_unknown_program_is_one_sentence(runs, command, changed, sentence, tmp_path, capsys):
    folder = shutil.copytree(runs / "bernoulli", tmp_path / "run")
    written = json.loads((folder / "config.json").read_text())
    written["train"] |= changed
    (folder / "config.json").write_text(json.dumps(written))
    said = refused(capsys, command, folder).splitlines()[-1]  # after a progress bar
    assert said.startswith("pyro-gvae: Expected") and (sentence in said or command == "resume")


def test_estimators_that_a_program_cannot_have_are_refused_before_anything_is_begun(tmp_path, capsys):
    options = ["--output", tmp_path / "run"]
    assert "integral" in refused(capsys, "train", "--model", "joint", "--stages", "exact-evidence:1", *options)
    assert "K=2" in refused(capsys, "compare", "--model", "hierarchical", "--estimators", "disarm", *options)
    soft = ["--stages", "gumbel-softmax[kl=categorical]:1steps"]
    assert "analytic KL of 'z1'" in refused(capsys, "train", "--model", "hierarchical", *soft, *options)
    assert not (tmp_path / "run").exists()
