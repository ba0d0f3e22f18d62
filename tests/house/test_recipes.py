"""Run code of pages that needs other packages, as shown, with stand-ins for these packages."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from shown import ROOT

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, fit, sliced_dataset
from pyro_gvae.models.table import TableObservation

DOCS = ROOT / "docs"
#: Pages with such code, all of which is run below.
SHOWN = {"howto/tune", "howto/share", "howto/tables", "howto/command_line", "reference/training"}


def code(page):
    """Return the code blocks of a page that Sphinx does not run."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def small():
    """Return what code on a page uses of the reader's program."""
    data = Dataset("small", torch.rand(8, 6).round(), torch.rand(6, 6).round(), (2, 3))
    config = TrainConfig(stages="exact:3steps", batch_size=4)
    return {"vae": CategoricalVAE(6, 2, 3, (5,)), "data": data, "config": config, "fit": fit}


def test_no_page_has_code_that_nothing_runs():
    names = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    assert {name for name in names if code(name)} == SHOWN


class TrialPruned(Exception):  # noqa: N818 (a name of Optuna)
    """Stand-in for optuna's exception that ends a trial."""


class Trial:
    """Stand-in for a trial: takes first choices and lower bounds; the second one is pruned at its second report."""

    def __init__(self, number):
        self.number, self.params, self.reports = number, {}, []

    def suggest_categorical(self, name, choices):
        return self.params.setdefault(name, choices[0])

    def suggest_float(self, name, low, high, *, log=False):
        return self.params.setdefault(name, low)

    def report(self, value, step):
        self.reports.append((step, value))

    def should_prune(self):
        return self.number == 1 and len(self.reports) == 2


class Study:
    """Stand-in for a study, which always runs two trials."""

    def optimize(self, objective, n_trials=None):
        self.trials, values = [Trial(0), Trial(1)], []
        for trial in self.trials:
            try:
                values.append(objective(trial))
            except TrialPruned:
                values.append(None)
        self.values, self.best_value, self.best_params = values, values[0], self.trials[0].params


def test_a_search_with_optuna(monkeypatch, capsys):
    """Use shorter stages than the page, which take seconds."""
    fake = SimpleNamespace(
        TrialPruned=TrialPruned,
        create_study=lambda direction, **_: Study(),
        pruners=SimpleNamespace(MedianPruner=lambda **_: None),
        samplers=SimpleNamespace(GridSampler=lambda grid: grid),
    )
    monkeypatch.setitem(sys.modules, "optuna", fake)
    search, grid = code("howto/tune")
    known = {}
    shorter = re.sub(r"(gumbel-softmax|exact):\d+", r"\1:1", search)
    shorter = shorter.replace("num_latents=4, num_categories=8", "num_latents=1, num_categories=3, hidden=(4,)")
    assert "hidden" in shorter
    exec(shorter, known)
    study = known["study"]
    assert study.values[0] < 0 and study.values[1] is None
    assert [step for step, _ in study.trials[0].reports] == [0, 18] and len(study.trials[1].reports) == 2
    exec(grid.replace("study.optimize(objective)", ""), known)
    assert known["grid"].keys() == study.best_params.keys()


def test_a_run_on_the_hub(monkeypatch, tmp_path):
    """A folder replaces the hub; additions of the client to a fetched folder do not matter."""
    monkeypatch.chdir(tmp_path)
    hub = tmp_path / "hub"

    class HfApi:
        def create_repo(self, repo_id, *, private, exist_ok):
            (hub / repo_id).mkdir(parents=True)

        def upload_folder(self, *, repo_id, folder_path, ignore_patterns):
            left_out = shutil.ignore_patterns(*ignore_patterns)
            shutil.copytree(folder_path, hub / repo_id, ignore=left_out, dirs_exist_ok=True)

    def snapshot_download(repo_id, *, local_dir):
        shutil.copytree(hub / repo_id, local_dir)
        (Path(local_dir) / ".gitattributes").write_text("*.safetensors filter=lfs")
        metadata = Path(local_dir) / ".cache" / "huggingface" / "download" / "config.json.metadata"
        metadata.parent.mkdir(parents=True)
        metadata.write_text("0")
        return str(Path(local_dir).resolve())

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    )
    own = small()
    fit(own["vae"], own["data"], own["config"], output=tmp_path / "runs" / "first", progress=False)
    known = {}
    for block in code("howto/share"):
        exec(block, known)
    assert known["codes"].shape == (5, 2) and known["codes"].dtype == torch.long
    assert not (hub / "me" / "digits-codes" / "checkpoint.safetensors").exists()


def test_loggers_with_options(monkeypatch, tmp_path):
    begun = []
    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: begun.append("finished"))
    wandb = SimpleNamespace(init=lambda **options: begun.append(options["name"]) or run, Image=lambda pixels: pixels)
    names = ("log_params", "log_metrics", "log_image", "end_run")
    mlflow = SimpleNamespace(**{name: lambda *_, **__: None for name in names})
    mlflow.start_run = lambda run_name: begun.append(run_name)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (block,) = code("howto/command_line")
    exec(block.replace("runs/mine", str(tmp_path / "run"), 1).replace("runs/mine", str(tmp_path / "other")), small())
    assert begun == ["first", "finished", "first"]


def test_milestones(tmp_path):
    (block,) = code("reference/training")
    block = block.replace("100,", "1,").replace("1000,", "2,")
    known = small() | {"folder": tmp_path / "run"}
    exec(block, known)
    assert len(known["done"].milestones) == 2 and known["done"].steps == 2


def test_a_table_is_read_in_slices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {"age": torch.randn(400).tolist(), "height": torch.randn(400).tolist(), "group": ["a", "b"] * 200}
    pd.DataFrame(rows).to_csv("people.csv", index=False)
    train, convert = code("howto/tables")
    exec(convert, {})
    columns = sliced_dataset("people.parquet", columns="age=real", labels="group").columns
    exec(train, {"vae": CategoricalVAE(len(columns), 2, 3, (5,), TableObservation(columns))})
    assert (tmp_path / "runs" / "people" / "weights.safetensors").exists()
