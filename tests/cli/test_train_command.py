"""`pyro-gvae train` and `resume` as processes: one sentence for each mistake, and no loss when they are killed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from unittest.mock import ANY

import pytest
import torch
from faults import FAULTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyro_gvae.cli.arguments import parse
from pyro_gvae.cli.main import _resume_by, main
from pyro_gvae.config.commands import ResumeConfig
from pyro_gvae.config.presets import PRESETS
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.data.datasets import load
from pyro_gvae.runs.checkpoint import load_checkpoint
from pyro_gvae.train import setup
from pyro_gvae.train.training import Training

SMALL = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8"]


def run(capsys, *arguments):
    """Return the exit code and everything printed to stderr."""
    return main(list(arguments)), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--stages", "exat:3"], "Expected an estimator among gumbel-softmax,"),
        (["train", "--stages", "exact"], "Expected stages as estimator:amount, but found 'exact'"),
        (["train", "--preset", "artcle"], "Expected a preset among article, jang, maddison"),
        (["train", "--preset"], "Expected a value of --preset"),
        (["train", "--learning-rate", "fast"], "Expected a positive number or a schedule as learning_rate"),
        (["train", "--batch-size", "5000"], "Expected a batch size from 1 to the 1437 training data, but found 5000"),
        (["train", "--optimizer", "Adamant"], "Expected the name of an optimizer in torch.optim"),
        (["train", "--optimizer", "SGD[momentum=high]"], "Expected a number as momentum of SGD, but found 'high'."),
        (["train", "--epochs", "0"], "Expected epochs, steps or seconds, but found '0'"),
        (["train", "--beta", "linear:0,-1,9"], "Expected a number of at least 0 or a schedule as beta"),
        (
            ["train", "--stages", "exact:1,vimco:1", "--beta", "0.5"],
            "Expected an objective with a KL to weigh, but found",
        ),
        (["train", "--free-bits", "-1"], "Expected free_bits of at least 0 nats, but found -1.0"),
        (["train", "--num-levels", "1"], "Expected num_levels of at least 2, but found 1"),
        (["report", "nowhere"], "Expected a run folder, but found that 'nowhere' is not one"),
        (["train", "--device", "qpu"], "Expected a device of this machine, but found 'qpu'"),
        (["train", "--preset", "article", "--data-dir", "nowhere"], "nowhere"),
        (["resume", "nowhere"], "Expected a run folder, but found that 'nowhere' is not one: it does not exist"),
        (["resume"], "Expected a value of RUN, but found none."),
    ],
)
def test_each_mistake_is_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *arguments)
    assert code == 2 and sentence in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []  # nothing was started


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("rate", ["1e6", "1e36"])  # the second one leads to NaN
def test_a_run_that_diverges_says_so(rate, capsys, tmp_path, unreported):
    diverging = ["train", "--stages", "exact:3steps", "--learning-rate", rate, "--output", str(tmp_path / "run")]
    code, said = run(capsys, *diverging, *SMALL)
    assert code == 1 and "fell from -" in said and "training diverged. Try a lower learning rate" in said
    assert (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], TrainConfig()),
        (["train", "--preset", "article"], PRESETS["article"]),
        (["train", "--seed", "3", "--preset=jang", "--learning-rate", "cosine:1e-3,1e-5,100"], None),
        (["resume", "here"], ResumeConfig),
    ],
)
def test_presets_are_defaults_that_options_override(arguments, expected):
    found = parse(list(arguments))
    if expected is None:
        jang = PRESETS["jang"]
        assert (found.seed, found.learning_rate, found.optimizer) == (3, "cosine:1e-3,1e-5,100", jang.optimizer)
    elif expected is ResumeConfig:
        assert str(found.run) == "here"
    else:
        assert found == expected


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", *SMALL, "--stages", "gumbel-softmax:10steps,exact:5steps", "--output", str(folder)]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_folder_holds_what_was_asked_for_and_what_came_of_it(folder):
    files = {"config.json", "metrics.jsonl", "checkpoint.safetensors", "weights.safetensors"}
    assert set(contents(folder)) == files | {".lock", "report.html"}
    config = json.loads((folder / "config.json").read_text())
    assert TrainConfig.from_json(config["train"]).stages == "gumbel-softmax:10steps,exact:5steps"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["estimator"]) for line in lines] == [
        (0, "gumbel-softmax"),
        (10, "gumbel-softmax"),
        (15, "exact"),
    ]
    assert load_file(folder / "weights.safetensors")["encoder.0.weight"].shape == (8, 64)


def test_a_finished_run_is_left_as_it_is(finished, folder, capsys):
    def kept():
        found = contents(folder)  # its report says how to go on, by the name of the folder
        return found | {"report.html": found["report.html"].replace(bytes(finished), bytes(folder))}

    before = kept()
    assert main(["resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "15 steps" in said and kept() == before
    assert f"It was finished before; to train for longer: pyro-gvae resume {folder} --more 10" in said
    assert main(["resume", str(folder), "--data-dir", "my data"]) == 0
    said = capsys.readouterr().out
    assert f"next: pyro-gvae evaluate {folder} --data-dir 'my data'" in said  # which the folder does not keep
    assert f"pyro-gvae resume {folder} --more 10 --data-dir 'my data'" in said


def test_a_finished_run_is_trained_for_longer(folder, capsys, unreported):
    words = ["resume", str(folder), "--more"]
    assert run(capsys, *words, "exat:5") == (2, ANY) and run(capsys, *words, "disarm:5") == (2, ANY)
    assert "extended" not in json.loads((folder / "config.json").read_text())
    assert main([*words, "3steps"]) == 0
    said = capsys.readouterr().out
    assert "18 steps" in said and "finished before" not in said
    assert TrainConfig.from_json(json.loads((folder / "config.json").read_text())["train"]).stages.endswith(
        "exact:5steps,exact:3steps"
    )
    assert "--more" not in _resume_by(parse([*words, "3steps"]), folder)


def damage(folder, how):
    checkpoint, config = folder / "checkpoint.safetensors", folder / "config.json"
    if how == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    elif how == "flipped":
        damaged = bytearray(checkpoint.read_bytes())
        damaged[-100] ^= 1
        checkpoint.write_bytes(damaged)
    elif how == "foreign":
        shutil.copy(folder / "weights.safetensors", checkpoint)
    elif how in ("older", "newer"):
        with safe_open(checkpoint, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = file.metadata()
        save_file(tensors, checkpoint, metadata | {"version": "0" if how == "older" else "99"})
    elif how == "pickle":
        torch.save({"step": 3}, checkpoint)
    elif how == "empty":
        checkpoint.write_bytes(b"")
    elif how == "another run's":
        written = json.loads(config.read_text())
        written["train"]["num_latents"] = 3
        config.write_text(json.dumps(written))
    elif how == "configuration unknown":
        config.write_text('{"train": {"speed": 1}}')
    elif how == "configuration torn":
        config.write_text('{"train": ')


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("truncated", "Expected a whole checkpoint, but found that"),
        ("flipped", "Expected a whole checkpoint, but found that"),
        ("foreign", "is another file of tensors"),
        ("older", "Expected a checkpoint of format version 1, but found version 0 in"),
        ("newer", "Expected a checkpoint of format version 1, but found version 99 in"),
        ("pickle", "Expected a whole checkpoint, but found that"),
        ("empty", "Expected a whole checkpoint, but found that"),
        ("another run's", "but found one with another num_latents"),
        ("configuration unknown", "Expected settings of TrainConfig, but found 'speed'"),
        ("configuration torn", "Expected a run folder, but found that"),
    ],
)
def test_what_cannot_be_resumed_is_one_sentence_and_the_folder_as_it_was(how, sentence, folder, capsys):
    damage(folder, how)
    before = contents(folder)
    code, said = run(capsys, "resume", str(folder))
    assert code == 2 and sentence in said and "Traceback" not in said
    assert contents(folder) == before


def test_steps_that_are_not_finite_end_a_run_with_a_sentence(capsys, tmp_path, recwarn):
    """The learning rate is so large that the weights are infinite after the first step."""
    arguments = ["--stages", "exact:9steps", "--optimizer", "SGD", "--learning-rate", "1e30", "--max-skipped", "2"]
    code, said = run(capsys, "train", *SMALL, *arguments, "--output", str(tmp_path / "run"))
    assert code == 2 and "Traceback" not in said
    assert "Expected finite losses and gradients, but found 2 steps in a row that were not. In the last, step" in said
    assert "the first value that is not finite is" in said and "Try a lower learning rate, or --clip-norm." in said
    assert list((tmp_path / "run").glob("non-finite-step*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), -0.5, 2.0])
def test_data_out_of_range_are_refused_with_a_sentence(value, capsys, tmp_path, monkeypatch):
    def damaged(*arguments, **options):
        data = load(*arguments, **options)
        data.train[7, 3] = value
        return data

    monkeypatch.setattr(setup, "load", damaged)
    code, said = run(capsys, "train", *SMALL, "--output", str(tmp_path / "run"))
    what = "NaN in 1 of 1437. Try removing them." if value != value else "values from"
    assert code == 2 and f"Expected digits train images in [0, 1], but found {what}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_the_command_that_resumes(number, capsys, tmp_path, monkeypatch):
    """The name of the folder has a space, and the printed command can be pasted as it is."""
    folder, advance = tmp_path / "my run", Training.advance

    def signalled(training):
        if training.state.step == 3:
            os.kill(os.getpid(), number)
        advance(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", signalled)
        code, said = run(capsys, "train", *SMALL, "--stages", "exact:9steps", "--output", str(folder))
    command = f"pyro-gvae resume {shlex.quote(str(folder))}"
    assert code == 128 + number and f"pyro-gvae: stopped; resume with: {command}" in said and "Traceback" not in said
    assert main(shlex.split(command)[1:]) == 0 and "9 steps" in capsys.readouterr().out


def test_a_read_only_folder(folder, capsys):
    """Use a read-only mount, because root may write everywhere else."""
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run([mount, "-o", "remount,ro,bind", folder, folder], check=True)
        before = contents(folder)
        code, said = run(capsys, "resume", str(folder))
        assert code == 2 and f"Expected a writable run folder, but found that '{folder}' is not" in said
        code, said = run(capsys, "train", *SMALL, "--output", str(folder / "inside"))
        assert code == 2 and "Expected a folder that can be created" in said
        assert contents(folder) == before
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_while_training(tmp_path, capsys):
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=32k", "tmpfs", disk]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        code, said = run(capsys, "train", *SMALL, "--stages", "exact:3steps", "--output", str(disk / "run"))
        assert code == 2 and "No space left on device" in said and "Traceback" not in said
        assert not list((disk / "run").glob(".*.tmp"))  # no unfinished file
    finally:
        subprocess.run(["umount", disk], check=True)


# Processes that are killed.


def lines(folder):
    ignored = ("seconds", "steps_per_second")
    written = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in ignored} for line in written]


@pytest.mark.slow
def test_kills_at_every_point_lose_nothing_and_change_nothing(server, tmp_path):
    """A run that is killed twice at each fault point, early and late, equals an undisturbed run."""
    plan = [*SMALL, "--stages", ",".join(["gumbel-softmax:10steps,exact:10steps"] * 3), "--checkpoint-every", "1steps"]
    plan += ["--evaluate-every", "2steps"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert server("train", *plan, "--output", str(undisturbed)) == 0
    steps, torn = [], 0
    command = ("train", *plan, "--output", str(killed))
    for fault in FAULTS:
        for number in (1, 2) if fault == "between_stages" else (2, 4):
            assert server(*command, fault=(fault, number)) == -signal.SIGKILL, fault
            torn += len(list(killed.glob(".*.tmp")))
            step = load_checkpoint(killed / "checkpoint.safetensors")["state"]["step"]
            steps.append(step)
            command = ("resume", str(killed))
    assert steps == sorted(steps) and steps[-1] > 24  # the processes made progress
    assert torn == 4  # processes that died while writing left partial files
    assert server("resume", str(killed)) == 0
    assert lines(killed) == lines(undisturbed)
    found, expected = (load_file(folder / "weights.safetensors") for folder in (killed, undisturbed))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(killed.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_its_code_and_a_checkpoint(number, server, tmp_path):
    run = tmp_path / "run"

    def when_it_trains():
        while not (run / "checkpoint.safetensors").exists():
            time.sleep(0.01)

    arguments = ["train", *SMALL, "--stages", "exact:3000steps", "--output", str(run)]
    assert server(*arguments, kill=when_it_trains, number=number) == 128 + number
    assert lines(run)[0]["step"] == 0 and not (run / "weights.safetensors").exists()
