"""`--dry-run` and `--quiet`: what would be done is said and not done, and what is done is not shown."""

import json
import warnings

import pytest
import torch

from pyro_gvae.cli.main import main
from pyro_gvae.cli.terminal import warnings_as_sentences
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.train import fit as fit_module
from pyro_gvae.train.fit import fit
from pyro_gvae.train.launch import prepare
from pyro_gvae.train.plan import plan_run

SMALL = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--batch-size", "479"]


def planned(config):
    config, vae, data = prepare(config)
    return plan_run(vae, data, config)


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        ("gumbel-softmax:2,exact:4steps", {"evaluate_every": "3steps"}),
        ("exact:2,reinforce:9", {"steps": 8, "judge": "sampled"}),
        ("local-expectation:5steps", {"evaluate_every": "2"}),
    ],
)
def test_a_plan_is_what_a_run_takes(stages, options):
    options = options | {"num_latents": 2, "num_categories": 3, "hidden": (8,), "batch_size": 479}
    config, vae, data = prepare(TrainConfig(stages=stages, **options))
    random = torch.get_rng_state()
    plan = plan_run(vae, data, config)
    assert torch.equal(torch.get_rng_state(), random)
    done = fit(vae, data, config, progress=False)
    assert sum(stage.steps for stage in plan.stages) == done.steps
    assert plan.evaluations == len(done.history) and plan.judge == done.history[-1]["elbo_is"]
    assert plan.steps_per_epoch * done.history[-1]["epoch"] == done.steps
    assert plan.num_weights == sum(weights.numel() for weights in vae.parameters())


@pytest.mark.usefixtures("slow_clock")
def test_work_is_counted_not_timed():
    one, more = (planned(TrainConfig(stages="exact:2,gumbel-softmax:2", num_latents=size)) for size in (3, 4))
    assert 6 < more.stages[0].operations / one.stages[0].operations < 9  # of 8 times as many codes
    assert 1 < more.stages[1].operations / one.stages[1].operations < 2
    assert one.seconds < more.seconds < 60


def test_what_the_clock_ends_is_as_long_as_configured():
    plan = planned(TrainConfig(stages="exact:30s,exact:10s", num_latents=2, evaluate_every="10s", seconds=15))
    assert plan.evaluations is None and plan.seconds == 15 and [stage.steps for stage in plan.stages] == [None, None]


@pytest.mark.parametrize("words", [["train", "--epochs", "2"], ["compare", "--epochs", "2", "--seeds", "0", "1"]])
def test_a_dry_run_writes_nothing(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, *SMALL, "--dry-run", "-o", "here"]) == 0
    said = capsys.readouterr()
    assert "networks" in said.out and "encoder MLP 64-8-6; decoder MLP 6-8-64\n" in said.out
    assert "6 steps" in said.out and "nothing was trained or written" in said.out and "digits: 1,797" in said.err
    assert main([*words, *SMALL, "--dry-run", "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["output"].startswith(f"runs/{words[0]}-") and said.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--optimizer", "Adamant"], "Expected the name of an optimizer"),
        (["compare", "--batch-size", "5000"], "Expected a batch size from 1 to the 1437 training data"),
        (["list"], "Expected --dry-run with train and compare, but found it with list."),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--dry-run"]) == 2 and sentence in capsys.readouterr().err


def test_a_dry_run_of_a_comparison_says_what_is_left(tmp_path, capsys, unreported):
    words = ["compare", *SMALL, "--epochs", "1", "--estimators", "exact", "--workers", "1", "-o", str(tmp_path / "run")]
    assert main([*words, "--seeds", "0"]) == 0
    assert main([*words, "--seeds", "0", "1", "--dry-run"]) == 0
    assert "1 to train of 2" in capsys.readouterr().out


def test_what_is_trained_and_written_has_the_guessed_widths(tmp_path, capsys, unrendered):
    words = ["train", "--dataset", "diabetes", "--num-latents", "1", "--stages", "exact:1steps", "--judge", "none"]
    assert main([*words, "-o", str(tmp_path / "run")]) == 0
    assert "\nnetworks: encoder MLP 22-32-8; decoder MLP 8-32-11\n" in capsys.readouterr().err
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["train"]["hidden"] == written["default_hidden"] == [32]
    chosen, others = (tmp_path / "run" / "report.html").read_text().split("<summary>All other settings")
    assert "<dt>hidden</dt>" not in chosen and "<dt>hidden</dt><dd>32</dd>" in others


def test_quiet_shows_results_alone(tmp_path, capsys, unreported):
    assert main(["train", *SMALL, "--stages", "exact:2steps", "--quiet", "-o", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "2 steps" in said.out


def test_a_warning_of_the_package_is_a_sentence():
    before = warnings.formatwarning
    with warnings_as_sentences():
        assert warnings.formatwarning("lost.", RuntimeWarning, fit_module.__file__, 3) == "pyro-gvae: warning: lost.\n"
        assert "elsewhere.py:3: " in warnings.formatwarning("lost.", RuntimeWarning, "elsewhere.py", 3)
    assert warnings.formatwarning is before
