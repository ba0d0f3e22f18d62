"""Loggers get every evaluation once, in order, and are always closed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, fit
from pyro_gvae.train.loggers import MlflowLogger, WandbLogger, loggers_of, mosaic


class Recorder:
    """Stand-in for a module that is not installed: it records calls and their arguments."""

    def __init__(self):
        self.calls = []

    def noting(self, name, result=None):
        def call(*args, **options):
            self.calls.append((name, args, options))
            return result

        return call

    def named(self, name):
        return [(args, options) for called, args, options in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch):
    noted = Recorder()
    run = SimpleNamespace(log=noted.noting("log"), finish=noted.noting("finish"))
    fake = SimpleNamespace(init=noted.noting("init", run), Image=lambda pixels: ("image", pixels))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return noted


@pytest.fixture
def mlflow(monkeypatch):
    noted = Recorder()
    names = ("start_run", "log_params", "log_metrics", "log_image", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**{name: noted.noting(name) for name in names}))
    return noted


def train(logger, folder=None, measure=None, **options):
    torch.manual_seed(0)
    vae = CategoricalVAE(6, 2, 3, (5,))
    x = torch.rand(16, 6).round()
    config = TrainConfig(stages="exact:4steps", batch_size=4, evaluate_every="2steps")
    data = Dataset("small", x[:12], x[12:], (2, 3))
    return fit(vae, data, config, progress=False, loggers=[logger], output=folder, measure=measure, **options)


def test_wandb_is_told_of_a_run(wandb):
    done = train(WandbLogger(project="codes", mode="offline"))
    ((_, options),) = wandb.named("init")
    assert (
        options["project"] == "codes" and options["mode"] == "offline" and options["config"]["stages"] == "exact:4steps"
    )
    logged = [(args[0], options["step"]) for args, options in wandb.named("log")]
    numbers = [(found, step) for found, step in logged if "test_elbo" in found]
    assert [step for _, step in numbers] == [0, 2, 4]
    assert [found["test_elbo"] for found, _ in numbers] == [line["test_elbo"] for line in done.history]
    pictures = [found for found, _ in logged if "samples" in found]
    assert len(pictures) == 3 and pictures[0]["samples"][1].shape == (4, 24)  # 16 images of 2 x 3 in rows of 8
    assert wandb.calls[-1][0] == "finish" and len(wandb.named("finish")) == 1


def test_mlflow_is_told_of_a_run_and_of_its_continuation(mlflow, tmp_path):
    train(MlflowLogger(run_name="first"), tmp_path)
    assert mlflow.named("start_run") == [((), {"run_name": "first"})]
    assert mlflow.named("log_params")[0][0][0]["stages"] == "exact:4steps"
    assert [options["step"] for _, options in mlflow.named("log_metrics")] == [0, 2, 4]
    assert all(isinstance(value, int | float) for args, _ in mlflow.named("log_metrics") for value in args[0].values())
    assert {args[1] for args, _ in mlflow.named("log_image")} >= {"samples/0.png", "reconstructions/4.png"}
    train(MlflowLogger(run_id="7"), tmp_path, resume=True)  # the run is finished: nothing is logged again
    assert len(mlflow.named("log_params")) == 1 and len(mlflow.named("log_metrics")) == 3
    assert len(mlflow.named("end_run")) == 2


def test_a_logger_ends_also_after_an_error(wandb):
    def fails(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(WandbLogger(), measure=fails)
    assert wandb.calls[-1][0] == "finish"


def test_a_run_folder_names_the_loggers_of_a_configuration(wandb, mlflow, tmp_path, monkeypatch):
    """The environment takes precedence, as in any program that uses these loggers."""
    monkeypatch.setenv("WANDB_PROJECT", "codes")
    run = tmp_path / "mine"
    train(loggers_of(["wandb"], run)[0])
    ((_, options),) = wandb.named("init")
    assert (options["project"], options["name"]) == ("codes", "mine")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "first")
    train(loggers_of(["mlflow"], run)[0])
    assert mlflow.named("start_run") == [((), {"run_name": "first"})]


def test_invalid_loggers_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"among tensorboard, wandb, mlflow, but found 'tensorbord'. Try 'tensorboard'"
    ):
        loggers_of(["tensorbord"], tmp_path)
    with pytest.raises(ValueError, match=r"Expected an output folder for the loggers tensorboard"):
        loggers_of(["tensorboard"], None)


@pytest.mark.parametrize(("make", "extra"), [(WandbLogger, "wandb"), (MlflowLogger, "mlflow")])
def test_without_the_extra_it_is_one_sentence(make, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ValueError, match=rf"Try: pip install 'pyro-gvae\[{extra}\]'"):
        make()


def test_a_picture_has_its_images_in_rows():
    images = torch.arange(9.0).reshape(9, 1, 1, 1).expand(9, 1, 2, 3) / 8
    found = mosaic(images).numpy()
    assert found.shape == (4, 24) and (found[:2, 3:6] == round(255 / 8)).all() and (found[2:, :3] == 255).all()
    assert (found[2:, 3:] == 0).all() and found.dtype == np.uint8
