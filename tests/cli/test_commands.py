"""Commands on a trained model: what they write, print and refuse."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from pyro_gvae import exact
from pyro_gvae.cli.main import COMMANDS, main
from pyro_gvae.compare.run import compare
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.data.datasets import load
from pyro_gvae.evaluate.generate import encode, reconstruct
from pyro_gvae.runs.files import append_json_line
from pyro_gvae.runs.folder import cell_folder
from pyro_gvae.runs.frames import read_json_lines
from pyro_gvae.train.trained import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory, without_rendering):
    config = CompareConfig(
        estimators=("exact",),
        seeds=(0,),
        num_latents=2,
        num_categories=4,
        hidden=(16,),
        epochs=2,
        evaluations=1,
        output=tmp_path_factory.mktemp("runs") / "run",
    )
    with without_rendering():
        return compare(config)


def say(capsys, *arguments):
    assert main(list(map(str, arguments))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_evaluate(run, capsys):
    said = say(capsys, "evaluate", run, "--num-data", 200)
    assert "log evidence" in said and "±" in said and "linear probe accuracy" in said
    written = json.loads((run / "evaluation" / "exact-seed0.json").read_text())
    trained = load_model(run)
    elbo = exact.elbo(trained.vae, trained.data.test[:200]).mean().item()
    assert written["test"]["elbo"]["value"] == pytest.approx(elbo, abs=1e-3)
    assert written["test"]["active_units"]["standard_error"] is None
    metrics = pd.read_csv(run / "evaluation" / "exact-seed0-metrics.csv")
    assert metrics.query("part == 'test' and metric == 'elbo'")["value"].item() == pytest.approx(elbo, abs=1e-3)
    assert len(pd.read_csv(run / "evaluation" / "exact-seed0-latents.csv")) == 4


def test_evaluate_by_samples_into_another_folder(run, capsys, tmp_path):
    options = [
        "--num-data",
        20,
        "--evidence",
        "importance-weighted",
        "--num-particles",
        3,
        "--output",
        tmp_path / "here",
    ]
    said = say(capsys, "evaluate", run, *options)
    assert "iwae bound" in said and "3 samples" in said and "Warning: test: " in said
    first = (tmp_path / "here" / "exact-seed0.json").read_text()
    say(capsys, "evaluate", run, *options)
    assert (tmp_path / "here" / "exact-seed0.json").read_text() == first


@pytest.mark.parametrize("kind", ["map", "sample", "exact"])
def test_encode(run, capsys, kind):
    said = say(capsys, "encode", run, "--kind", kind, "--part", "train", "--num-data", 30)
    assert "30 data" in said
    path = run / "codes" / f"exact-seed0-train-{kind}"
    arrays, table = load_file(f"{path}.safetensors"), pd.read_csv(f"{path}.csv")
    assert list(table) == ["latent_0", "latent_1", "code", "p(code)", "label"]
    sizes = load_model(run).vae.num_categories
    assert (table["code"] == sizes * table["latent_0"] + table["latent_1"]).all() and table["p(code)"].between(
        0, 1
    ).all()
    assert table[["latent_0", "latent_1"]].values.tolist() == arrays["codes"].tolist()
    assert table["label"].tolist() == arrays["labels"].tolist()
    if kind != "sample":
        trained = load_model(run)
        assert torch.equal(arrays["codes"], encode(trained.vae, trained.data.train[:30], kind).argmax(-1))


def test_reconstruct(run, capsys):
    assert "13 images" in say(capsys, "reconstruct", run, "--num-data", 13)
    path = run / "reconstructions" / "exact-seed0-test-map"
    arrays, trained = load_file(f"{path}.safetensors"), load_model(run)
    torch.testing.assert_close(arrays["reconstructions"], reconstruct(trained.vae, trained.data.test[:13]))
    assert torch.equal(arrays["inputs"], trained.data.test[:13])
    image = imread(f"{path}.png")
    assert image.shape == (2 + 4 * (64 + 2), 2 + 10 * (64 + 2), 3)  # two rows of images, each with one below
    pixels = torch.from_numpy(image[2:66:8, 2:66:8, 0])
    torch.testing.assert_close(pixels, arrays["inputs"][0].reshape(8, 8), atol=0.01, rtol=0)
    pixels = torch.from_numpy(image[68:132:8, 2:66:8, 0])
    torch.testing.assert_close(pixels, arrays["reconstructions"][0].reshape(8, 8), atol=0.01, rtol=0)


@pytest.mark.parametrize("pixels", [False, True])
def test_sample(run, capsys, pixels):
    options = ["--pixels"] if pixels else []
    assert "25 samples" in say(capsys, "sample", run, "--num-samples", 25, *options)
    path = run / "samples" / f"exact-seed0-{'pixels' if pixels else 'means'}"
    samples = load_file(f"{path}.safetensors")["samples"]
    assert samples.shape == (25, 64) and (set(samples.unique().tolist()) == {0.0, 1.0}) == pixels
    assert imread(f"{path}.png").shape[0] == 2 + math.ceil(25 / 10) * 66
    say(capsys, "sample", run, "--num-samples", 25, *options, "--seed", 1)
    assert not torch.equal(samples, load_file(f"{path}.safetensors")["samples"])


LEVELS = ["--observation", "categorical", "--num-levels", 16, "--binarize", "none"]
SMALL = ["--num-latents", 1, "--num-categories", 6, "--hidden", 16, "--learning-rate", 0.02]
#: Two stages, and the name of the files of the model that they train.
STAGES, STAGED = "gumbel-softmax:10steps,exact:30steps", "gumbel-softmax-10steps-exact-30steps-seed0"


@pytest.fixture(scope="module")
def levels(tmp_path_factory, without_rendering):
    """A run on pixels with 16 levels, resumed once."""
    run = tmp_path_factory.mktemp("levels") / "run"
    stages = ["--stages", STAGES, "--output", run]
    with without_rendering():
        assert main([str(word) for word in ["train", *LEVELS, *SMALL, *stages]]) == 0
        assert main(["resume", str(run)]) == 0
    return run


def test_levels_are_trained_and_evaluated(levels, capsys):
    lines = [json.loads(line) for line in (levels / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["test_elbo"] > lines[0]["test_elbo"] + 20
    assert lines[0]["test_elbo"] == pytest.approx(-64 * math.log(16), rel=0.03)  # nearly uniform levels
    trained = load_model(levels)
    digits = load("digits")  # they have 17 levels
    assert torch.equal(trained.data.test, (digits.test * 15).round())
    say(capsys, "evaluate", levels, "--num-data", 50)
    written = json.loads((levels / "evaluation" / f"{STAGED}.json").read_text())
    z = torch.eye(6).unsqueeze(-2)
    scores = torch.distributions.Categorical(logits=trained.vae.decoder(z).unflatten(-1, (64, 16)).unsqueeze(1))
    evidence = (scores.log_prob(trained.data.test[:50]).sum(-1) - math.log(6)).logsumexp(0).mean()
    assert written["test"]["log_evidence"]["value"] == pytest.approx(evidence.item(), rel=1e-5)


def test_levels_are_encoded_reconstructed_and_sampled(levels, capsys):
    trained = load_model(levels)
    say(capsys, "encode", levels, "--kind", "exact", "--num-data", 30)
    codes = load_file(levels / "codes" / f"{STAGED}-test-exact.safetensors")["codes"]
    assert torch.equal(codes, encode(trained.vae, trained.data.test[:30], "exact").argmax(-1))

    say(capsys, "reconstruct", levels, "--num-data", 10)
    path = levels / "reconstructions" / f"{STAGED}-test-map"
    arrays = load_file(f"{path}.safetensors")
    assert torch.equal(arrays["inputs"], trained.data.test[:10]) and arrays["inputs"].max() == 15
    for row, name in enumerate(("inputs", "reconstructions")):
        pixels = torch.from_numpy(imread(f"{path}.png")[2 + 66 * row : 66 + 66 * row : 8, 2:66:8, 0])
        torch.testing.assert_close(pixels, arrays[name][0].reshape(8, 8) / 15, atol=0.01, rtol=0)

    say(capsys, "sample", levels, "--pixels", "--num-samples", 20)
    path = levels / "samples" / f"{STAGED}-pixels"
    drawn = load_file(f"{path}.safetensors")["samples"]
    assert set(drawn.unique().tolist()) == set(range(16))
    pixels = torch.from_numpy(imread(f"{path}.png")[2:66:8, 2:66:8, 0])
    torch.testing.assert_close(pixels, drawn[0].reshape(8, 8) / 15, atol=0.01, rtol=0)


def test_levels_are_reported(levels, capsys):
    assert "report" in say(capsys, "report", levels)
    assert "log evidence" in say(capsys, "gaps", levels, "--num-data", 20)


@pytest.mark.slow
def test_gradients_of_levels_are_measured(levels, capsys):
    options = ["--estimators", "exact", "gumbel-softmax", "--temperatures", 1, "--num-data", 5, "--num-samples", 32]
    assert "gumbel-softmax" in say(capsys, "gradients", levels, *options, "--output", levels / "gradients")


@pytest.mark.slow
def test_levels_are_compared(capsys, tmp_path, unrendered):
    run = tmp_path / "run"
    options = ["--estimators", "gumbel-softmax", "exact", "--seeds", 0, "--epochs", 1, "--evaluations", 1]
    assert "report" in say(capsys, "compare", *LEVELS, *SMALL, *options, "--output", run)
    pictures = load_file(cell_folder(run, "exact", 0) / "pictures.safetensors")
    torch.testing.assert_close(pictures["inputs"], (load("digits").test[:10] * 15).round() / 15)
    assert pictures["category_pictures"].dtype is torch.uint8
    grey = [array for array in pictures.values() if array.is_floating_point()]
    assert all(array.min() >= 0 and array.max() <= 1 for array in grey)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--num-levels", 16], "Expected no num_levels for the observation 'bernoulli', but found num_levels=16"),
        ([*LEVELS, "--binarize", "dynamic"], "which are probabilities of black and white. Try --binarize none"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_invalid_levels_are_refused(command, options, sentence, capsys, tmp_path):
    assert main([command, *map(str, options), "--output", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_few_images_are_one_short_row(run, capsys, tmp_path):
    say(capsys, "sample", run, "--num-samples", 3, "--output", tmp_path)
    assert imread(tmp_path / "exact-seed0-means.png").shape == (68, 200, 3)


def test_one_of_several_models_must_be_named(run, tmp_path, capsys):
    several = shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    cells = [cell | {"seed": seed} for cell in config["cells"] for seed in (0, 1)]
    (several / "config.json").write_text(json.dumps(config | {"cells": cells}))
    shutil.copytree(cell_folder(run, "exact", 0), cell_folder(several, "exact", 1))
    for line in read_json_lines(run / "metrics.jsonl").to_dict("records"):
        append_json_line(several / "metrics.jsonl", line | {"seed": 1})
    assert main(["sample", str(several)]) == 2
    said = capsys.readouterr().err
    assert "Expected one matching model in" in said
    assert "but found 2 among exact with seed 0, exact with seed 1. Try --estimator and --model-seed." in said
    assert load_model(several, seed=1).name == "exact-seed1"
    with pytest.raises(ValueError, match=r"but found 0 among"):
        load_model(several, "rebar", 0)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected a run folder, but found that"):
        load_model(tmp_path)


def test_every_command_has_a_configuration_of_its_own_and_help(capsys):
    assert len({command.config for command in COMMANDS.values()}) == len(COMMANDS)
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert " ".join(command.config.__doc__.split("\n")[0].split()) in said
