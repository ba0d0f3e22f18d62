"""Packages of extras: they are needed only where a feature asks for them, and a missing one is one sentence."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from pyro_gvae.cli.main import main
from pyro_gvae.runtime.extras import import_extra

SMALL = ["--num-latents", "1", "--num-categories", "2", "--hidden", "4"]
TRAIN = ["train", *SMALL, "--stages", "exact:2steps"]
COMPARE = ["compare", *SMALL, "--estimators", "exact", "--seeds", "0", "--epochs", "1", "--evaluations", "1"]
COMPARE += ["--batch-size", "479"]

#: Run commands in a process in which the packages named first cannot be imported.
COMMANDS = """
import importlib.abc, json, sys
absent, commands = json.loads(sys.argv[1])

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from matplotlib.figure import Figure
from pyro_gvae.cli.main import main
from pyro_gvae.jit.traced_elbo import TracedELBO

TracedELBO.outcome = lambda *_, **__: None  # as in `conftest.unrecorded`
Figure.savefig = lambda self, path, **_: open(path, "w").close()  # as in `conftest.unrendered`
sys.exit(any([main(command) for command in commands]))
"""


def test_the_main_job_and_training_need_no_extra(tmp_path):
    run, trained = str(tmp_path / "compared"), str(tmp_path / "trained")
    commands = [[*COMPARE, "--output", run], [*TRAIN, "--output", trained]]
    asked = json.dumps([["tensorboard", "pyarrow", "distributed"], commands])
    done = subprocess.run([sys.executable, "-c", COMMANDS, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "compared" / "results.csv")["status"].tolist() == ["finished"]
    assert (tmp_path / "compared" / "report.html").exists() and (tmp_path / "trained" / "report.html").exists()


@pytest.mark.parametrize(
    ("package", "command", "sentence"),
    [
        (
            "tensorboard",
            [*TRAIN, "--log", "tensorboard"],
            "Expected the package 'tensorboard' for event files, but found none. Try: pip install "
            "'pyro-gvae[tensorboard]'.",
        ),
        ("wandb", [*TRAIN, "--log", "wandb"], "Try: pip install 'pyro-gvae[wandb]'."),
        ("mlflow", [*TRAIN, "--log", "mlflow"], "Try: pip install 'pyro-gvae[mlflow]'."),
        (
            "pyarrow",
            [*COMPARE, "--parquet"],
            "Expected the package 'pyarrow' for Parquet files, but found none. Try: pip install 'pyro-gvae[parquet]'.",
        ),
        (
            "distributed",
            [*COMPARE, "--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"],
            "Expected the package 'distributed' for the backend dask, but found none. Try: pip install "
            "'pyro-gvae[dask]'.",
        ),
    ],
)
def test_an_extra_that_is_missed_is_named_before_anything_is_written(
    package, command, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"{sentence}\n") and f"pyro-gvae: Expected the package '{package}'" in said
    assert not (tmp_path / "run").exists()


def test_results_are_exported_as_parquet_when_asked_for(tmp_path, unreported):
    run = tmp_path / "run"
    assert main([*COMPARE, "--parquet", "--output", str(run)]) == 0
    exported, read = pd.read_parquet(run / "results.parquet"), pd.read_csv(run / "results.csv")
    assert list(exported) == list(read) and exported["test_elbo"].tolist() == pytest.approx(read["test_elbo"].tolist())


def test_a_package_that_lacks_another_one_is_not_called_absent(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import never_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="never_there"):
        import_extra("half_there", extra="half", purpose="a test")
