"""Run folders of `fit`: `load_run` and the commands read them, or say in one sentence why they cannot."""

import copy
import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from rows import COLUMNS, rows
from strangers import SMALL
from torch import nn

import pyro_gvae
from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, encode, exact, fit, load_run
from pyro_gvae.cli.main import main
from pyro_gvae.config.commands import ResumeConfig
from pyro_gvae.data.tables import decoded
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.hidden_markov_model import HiddenMarkovModel
from pyro_gvae.models.observations import GaussianObservation, Observation
from pyro_gvae.models.priors import MixturePrior
from pyro_gvae.models.table import Column, TableObservation
from pyro_gvae.programs.pair import Pair
from pyro_gvae.train import kept_data
from pyro_gvae.train.described import describe
from pyro_gvae.train.kept_data import keep_data, read_data
from pyro_gvae.train.launch import resume
from pyro_gvae.train.trained import load_model

D = 6
pytestmark = pytest.mark.usefixtures("unrendered")


def images(num=12):
    x = torch.rand(num + 4, D, generator=torch.Generator().manual_seed(1)).round()
    labels = torch.arange(num) % 2
    return Dataset("small", x[:num], x[num:], (2, 3), labels, labels[:4])


def trained(vae, data, folder, **options):
    config = TrainConfig(**{"stages": "exact:4steps", "batch_size": 4, "evaluate_every": "2steps"} | options)
    return fit(vae, data, config, output=folder, progress=False)


def mlp():
    return nn.Sequential(nn.Linear(D, 6), nn.Unflatten(-1, (2, 3)))


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CategoricalVAE(D, 2, 3, (5,), learn_prior=True, temperature=0.5).double(),
        lambda: BernoulliVAE(D, 3, (5, 4)),
        lambda: CategoricalVAE(D, 2, 3, (5,), "categorical", num_levels=2),
    ],
    ids=["categorical, double", "bernoulli", "levels"],
)
def test_a_ready_program_and_its_data_come_back(make, tmp_path):
    vae, data = make(), images()
    dtype = next(vae.parameters()).dtype
    data = Dataset("small", data.train.to(dtype), data.test.to(dtype), (2, 3), data.train_labels, data.test_labels)
    done = trained(vae, data, tmp_path)
    run = load_run(tmp_path)
    found = run.model()
    assert type(found) is type(vae) and same(found.state_dict(), vae.state_dict())
    assert repr(found) == repr(vae)
    assert torch.equal(run.data.train, data.train) and run.data.train.dtype == dtype
    assert torch.equal(run.data.test_labels, data.test_labels) and run.data.image_shape == (2, 3)
    assert run.is_finished and run.curves["step"].tolist() == [line["step"] for line in done.history]
    assert run.results["test_elbo"].item() == done.history[-1]["test_elbo"]
    assert "finished" in repr(run) and "exact" in repr(run) and "<table" in run._repr_html_()


def test_commands_read_what_fit_wrote(tmp_path):
    folder = tmp_path / "run"
    trained(CategoricalVAE(D, 2, 3, (5,)), images(), folder)
    for arguments in (
        ["evaluate", "RUN"],
        ["encode", "RUN"],
        ["sample", "RUN", "--num-samples", "3"],
        ["explore", "RUN"],
        ["gaps", "RUN", "--num-particles", "2"],
        ["report", "RUN"],
        ["resume", "RUN"],
    ):
        assert main([word.replace("RUN", str(folder)) for word in arguments]) == 0, arguments
    (evaluated,) = (folder / "evaluation").glob("*.json")
    elbo = json.loads(evaluated.read_text())["test"]["elbo"]["value"]
    assert load_run(folder).evaluate(num_particles=2).value("test", "elbo") == pytest.approx(elbo)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Trained on small by exact" in page
    assert "CategoricalVAE" in page and "num latents" in page and "digits" not in page


def test_commands_read_a_program_with_a_table(tmp_path):
    x = rows(16).float()
    data = Dataset("rows", x[:12], x[12:], (1, len(COLUMNS)), columns=tuple(COLUMNS))
    vae = CategoricalVAE(len(COLUMNS), 2, 3, (5,), TableObservation(COLUMNS), prior=MixturePrior(2, 3, 4))
    trained(vae, data, tmp_path)
    found = load_model(tmp_path).vae
    assert same(found.state_dict(), vae.state_dict()) and found.observation.columns == tuple(COLUMNS)
    torch.testing.assert_close(exact.log_evidence(found, data.test), exact.log_evidence(vae, data.test))
    decoded(data.test, COLUMNS).to_csv(tmp_path / "cells.csv", index=False)
    for arguments in (["evaluate", "RUN"], ["encode", "RUN"], ["sample", "RUN"], ["impute", "RUN", "RUN/cells.csv"]):
        assert main([word.replace("RUN", str(tmp_path)) for word in arguments]) == 0, arguments
    written = json.loads((tmp_path / "evaluation" / f"{load_model(tmp_path).name}.json").read_text())
    assert written["test"]["elbo"]["value"] == pytest.approx(exact.elbo(vae, data.test).mean().item(), abs=1e-4)


class GaussianObservationOfMine(Observation):
    """A caller's own observation."""

    def forward(self, natural):
        return GaussianObservation(0.5)(natural)


def with_another_table():
    vae = CategoricalVAE(1, 2, 3, (5,), TableObservation([Column("age", "real", (), 40.0, 10.0)]))
    vae.observation = TableObservation([Column("age", "real", (), 50.0, 10.0)])
    return vae


@pytest.mark.parametrize(
    "make", [lambda: CategoricalVAE(D, 2, 3, (5,), GaussianObservationOfMine()), with_another_table]
)
def test_parts_of_the_callers_are_code(make):
    assert describe(make())["arguments"] is None


def test_training_data_alone_are_what_commands_show(tmp_path, capsys):
    trained(CategoricalVAE(D, 2, 3, (5,)), images().train, tmp_path)
    loaded = load_model(tmp_path)
    assert len(loaded.data.test) == 0 and torch.equal(load_run(tmp_path).data, images().train)
    assert main(["evaluate", str(tmp_path)]) == 0 and main(["encode", str(tmp_path), "--part", "train"]) == 0
    assert set(json.loads((tmp_path / "evaluation" / f"{loaded.name}.json").read_text())) >= {"train", "latents"}
    for command in ("report", "explore"):
        assert main([command, str(tmp_path)]) == 0
    assert main(["encode", str(tmp_path)]) == 2
    assert "Expected a part among train, but found 'test'" in capsys.readouterr().err


def test_a_command_resumes_what_fit_began(tmp_path):
    whole = CategoricalVAE(D, 2, 3, (5,))
    halfway, folder = copy.deepcopy(whole), tmp_path / "run"
    trained(whole, images(), tmp_path / "whole")
    milestones = pyro_gvae.train.milestones.Milestones([pyro_gvae.config.stages.Amount(2, "steps")], lambda _: {})
    config = TrainConfig(stages="exact:4steps", batch_size=4, evaluate_every="2steps")
    fit(halfway, images(), config, output=folder, progress=False, milestones=milestones)
    assert not load_run(folder).is_finished
    _, done = resume(ResumeConfig(folder))
    assert done.steps == 4 and same(load_run(folder).model().state_dict(), whole.state_dict())
    (folder / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match=r"Expected a checkpoint of fit in .* Try the same call of fit"):
        resume(ResumeConfig(folder))


class Mine(CategoricalVAE):
    """A caller's own class, although its base is known."""


def replaced():
    vae = CategoricalVAE(D, 2, 3, (5,))
    vae.encoder[1] = nn.Tanh()  # was a ReLU: names and shapes of weights do not show it
    return vae


@pytest.mark.parametrize(
    "make",
    [lambda: Mine(D, 2, 3, (5,)), lambda: CategoricalVAE(D, 2, 3, (5,), encoder=mlp()), replaced],
    ids=["a class of mine", "an encoder of mine", "a layer that was replaced"],
)
def test_a_program_of_ones_own_has_a_report_and_takes_its_weights_back(make, tmp_path, capsys):
    vae = make()
    trained(vae, images(), tmp_path)
    again = make()
    assert load_run(tmp_path).load_into(again) is again and same(again.state_dict(), vae.state_dict())
    assert main(["report", str(tmp_path)]) == 0 and "pyro-gvae fit" in (tmp_path / "report.html").read_text()
    for command in ("evaluate", "encode", "gaps", "explore", "resume"):
        assert main([command, str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "which is code of yours. Try Python: pyro_gvae.load_run(" in said and said.count("\n") == 1
        assert f"write_explorer('{tmp_path}', program=program)" in said
    with pytest.raises(ValueError, match=r"Expected a program with the parameters of the run"):
        load_run(tmp_path).load_into(CategoricalVAE(D, 2, 4, (5,)))


def test_a_pair_of_functions_takes_its_weights_back(tmp_path):
    decoder = nn.Linear(3, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    pair = Pair(model, guide)
    trained(pair, images().train, tmp_path)
    known = decoder.weight.detach().clone(), pyro.param("logits").detach().clone()
    with torch.no_grad():
        decoder.weight.zero_()
        pyro.param("logits").unconstrained().fill_(7.0)
    load_run(tmp_path).load_into(pair)
    assert torch.equal(decoder.weight, known[0]) and torch.equal(pyro.param("logits"), known[1])


@pytest.mark.parametrize(
    "data",
    [
        torch.rand(5, 3),
        torch.randint(0, 9, (5, 2, 3)).double(),
        (torch.rand(4, 2), torch.tensor([1, 0, 300, -1])),
        {"x": torch.rand(4, 2), "mask": torch.tensor([True, False, True, True])},
        Dataset("grey", torch.rand(5, 4), torch.rand(2, 4), (2, 2), binarize="dynamic"),
    ],
    ids=["rows", "sequences", "tuple", "dictionary", "dynamic"],
)
def test_data_come_back_bit_for_bit(data, tmp_path):
    pyro_gvae.runs.config.write_config(tmp_path, {"data": keep_data(tmp_path, data)})
    found = read_data(tmp_path)
    assert type(found) is type(data)
    if isinstance(data, Dataset):
        assert found.binarize == "dynamic"
        found, data = (found.train, found.test), (data.train, data.test)
    for one, other in zip(kept_data.columns(found), kept_data.columns(data), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    whole = (tmp_path / "data.safetensors").read_bytes()
    (tmp_path / "data.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged"):
        read_data(tmp_path)


def test_large_data_are_known_by_their_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_data, "MOST_BYTES", 10)
    digits = pyro_gvae.load("digits", binarize="threshold")
    for data in (digits, Dataset("digits", 1 - digits.train, digits.test, (8, 8))):
        pyro_gvae.runs.config.write_config(tmp_path, {"data": keep_data(tmp_path, data)})
        assert not (tmp_path / "data.safetensors").exists()
        if data is digits:
            assert torch.equal(read_data(tmp_path).train, digits.train)
        else:
            with pytest.raises(ValueError, match="of no data set with a name"):
                read_data(tmp_path)


def test_what_describes_a_program_cannot_name_another_class(tmp_path, capsys):
    trained(CategoricalVAE(D, 2, 3, (5,)), images(), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for program in (
        {"name": "Linear", "arguments": {}, "dtype": "float32"},
        {"name": "CategoricalVAE", "arguments": {"data_dim": 6, "num": 2}, "dtype": "float32"},
        {
            "name": "CategoricalVAE",
            "arguments": {"data_dim": 6, "num_latents": 10**7, "num_categories": 10**7},
            "dtype": "float32",
        },
        {"name": "CategoricalVAE", "arguments": [], "dtype": "float32"},
        {
            "name": "CategoricalVAE",
            "arguments": {"data_dim": 6, "observation": {"name": "Linear", "arguments": {}}},
            "dtype": "float32",
        },
        {"name": "CategoricalVAE", "arguments": {"data_dim": 6}, "dtype": "load"},
        7,
    ):
        (tmp_path / "config.json").write_text(json.dumps(written | {"program": program}))
        assert main(["evaluate", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("pyro-gvae: Expected") and said.count("\n") == 1


def test_a_run_of_a_command_is_loaded_with_its_model(tmp_path, unreported):
    run = tmp_path / "run"
    assert main(["train", *SMALL, "--stages", "gumbel-softmax:2steps,exact:2steps", "--output", str(run)]) == 0
    loaded = load_run(run)
    assert loaded.results["estimator"].tolist() == ["gumbel-softmax", "exact"] and loaded.models == [
        ("gumbel-softmax:2steps,exact:2steps", 0)
    ]
    elbo = exact.elbo(loaded.model(), loaded.data.test).mean().item()
    assert elbo == pytest.approx(loaded.results["test_elbo"].iloc[-1])
    with pytest.raises(ValueError, match=rf"it does not exist. Try {run}\."):
        load_run(tmp_path / "rnu")


def test_objects_say_what_they_are(capsys):
    vae = CategoricalVAE(D, 2, 3, (5,))
    assert "num_latents=2, num_categories=3, codes=9, temperature=0.667, observation=Bernoulli" in repr(vae)
    assert repr(images()) == "Dataset('small', train 12, test 4, 2x3, binarize='none')"
    assert "at 0x" not in repr(pyro_gvae.estimator("exact")) and "Estimator('exact'" in repr(
        pyro_gvae.estimator("exact")
    )
    assert torch.equal(vae.encode(images().test), encode(vae, images().test).argmax(-1))
    assert dir(pyro_gvae) == sorted(pyro_gvae.__all__)
    assert describe(HiddenMarkovModel(4, 3))["arguments"] == {"data_dim": 4, "num_states": 3}
    done = trained(vae, images(), None)
    assert repr(done).startswith("Fit(4 steps in") and len(done.to_pandas()) == 3 and "<table" in done._repr_html_()
