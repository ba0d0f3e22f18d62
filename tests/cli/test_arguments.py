"""Arguments: short names, settings files, epochs, and the closest valid name for each wrong one."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from strangers import train_run

import pyro_gvae
from pyro_gvae.cli.arguments import COMMANDS, parse
from pyro_gvae.cli.examples import EXAMPLES
from pyro_gvae.cli.help import said_of
from pyro_gvae.cli.main import main
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.config.train import TrainConfig


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tran"], "Try 'train'."),
        (
            ["train", "--lerning-rate", "1"],
            "Expected an option of train, but found '--lerning-rate'. Try '--learning-rate'.",
        ),
        (["evaluate", "x", "--num-dat", "1"], "Try '--num-data'."),
        (["compare", "--epoch", "3"], "Try '--epochs'."),
        (["train", "--zzzzzz"], "Try pyro-gvae train --help."),
        (["train", "--resume"], "Try pyro-gvae train --help."),
        (["train", "--quite"], "Try '--quiet'."),
        (["evaluate", "x", "--max-memory", "0"], "Expected a positive number as max_memory, but found 0.0."),
        (["train", "--dataset", "mnits"], "Expected --dataset among digits, mnist"),
        (["train", "--dataset", "mnits"], "but found 'mnits'. Try 'mnist'."),
        (["train", "--dataset", "wine.csv"], "but found 'wine.csv'. Try --data wine.csv."),
        (["gradients", "--estimators", "exact", "reinmx"], "Try 'reinmax'."),
        (["train", "--preset", "artcle"], "Try 'article'."),
        (["train", "--stages", "gumbel_softmx:3"], "Try 'gumbel-softmax'."),
        (["train", "--epochs", "5", "--stages", "exact:3"], "Try --stages exact --epochs 5."),
        (["train", "--epochs", "soon"], "Expected epochs, steps or seconds, but found 'soon'"),
        (
            ["train", "--config", "nowhere.json"],
            "Expected a file of settings, but found that 'nowhere.json' cannot be read",
        ),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere/MNIST/raw"),
        (["evaluate", "nowhere"], "it does not exist"),
        (["train", "--output", "taken"], "Try another name."),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(words, sentence, tmp_path, monkeypatch, capsys):
    """This process has imported torch, but not the modules that commands import."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    monkeypatch.setattr("pyro_gvae.cli.main.import_module", lambda *_: pytest.fail("a module was imported"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_what_is_cheap_imports_no_torch(tmp_path):
    program = (
        "import sys\nfrom pyro_gvae.cli.main import main\n"
        "assert [main(words) for words in (['--version'], ['list'], ['evaluate', 'nowhere'])] == [0, 0, 2]\n"
        "assert not {'torch', 'pandas', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"pyro-gvae {pyro_gvae.__version__}"


def test_an_unknown_option_of_an_estimator_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"has \(it has .*temperature.*Try 'temperature'\."):
        pyro_gvae.estimator("gumbel-softmax", temperatur=1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epochs", "7"], TrainConfig(stages="gumbel-softmax:7epochs")),
        (["--epochs=7", "--stages", "exact"], TrainConfig(stages="exact:7epochs")),
        (["--stages", "reinmax,exact:2", "--epochs", "7"], TrainConfig(stages="reinmax:7epochs,exact:2epochs")),
        (["--lr", "0.1", "-o", "here"], TrainConfig(learning_rate=0.1, output=pyro_gvae.train.fit.Path("here"))),
        (["--lr=0.1", "--dataset", "MNIST"], TrainConfig(learning_rate=0.1, dataset="mnist")),
        (["--num_latents", "3"], TrainConfig(num_latents=3)),
    ],
)
def test_short_names(words, expected):
    assert parse(["train", *words]) == expected


def test_settings_come_from_a_file_and_options_override_them(tmp_path, capsys):
    (tmp_path / "one.toml").write_text('num-latents = 3\nhidden = [9, 8]\nlearning_rate = "linear:1e-3,1e-4,9"\n')
    found = parse(["train", "--config", str(tmp_path / "one.toml"), "--hidden", "7"])
    assert (found.num_latents, found.hidden, found.learning_rate) == (3, (7,), "linear:1e-3,1e-4,9")
    (tmp_path / "two.json").write_text('{"seeds": [4], "workers": 2}')
    assert parse(["compare", "--config", str(tmp_path / "two.json")]) == CompareConfig(seeds=(4,), workers=2)
    for text, sentence in (
        ('{"num_latent": 3}', "Try 'num_latents'"),
        ('{"seed": "x"}', "Expected 'seed' to be int"),
        ("[]", "list"),
    ):
        (tmp_path / "two.json").write_text(text)
        assert main(["train", "--config", str(tmp_path / "two.json")]) == 2
        assert sentence in capsys.readouterr().err


def test_a_run_is_repeated_from_its_config_and_said_as_json(tmp_path, capsys, unrendered):
    run = train_run(tmp_path / "run")
    said = capsys.readouterr().out
    assert f"report: {run / 'report.html'}" in said and f"next: pyro-gvae evaluate {run}" in said
    assert (run / "report.html").exists()
    again = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.json"), "-o", str(again), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() <= documented_keys("train") and found["run"] == str(again) and found["steps"] == 6
    lines = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (run, again)]
    assert lines[0]["test_elbo"] == lines[1]["test_elbo"] == found["last"]["test_elbo"]
    for words, key in (
        (["evaluate", "--num-data", "9"], "test"),
        (["encode", "--num-data", "9"], "codes"),
        (["sample"], "images"),
        (["reconstruct"], "mean_squared_distance"),
    ):
        assert main([words[0], str(run), *words[1:], "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert key in said and said.keys() <= documented_keys(words[0])
        assert all(Path(file).exists() for file in said["files"])
    assert main(["list", "runs", "--runs", str(tmp_path), "--json"]) == 0
    assert {row["kind"] for row in json.loads(capsys.readouterr().out)["runs"]} == {"train"}


def test_there_is_one_word_for_one_thing():
    names = {field.name for command in COMMANDS.values() for field in fields(command.config)}
    assert {name for name in names if "seed" in name} == {"seed", "seeds", "split_seed", "model_seed"}
    assert {name for name in names if "particles" in name} == {"num_particles"}
    of_seeds = {said_of(command.config).get("seed", "Seed of") for command in COMMANDS.values()}
    assert all(text.startswith("Seed of") for text in of_seeds)


def documented_keys(command):
    """Return the keys of `--json` in the table of its page."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "command_line.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| .*`{command}`.* \| (.*) \|$", page, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row))


def test_the_keys_of_every_command_are_documented():
    assert all(documented_keys(command) for command in COMMANDS)


def test_list_and_doctor_say_what_there_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["list", "estimators", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["estimators"]} == {*pyro_gvae.ESTIMATORS}
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == documented_keys("doctor") and found["versions"]["pyro-gvae"] == pyro_gvae.__version__
    assert 0 < found["memory_bytes"]["available"] < found["memory_bytes"]["total"] < 1e15
    assert {"name": "digits", "folder": None, "is_there": True} in found["datasets"]
    assert found["runs"]["is_writable"] and {"name": "cpu"} in found["devices"] and not list(tmp_path.iterdir())
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^data set digits +needs none$", said, re.MULTILINE) and " GB available\n" in said
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed.keys() == documented_keys("list")
    assert listed["presets"][0]["num_latents"] == 20 and listed["models"][1]["sizes"]["num_categories"] == 2


def test_examples_of_help_can_be_typed():
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, lines in EXAMPLES.items():
        for line in lines:
            program, *words = shlex.split(line)
            if "--config" in words:  # its file is that of a run
                del words[(at := words.index("--config")) : at + 2]
            found = parse([word for word in words if word not in ("--json", "--dry-run")])
            assert program == "pyro-gvae" and isinstance(found, COMMANDS[name].config)


def test_help_shows_groups_and_examples(capsys):
    in_words = "Model: --model categorical | bernoulli |"
    for words, expected in (
        ([], "Measure:"),
        (["train"], EXAMPLES["train"][0]),
        (["train"], in_words),
        (["train", "--model", "joint"], "0 for other programs. Default: `10`."),
        (["train"], "--preset NAME Begin"),
        (["evaluate"], "Usage: pyro-gvae evaluate RUN [options]"),
        (["compare"], "--seeds INT ... Each"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert stopped.value.code == 0 and expected in said
