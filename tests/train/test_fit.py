"""fit: stages, budgets, schedules, early stopping, signals, steps that are not finite, and users' programs."""

import copy
import gc
import itertools
import json
import os
import random
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.fx.graph_module import _loader

from pyro_gvae import exact
from pyro_gvae.config.names import EstimatorName
from pyro_gvae.config.presets import PRESETS, SEARCHED
from pyro_gvae.config.stages import Amount, Named, parse_stages
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.data.batches import epoch_batches
from pyro_gvae.data.dataset import Dataset
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.handlers import discretize, unimix, weigh_kl
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runs.checkpoint import load_checkpoint
from pyro_gvae.runs.folder import sole_writer
from pyro_gvae.runs.weights import from_parts
from pyro_gvae.runtime.signals import STOPPING
from pyro_gvae.schedules import article
from pyro_gvae.train import fit as fitting
from pyro_gvae.train import monitor
from pyro_gvae.train.fit import Interrupted, fit
from pyro_gvae.train.trained import load_model
from pyro_gvae.train.training import Training

recorded = pytest.mark.usefixtures("recorded")

D, N, K = 6, 2, 3


def new_vae(**options):
    torch.manual_seed(0)
    return CategoricalVAE(D, N, K, (5,), **options)


def images(num=12):
    x = torch.rand(num + 4, D, generator=torch.Generator().manual_seed(1)).round()
    return Dataset("small", x[:num], x[num:], (2, 3))


def config(stages="gumbel-softmax:2", **options):
    return TrainConfig(**{"stages": stages, "batch_size": 4} | options)


def run(vae=None, data=None, chosen=None, **options):
    return fit(vae or new_vae(), images() if data is None else data, chosen or config(), progress=False, **options)


# Training plans as text.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exact:3", [("exact", {}, Amount(3, "epochs"))]),
        ("exact:3epochs", [("exact", {}, Amount(3, "epochs"))]),
        (
            "gumbel-softmax[kl=categorical,temperature=0.67]:500steps, exact:2.5s",
            [
                ("gumbel-softmax", {"kl": "categorical", "temperature": 0.67}, Amount(500, "steps")),
                ("exact", {}, Amount(2.5, "seconds")),
            ],
        ),
        ("gumbel-softmax[num_particles=2]:1", [("gumbel-softmax", {"num_particles": 2}, Amount(1, "epochs"))]),
    ],
)
def test_stages(text, expected):
    assert [tuple(stage) for stage in parse_stages(text)] == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Expected stages as estimator:amount, but found '' in ''"),
        ("exact", "Expected stages as estimator:amount, but found 'exact'"),
        ("exact:3,", "Expected stages as estimator:amount, but found '' in 'exact:3,'"),
        ("exat:3", "Expected an estimator among .*, but found 'exat'"),
        ("exact:0", "Expected epochs, steps or seconds, but found '0'"),
        ("exact:-1", "Expected epochs, steps or seconds, but found '-1'"),
        ("exact:1.5", "Expected epochs, steps or seconds, but found '1.5'"),
        ("exact:3 days", "Expected epochs, steps or seconds, but found '3 days'"),
        ("exact:1.2.3", "Expected epochs, steps or seconds"),
        ("exact[slice_size]:3", r"Expected a name or name\[option=value,...\]"),
        ("exact[a=1,a=2]:3", r"Expected a name or name\[option=value,...\]"),
        ("exact[:3", r"Expected a name or name\[option=value,...\]"),
    ],
)
def test_invalid_stages_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_stages(text)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("1e-3", 1e-3), ("True", True), ("None", None), ("(1)+1", "(1)+1")]
)
def test_options_are_numbers_or_words(text, value):
    assert Named.parse(f"SGD[a={text}]").options == {"a": value}


@pytest.mark.parametrize(
    ("amount", "steps", "seconds", "is_over"),
    [("2", 19, 9e9, False), ("2", 20, 0, True), ("7steps", 6, 9e9, False), ("7steps", 7, 0, True), ("2s", 99, 2, True)],
)
def test_amounts_end(amount, steps, seconds, is_over):
    assert Amount.parse(amount).is_over(steps, seconds, per_epoch=10) is is_over


# The configuration.


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"batch_size": 0}, "Expected batch_size of at least 1, but found 0"),
        ({"num_categories": 1}, "Expected num_categories of at least 2"),
        ({"seed": -1}, "Expected seed of at least 0"),
        ({"seed": 2**32}, r"Expected a seed below 2\^32"),
        ({"hidden": (4, 0)}, "Expected hidden of at least 1"),
        ({"seconds": 0.0}, "Expected a positive number as seconds, but found 0.0"),
        ({"clip_norm": float("nan")}, "Expected a positive number as clip_norm, but found nan"),
        ({"learning_rate": 0.0}, "Expected a positive number or a schedule as learning_rate, but found 0.0"),
        ({"temperature": "linear:1"}, "Expected a positive number or a schedule as temperature, but found linear:1"),
        ({"beta": -1.0}, "Expected a number of at least 0 or a schedule as beta, but found -1.0"),
        ({"beta": "linear:0,1"}, "Expected a number of at least 0 or a schedule as beta, but found linear:0,1"),
        (
            {"unimix": 0.01},
            "Expected a schedule that ends at 0 as unimix, since evaluations leave it out, but found 0.01",
        ),
        ({"unimix": "linear:1.1,0,5"}, "Expected unimix of at most 1, but found linear:1.1,0,5"),
        (
            {"usage_entropy": 0.5},
            "Expected a schedule that ends at 0 as usage_entropy",
        ),
        ({"revive": 0.0}, "Expected a share of the data between 0 and 1 as revive, but found 0.0"),
        ({"free_bits": -0.1}, "Expected free_bits of at least 0 nats, but found -0.1"),
        ({"free_bits": float("inf")}, "Expected free_bits of at least 0 nats, but found inf"),
        ({"evaluate_every": "often"}, "Expected epochs, steps or seconds, but found 'often'"),
        ({"optimizer": "SGD[0.9]"}, r"Expected a name or name\[option=value"),
        ({"stages": "exact"}, "Expected stages as estimator:amount"),
    ],
)
def test_invalid_settings_are_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**setting)


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_comes_back_from_json(name):
    written = json.loads(json.dumps(PRESETS[name].as_json()))
    assert TrainConfig.from_json(written) == PRESETS[name]


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"epochs": 3}, "Expected settings of TrainConfig, but found 'epochs'"),
        ({"batch_size": "64"}, "Expected 'batch_size' to be int, but found '64'"),
        ({"batch_size": True}, "Expected 'batch_size' to be int, but found True"),
        ({"hidden": [1.5]}, r"Expected 'hidden' to be tuple\[int, ...\], but found \[1.5\]"),
        ({"dataset": "mnits"}, "Expected 'dataset' to be one of digits, .*, but found 'mnits'"),
        ({"clip_norm": "1"}, "Expected 'clip_norm' to be .*, but found '1'"),
        ({"download": None}, "Expected 'download' to be bool, but found None"),
        ({"output": 3}, "Expected 'output' to be .*Path.*, but found 3"),
    ],
)
def test_invalid_json_is_refused(written, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig.from_json(written)


def test_the_articles_setting():
    preset = PRESETS["article"]
    assert (preset.num_latents, preset.num_categories, preset.hidden) == (20, 10, (512, 256))
    assert (preset.batch_size, preset.learning_rate, preset.optimizer, preset.seed) == (100, 1e-3, "Adam", 0)
    assert preset.relu_logits and preset.binarize == "none" and preset.temperature == "article:600"
    assert [tuple(stage) for stage in parse_stages(preset.stages)] == [
        ("gumbel-softmax", {"kl": "categorical"}, Amount(3, "epochs"))
    ]


def test_the_searched_settings():
    """There is a preset for every size and estimator, and every preset is of a known estimator."""
    assert {len(sizes) for sizes in SEARCHED.values()} == {6}
    names = {name for name in PRESETS if name.startswith("reinmax")}
    assert len(names) == 6 * len(set(SEARCHED) & set(EstimatorName.__args__))


# Training.


def test_stages_follow_each_other_and_the_history_shows_it():
    done = run(chosen=config("gumbel-softmax:2,exact:4steps"))
    assert done.steps == 10 and done.reason == "all stages"
    lines = [(line["step"], line["stage"], line["estimator"], line["epoch"]) for line in done.history]
    first, second = (0, "gumbel-softmax"), (1, "exact")
    assert lines == [(0, *first, 0), (3, *first, 1), (6, *first, 2), (9, *second, 3), (10, *second, 10 / 3)]
    assert done.history[-1]["test_elbo"] > done.history[0]["test_elbo"]
    assert all(line["elbo_is"] == "exact" for line in done.history)


def test_nothing_is_random_but_by_the_seed():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(weights))
        vae = new_vae()
        before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
        run(vae, chosen=config(seed=seed))
        after = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        weights.append(vae.state_dict()["encoder.0.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_how_often_a_run_is_judged_and_kept_changes_nothing(tmp_path):
    weights = []
    for number, every in enumerate(("1", "1steps")):
        vae = new_vae()
        (tmp_path / every).mkdir()
        run(vae, chosen=config(evaluate_every=every, checkpoint_every=every), output=(tmp_path / every, None)[number])
        weights.append(vae.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_another_process_works_is_left_alone(resume, tmp_path):
    with sole_writer(tmp_path), pytest.raises(ValueError, match=r"one works in .*\. Try waiting"):
        run(output=tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    run(output=tmp_path, resume=resume)
    assert (tmp_path / "weights.safetensors").exists()
    assert load_model(tmp_path).finished


@recorded
def test_a_fit_leaves_no_tensors_and_no_sources_behind():
    """By itself, torch keeps the results of hooks on saved tensors, and the source of each graph."""

    def alive():
        run(chosen=config("gumbel-softmax:2steps,exact:2steps"))
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()), len(_loader.eval_cache)

    alive()  # first, create what is only created once
    assert alive() == alive()


def test_the_temperature_is_set_before_the_first_step():
    assert Training(new_vae(), images(), config(temperature="0.3")).vae.temperature.item() == pytest.approx(0.3)


def test_speed_is_that_since_the_last_evaluation():
    training = Training(new_vae(), images(), config())
    found = []
    for step, seconds in ((0, 0.0), (4, 2.0), (10, 3.0)):
        training.state.step, training.state.seconds = step, seconds
        found.append(training.judge()["steps_per_second"])
    assert found == [None, 2.0, 6.0]


def test_what_a_loss_has_learned_ends_with_its_stage():
    training = Training(new_vae(), images(), config("rebar:1steps,exact:1steps"))
    training.advance()
    training.next_stage()
    assert set(training.optimizer.state) == set(training.vae.parameters())
    assert [group["params"] for group in training.optimizer.param_groups] == [[*training.vae.parameters()]]
    assert training.step.taken == 1


def test_schedules_are_followed():
    training = Training(new_vae(), images(), config("gumbel-softmax:9", temperature="article:3", learning_rate="1e-4"))
    seen = []
    for _ in range(7):
        training.advance()
        seen.append(training.vae.temperature.item())
    assert seen == pytest.approx([article(3)(step) for step in range(7)])
    assert training.optimizer.param_groups[0]["lr"] == 1e-4


@recorded
def test_beta_is_annealed_in_one_recording_and_reported_elbos_are_not_weighed(monkeypatch):
    """The exact objective of each step is E[log p(x|z)] - beta KL with the weights before the step."""
    recordings = []
    new = TracedELBO._new
    monkeypatch.setattr(TracedELBO, "_new", lambda *args, **options: recordings.append(1) or new(*args, **options))
    training = Training(new_vae(), images(), config("exact:9", beta="linear:0,1,4", free_bits=0.05))
    batches = [x for epoch in (0, 1) for x in epoch_batches(training.data, 4, seed=0, epoch=epoch)]
    for step, x in enumerate(batches):
        before = copy.deepcopy(training.vae)
        training.advance()
        line = training.judge()
        model, guide = (discretize(program) for program in (before.model, before.guide))
        with pyro.get_param_store().scope():
            reconstruction = ExactELBO().loss(weigh_kl(model, beta=0.0), weigh_kl(guide, beta=0.0), x) / 4
            kl = FreeBits(ExactELBO(), 0.05).loss(model, guide, x) / 4 - reconstruction
        assert -line["train_objective"] == pytest.approx(reconstruction + min(step / 4, 1) * kl, rel=1e-5)
        assert line["beta"] == min((step + 1) / 4, 1)
        assert line["test_elbo"] == pytest.approx(exact.elbo(training.vae, training.given.test).mean().item(), rel=1e-5)
    assert len(recordings) == 1 and kl > 0.05


@recorded
def test_a_guide_is_mixed_in_steps_and_in_no_evaluation():
    training = Training(new_vae(), images(), config("exact:9", unimix="linear:0.5,0,2"))
    [*batches] = epoch_batches(training.data, 4, seed=0, epoch=0)
    for step, x in enumerate(batches[:3]):
        before = copy.deepcopy(training.vae)
        training.advance()
        line = training.judge()
        share = max(0.5 - step / 4, 0)
        guide = discretize(unimix(before.guide, share=share) if share else before.guide)
        with pyro.get_param_store().scope():
            expected = ExactELBO().loss(discretize(before.model), guide, x) / 4
        assert -line["train_objective"] == pytest.approx(expected, rel=1e-5)
        assert line["unimix"] == max(0.5 - (step + 1) / 4, 0)  # of the next step
        assert line["test_elbo"] == pytest.approx(exact.elbo(training.vae, training.given.test).mean().item(), rel=1e-5)


@recorded
def test_the_use_of_codes_is_rewarded_in_steps_and_in_no_evaluation():
    training = Training(new_vae(), images(), config("exact:9", usage_entropy="linear:1,0,2"))
    for step, x in enumerate(itertools.islice(epoch_batches(training.data, 4, seed=0, epoch=0), 3)):
        before = copy.deepcopy(training.vae)
        training.advance()
        line = training.judge()
        probs = before.encoder(x).softmax(-1).mean(0)
        reward = max(1 - step / 2, 0) * -(probs * probs.log()).sum().item()
        assert line["train_objective"] == pytest.approx(exact.elbo(before, x).mean().item() + reward, rel=1e-5)
        assert line["test_elbo"] == pytest.approx(exact.elbo(training.vae, training.given.test).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "steps", "reason"),
    [({"steps": 4}, 4, "4 steps"), ({"seconds": 1e-9}, 1, "1e-09 seconds"), ({"steps": 100}, 6, "all stages")],
)
def test_budgets(options, steps, reason):
    done = run(chosen=config("gumbel-softmax:1,exact:1", **options))
    assert (done.steps, done.reason) == (steps, reason)
    assert done.history[-1]["step"] == steps


def test_patience_ends_a_stage(tmp_path):
    """The learning rate is so large that no evaluation is better than the first one."""
    done = run(chosen=config("exact:50,exact-evidence:1", learning_rate=50.0, patience=2), output=tmp_path)
    assert [(line["estimator"], line["step"]) for line in done.history][-2:] == [("exact", 6), ("exact-evidence", 9)]
    assert (tmp_path / "best.safetensors").exists()


def test_the_best_weights_are_kept_and_not_the_last(tmp_path):
    vae = new_vae()
    start = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    run(vae, chosen=config("exact:50", learning_rate=50.0, patience=2), output=tmp_path)
    best, last = (load_file(tmp_path / name) for name in ("best.safetensors", "weights.safetensors"))
    assert all(torch.equal(best[name], start[name]) for name in start)
    assert any(not torch.equal(last[name], start[name]) for name in start)


def test_checkpoints_are_as_far_apart_as_was_asked(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(fitting, "save_checkpoint", lambda path, content: kept.append(content["state"]["step"]))
    run(chosen=config("exact:7steps", checkpoint_every="3steps"), output=tmp_path)
    assert kept == [0, 3, 6, 7]


def test_patience_needs_test_images():
    with pytest.raises(ValueError, match="Expected a Dataset with test images for patience"):
        run(data=images().train, chosen=config(patience=1))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.full((8, D), float("nan")), "Expected training data without NaN or infinity, but found them in 8 of 8"),
        (2 * torch.ones(8, D), r"Expected training data in \[0, 1\], but found values from 2 to 2"),
        (torch.full((8, D), float("inf")), "Expected training data without NaN or infinity"),
        (torch.ones(3, D), "Expected a batch size from 1 to the 3 training data, but found 4"),
    ],
)
def test_invalid_data_are_refused(x, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        run(data=x, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "Adamant"}, "Expected the name of an optimizer in torch.optim, but found 'Adamant'"),
        ({"optimizer": "SGD[speed=1]"}, "Expected options that torch.optim.SGD has, but"),
        ({"stages": "gumbel-softmax:1,exact[speed=1]:1"}, "Expected options that 'exact' has .*, but"),
        ({"stages": "exact:1,exact-evidence:1", "beta": 0.5}, "Expected an objective with a KL to weigh, but found"),
        ({"stages": "vimco:1", "beta": "linear:0,1,9"}, "Expected an objective with a KL to weigh, but found"),
        ({"stages": "reweighted-wake-sleep:1", "free_bits": 0.1}, "Expected an objective with a KL to leave free"),
    ],
)
def test_invalid_arguments_are_refused_before_training(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(chosen=config(**options))


# Losses and weights that are not finite.


class Exploding(nn.Module):
    """A decoder that gives NaN for a while."""

    def __init__(self, factors):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(-2), nn.Linear(N * K, D))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("factors", torch.tensor(factors))

    def forward(self, z):
        factor = self.factors.gather(0, self.count.clamp(max=len(self.factors) - 1).unsqueeze(0))
        return self.layers(z) * factor


def exploding(factor):
    torch.manual_seed(0)
    return new_vae(decoder=Exploding([factor]))


@recorded
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_step_that_is_not_finite_is_left_out_and_kept(tmp_path):
    vae = exploding(1.0)
    training = Training(vae, images(), config(max_skipped=3))
    training.advance()
    before = {name: tensor.clone() for name, tensor in training.content()["vae"].items()}
    vae.decoder.factors.fill_(float("nan"))
    noise = torch.get_rng_state()
    training.advance()
    assert not torch.equal(torch.get_rng_state(), noise)
    fitting._refuse(training, *training.refused, tmp_path)
    kept = load_checkpoint(tmp_path / "non-finite-step1.safetensors")
    assert torch.equal(kept["random"]["torch"], noise)  # so that the step can be taken again
    vae.decoder.factors.fill_(1.0)
    after = training.content()
    assert all(torch.equal(after["vae"][name], before[name]) for name in before)
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {1}
    assert training.state.skipped == training.state.skipped_in_a_row == 1 and training.refused is not None
    training.advance()
    assert training.state.skipped == 1 and training.state.skipped_in_a_row == 0 and training.refused is None


@pytest.mark.filterwarnings("ignore:Encountered NaN", "ignore:The discrete ELBO is sampled")
def test_after_some_in_a_row_the_run_stops_and_says_where(tmp_path):
    with pytest.raises(ValueError, match=r"found 2 steps in a row .* is the buffer 'decoder.factors'\. The batch and"):
        run(exploding(float("nan")), chosen=config(max_skipped=2), output=tmp_path)
    kept = sorted(tmp_path.glob("non-finite-step*"))
    assert [path.name for path in kept] == ["non-finite-step0.safetensors", "non-finite-step1.safetensors"]
    content = load_checkpoint(kept[0])
    assert torch.equal(content["batch"], next(epoch_batches(images(), 4, seed=0, epoch=0)))


@pytest.mark.filterwarnings("ignore:Encountered NaN", "ignore:The discrete ELBO is")
@pytest.mark.parametrize(
    ("networks", "found"),
    [
        ({"decoder": "log"}, "a parameter of the distribution of site 'x' of the model"),
        ({"encoder": "log"}, "of the guide"),
    ],
)
def test_the_first_site_is_named(networks, found):
    class Log(nn.Module):
        """A decoder that takes the log of a negative number: its output is NaN, its parameters are finite."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return (-1 - self.inner(x).square()).log()

    vae = new_vae()
    for name in networks:
        setattr(vae, name, Log(getattr(vae, name)))
    with pytest.raises(ValueError, match=f"the first value that is not finite is .*{found}"):
        run(vae, chosen=config(max_skipped=1))


# Signals.


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_a_run_after_a_step_and_the_rest_can_be_resumed(number, tmp_path, monkeypatch):
    expected, vae, resumed = new_vae(), new_vae(), new_vae()
    run(expected)
    advance = Training.advance

    def signalled(training):
        if training.state.step == 3:
            os.kill(os.getpid(), number)
        advance(training)

    heard = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", signalled)
        with pytest.raises(Interrupted, match=f"stopped by {number.name}; resume with: pyro-gvae resume") as stopped:
            run(vae, output=tmp_path)
    assert stopped.value.signal == number and signal.getsignal(number) is heard
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")["state"]["step"] == 4
    done = run(resumed, output=tmp_path, resume=True)
    assert done.steps == 6 and [line["step"] for line in done.history] == [0, 3, 6]
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    (tmp_path / "config.json").unlink()  # as in a folder of an earlier release
    assert "resume with: the same call of fit" in str(Interrupted(tmp_path, number))


@pytest.mark.parametrize("late", ["in the last step", "in the last evaluation", "after it"])
def test_a_signal_at_the_end_is_not_swallowed(late, tmp_path, monkeypatch):
    """The run is complete, and a caller that trains several runs learns that it should stop."""

    def signalled(function, comes):
        def run(training, *rest):
            found = function(training, *rest)
            if comes(training):
                signal.raise_signal(signal.SIGTERM)
            return found

        return run

    with monkeypatch.context() as patch:
        if late == "after it":
            patch.setattr(fitting, "_keep", signalled(fitting._keep, lambda training: training.state.done))
        else:
            name = "advance" if late == "in the last step" else "judge"
            patch.setattr(Training, name, signalled(getattr(Training, name), lambda training: training.state.step == 6))
        with pytest.raises(Interrupted):
            run(output=tmp_path)
    assert (tmp_path / "weights.safetensors").exists()
    assert run(output=tmp_path, resume=True).steps == 6


# Users' programs.


class Mixture(nn.Module):
    """A mixture of K normal distributions, without temperature and encoder."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(K))
        self.means = nn.Parameter(torch.randn(K))
        self.guide_net = nn.Linear(1, K)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.logits))
            pyro.sample("x", dist.Normal(z @ self.means, 1.0), obs=x.squeeze(-1))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.guide_net(x)))


class Regression(Mixture):
    """A program with an observed label and a continuous latent."""

    def model(self, x):
        pyro.module("regression", self)  # stock ELBOs look for the module
        scale = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("label", dist.Bernoulli(0.5), obs=(x.squeeze(-1) > 0).float())
            pyro.sample("x", dist.Normal(self.means[0], scale), obs=x.squeeze(-1))

    def guide(self, x):
        pyro.module("regression", self)
        pyro.sample("z", dist.LogNormal(self.logits[0], self.logits[1].exp()))


def test_a_program_of_ones_own_is_judged_as_well_as_can_be(tmp_path, monkeypatch):
    x = torch.randn(12, 1, generator=torch.Generator().manual_seed(1))
    done = run(Mixture(), x, config("exact:3", learning_rate=0.05), output=tmp_path)
    assert done.history[-1]["elbo_is"] == "exact" and done.history[-1]["test_elbo"] is None
    assert done.history[-1]["train_elbo"] > done.history[0]["train_elbo"]
    regression = Regression()

    def refused(*_, **__):
        raise ValueError("Expected a sum, but found none.")

    monkeypatch.setattr(monitor.exact, "sum_cost", refused)
    with pytest.warns(RuntimeWarning, match="is sampled during training, since it cannot be summed: .* found none"):
        done = run(regression, x, config("gumbel-softmax:1"))
    assert done.history[-1]["elbo_is"] == "sampled"
    assert not torch.equal(regression.logits, torch.zeros(K))  # it was trained
    with pytest.raises(ValueError, match="Expected a program with a buffer 'temperature' to anneal"):
        run(Mixture(), x, config("exact:1", temperature=1.0))


def test_tensorboard_holds_curves_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run(chosen=config("gumbel-softmax:1,exact:1", log=("tensorboard",)), output=tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = board.Tags()
    known = {"elbo/train", "elbo/test", "objective/train", "settings/learning_rate", "time/seconds", "run/stage"}
    assert known <= set(tags["scalars"])
    assert [event.step for event in board.Scalars("elbo/test")] == [0, 3, 6]
    assert set(tags["images"]) == {"reconstructions", "samples"}  # one picture of each
    assert {"stage/text_summary", "units/text_summary", "settings/text_summary"} <= set(tags["tensors"])
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in board.Tensors("stage/text_summary")]
    assert texts == [(0, "0: gumbel-softmax, from step 0"), (3, "1: exact, from step 3")]
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    assert row["stages"].string_value == "gumbel-softmax:1,exact:1" and row["batch_size"].number_value == 4
    content = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
    scores = {one.name.tag for one in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert "elbo/test" in scores <= set(tags["scalars"])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # no folder of its own for the table
    uses = [board.Scalars(f"perplexity/latent {latent}") for latent in (0, 1)]
    assert all(1 <= event.value <= 3.001 for use in uses for event in use) and not tags["histograms"]


def test_sparse_buffers_and_recurrent_layers_are_trained_and_kept(tmp_path):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 6)
            self.register_buffer("graph", torch.eye(6).to_sparse())

        def forward(self, x):
            sequence = (self.graph @ x.T).T.unflatten(-1, (2, 3))
            return self.out(self.layer(sequence)[0][:, -1]).unflatten(-1, (2, 3))

    torch.manual_seed(0)
    vae = CategoricalVAE(6, 2, 3, encoder=Encoder(), hidden=(4,))
    assert run(vae, output=tmp_path / "run").steps > 0
    kept = from_parts(load_file(tmp_path / "run" / "weights.safetensors"), vae.state_dict())
    for name, tensor in vae.state_dict().items():
        assert torch.equal(kept[name].to_dense(), tensor.to_dense())
