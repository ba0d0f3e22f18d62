"""The commands on a trained model: what they write, what they say, what they refuse."""

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
from pyro_gvae.evaluate.generate import encode, reconstruct
from pyro_gvae.runs.files import append_json_line
from pyro_gvae.runs.folder import cell_folder
from pyro_gvae.runs.frames import read_json_lines
from pyro_gvae.train.trained import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return compare(
        CompareConfig(
            estimators=("exact",),
            seeds=(0,),
            num_latents=2,
            num_categories=4,
            hidden=(16,),
            epochs=2,
            evaluations=1,
            output=tmp_path_factory.mktemp("runs") / "run",
        )
    )


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
    options = ["--num-data", 20, "--evidence", "importance-weighted", "--particles", 3, "--output", tmp_path / "here"]
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
    assert list(table) == ["latent_0", "latent_1", "label"]
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
    say(capsys, "sample", run, "--num-samples", 25, *options, "--random-seed", 1)
    assert not torch.equal(samples, load_file(f"{path}.safetensors")["samples"])


def test_few_images_are_one_short_row(run, capsys, tmp_path):
    say(capsys, "sample", run, "--num-samples", 3, "--output", tmp_path)
    assert imread(tmp_path / "exact-seed0-means.png").shape == (68, 200, 3)


def test_which_model_is_asked_where_there_are_several(run, tmp_path, capsys):
    several = shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    cells = [cell | {"seed": seed} for cell in config["cells"] for seed in (0, 1)]
    (several / "config.json").write_text(json.dumps(config | {"cells": cells}))
    shutil.copytree(cell_folder(run, "exact", 0), cell_folder(several, "exact", 1))
    for line in read_json_lines(run / "metrics.jsonl").to_dict("records"):
        append_json_line(several / "metrics.jsonl", line | {"seed": 1})
    assert main(["sample", str(several)]) == 2
    said = capsys.readouterr().err
    assert "Expected one trained model in" in said
    assert "but found 2 that fit, of exact with seed 0, exact with seed 1. Try --estimator and --seed." in said
    assert load_model(several, seed=1).name == "exact-seed1"
    with pytest.raises(ValueError, match=r"but found 0 that fit"):
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
