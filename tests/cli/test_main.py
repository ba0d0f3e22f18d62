"""The command line as users see it: help, one sentence for each mistake, exit code 2, no traceback."""

import json
import subprocess
import sys

import pytest

from pyro_gvae.cli.main import main


def run(capsys, *arguments):
    """Return the exit code and everything printed to stderr."""
    return main(list(arguments)), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "--epoch", "3"], "Expected an option of compare, but found '--epoch'. Try '--epochs'."),
        (["compare", "--dataset", "mnits"], "but found 'mnits'. Try 'mnist'."),
        (["compare", "--estimators", "exat"], "but found 'exat'"),
        (["compare", "--estimators", "exact[size=3]"], "Expected options that 'exact' has"),
        (["compare", "--sizes", "8"], "Expected a size KxN, but found '8'. Try 8x4, which means K = 8 and N = 4."),
        (["compare", "--backend", "dask"], "Expected a scheduler with the backend dask"),
        (["compare", "--epochs", "0"], "Expected epochs of at least 1, but found 0"),
        (["compare", "--temperature", "-1"], "Expected a positive number or a schedule as temperature, but found -1.0"),
        (["compare", "--num-categories", "1"], "Expected num_categories of at least 2, but found 1"),
        (["compare", "--seeds", "1", "1"], "Expected one or more different seeds, but found [1, 1]"),
        (["compare", "--seeds", "-1"], "Expected seed of at least 0, but found -1"),
        (["compare", "--estimators"], "Expected one or more different estimators, but found []"),
        (["compare", "--batch-size", "5000"], "Expected a batch size from 1 to the 1437 training data, but found 5000"),
        (["compare", "--num-latents", "20"], "8^20"),
        (["train", "--num-latents", "20", "--stages", "gumbel-softmax:9,exact:1"], "K^N = 8^20 = 1,152,921,504,606,84"),
        (["train", "--num-latents", "20", "--judge", "exact"], "K^N = 8^20 = 1,152,921,504,606,846,976, which take"),
        (["train", "--num-latents", "30", "--stages", "exact:1"], "8^30, too many to sum. Try --stages gumbel-soft"),
        (["train", "--num-latents", "30", "--judge", "exact"], "8^30, too many to sum. Try --stages gumbel-soft"),
        (["compare", "--num-latents", "30"], "8^30, too many to sum. Try smaller --num-latents or --num-categories;"),
        (["gradients", "--num-latents", "30"], "or pyro-gvae advise, which needs no exact gradient."),
        (["compare", "--max-memory", "1e-9"], "Try"),
        (["compare", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["train", "--model", "gaussian-mixture", "--num-latents", "4"], "but found 4. Try --num-latents 1."),
        (["train", "--latent-dim", "3"], "Try --model joint, 'gaussian-mixture' or 'semi-supervised'."),
        (
            ["train", "--dataset", "mnist", "--data-dir", "nowhere"],
            "Try --download to fetch them, or another --data-dir.",
        ),
        (["train", "--prior", "joint", "--learn-prior", "--prune", "5"], "Expected learn_prior=False"),
        (["cmpare"], "but found 'cmpare'. Try 'compare'."),
        (["gaps", "nowhere"], "nowhere"),
        (["gaps", "nowhere", "--num-data", "1"], "Expected num_data of at least 2, but found 1"),
        (["gaps"], "Expected a value of RUN, but found none. Try pyro-gvae gaps --help."),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "nowhere", "--num-data", "1"], "Expected num_data of at least 2, but found 1"),
        (["evaluate", "nowhere", "--num-particles", "0"], "Expected num_particles of at least 1, but found 0"),
        (["evaluate", "nowhere", "there"], "Expected no more words after pyro-gvae evaluate, but found 'there'"),
        (["encode", "nowhere", "--kind", "mode"], "Expected --kind among map, sample, exact, but found 'mode'"),
        (["encode", "nowhere"], "Expected a run folder, but found that 'nowhere' is not one"),
        (["reconstruct", "nowhere", "--num-data", "0"], "Expected num_data of at least 1, but found 0"),
        (["sample", "nowhere", "--num-samples", "0"], "Expected num_samples of at least 1, but found 0"),
        ([], "Expected a command among train, compare, advise,"),
        (["--verbose"], "but found '--verbose'. Try pyro-gvae --help."),
        (["train", "digits"], "Expected options after pyro-gvae train, but found 'digits'."),
        (["train", "--num-latents", "four"], "Expected a whole number as --num-latents, but found 'four'."),
        (["train", "--hidden", "8", "x"], "Expected a whole number as --hidden, but found 'x'."),
        (["train", "--revive", "x"], "Expected a number as --revive, but found 'x'."),
        (["train", "--stages"], "Expected a value of --stages, but found none."),
        (["train", "--download=yes"], "Expected --download without a value, but found 'yes'."),
        (["train", "--columns", "age=rael"], "but found 'age=rael'. Try age=real."),
        (
            ["train", "--log", "tensorbord"],
            "among tensorboard, wandb, mlflow, but found 'tensorbord'. Try 'tensorboard'.",
        ),
        (["list", "preset"], "Try 'presets'."),
        (["gradients", "--epochs", "-1"], "Expected epochs of at least 0, but found -1"),
        (["gradients", "--estimators", "gumble"], "but found 'gumble'"),
        (["gradients", "--temperatures", "0"], "Expected a positive number as temperatures, but found 0.0"),
        (["gradients", "--num-samples", "8"], "Expected num_samples of at least 32, but found 8"),
        (["gradients", "--num-latents", "20"], "pyro-gvae advise, which needs no exact gradient"),
        (["gradients", "nowhere"], "nowhere"),
        (["gradients", "nowhere", "--epochs", "0", "1"], "Expected epochs only for a new model"),
        (
            ["gradients", "--protocol", "reinmax", "--wrt", "parameters"],
            "Expected the ReinMax protocol with wrt=logits alone",
        ),
        (
            ["gradients", "--batch-size", "5000"],
            "Expected a batch size from 1 to the 1437 training data, but found 5000",
        ),
        (["advise", "--seconds", "0"], "Expected a positive number as seconds, but found 0.0"),
        (["advise", "--batch-size", "5000"], "Expected a batch size from 1 to the 1437 training data, but found 5000"),
    ],
)
def test_each_mistake_is_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *arguments)
    assert code == 2
    assert sentence in said
    own = [line for line in said.splitlines() if not line.startswith("digits:")]  # this line says which data were read
    assert len(own) == 1 and own[0].startswith("pyro-gvae: ")
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_a_run_folder_that_exists_is_refused(capsys, tmp_path):
    code, said = run(capsys, "compare", "--output", str(tmp_path))
    assert code == 2 and "exists" in said and str(tmp_path) in said


def test_a_folder_that_cannot_be_made_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, said = run(capsys, "compare", "--output", str(tmp_path / "file" / "run"))
    assert code == 2 and str(tmp_path / "file") in said


def test_the_process_ends_with_code_2_and_no_traceback(server, tmp_path):
    done = server.run("compare", "--dataset", "mnist", "--data-dir", str(tmp_path))
    assert done.code == 2
    assert done.err.count("\n") == 1 and "mnist" in done.err.lower() and "--download" in done.err


def test_the_program_ends_with_the_code_of_its_command():
    """The mistake is found before torch is imported."""
    done = subprocess.run([sys.executable, "-m", "pyro_gvae", "cmpare"], capture_output=True, text=True)
    assert done.returncode == 2 and "found 'cmpare'" in done.stderr


@pytest.mark.usefixtures("recorded")
@pytest.mark.slow
def test_the_main_job_says_what_came_of_it_and_keeps_what_it_was_asked(capsys, tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)
    size = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--epochs", "1", "--evaluations", "1"]
    arguments = ["compare", *size, "--batch-size", "479", "--seeds", "0", "--output", "run"]
    monkeypatch.setattr(sys, "argv", ["pyro-gvae", *arguments])
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "gumbel-softmax" in said and "exact" in said and "report.html" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["command"].endswith("--output run") and config["versions"]["pyro-gvae"]
