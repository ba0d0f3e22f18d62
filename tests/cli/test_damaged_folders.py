"""Damaged run folders: every command ends with code 0 or with 2 and one sentence, and uses the undamaged parts."""

import json
import math
import shutil
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from strangers import command, compare_run, rewrite, train_run

from pyro_gvae.config.train import TrainConfig
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.runs.config import read_compare_config, read_config, read_train_config
from pyro_gvae.runs.contents import read_run
from pyro_gvae.runs.files import parse_json
from pyro_gvae.train.training import Training

DEEP = "[" * 100_000

#: Invalid contents of config.json.
TEXTS = [
    *("", "5", "null", "[]", '"train"', "{", DEEP, '{"train": ' + DEEP, '{"train": []}', '{"train": null}', "\x00"),
    *('{"train": {"seed": NaN}}', '{"train": {"learning_rate": Infinity}}', '{"train": {"learning_rate": 1e999}}'),
    *('{"cells": 3}', '{"cells": [], "train": 3}', '{"train": {"seed": ' + "9" * 5000 + "}}"),
]
#: Invalid settings of train, most of which once led to a traceback or an endless run.
SETTINGS = [
    {"num_categories": 10**12},
    {"num_latents": 10**8},
    {"num_latents": 10**6, "num_categories": 10**6},
    {"hidden": [10**9]},
    {"hidden": [10**6] * 90},
    {"hidden": [1] * 10**4},
    {"hidden": "8"},
    {"hidden": [[8]]},
    {"hidden": {"8": 8}},
    {"num_levels": 10**12, "observation": "categorical", "binarize": "none"},
    {"optimizer": "Adam[lr=5]"},
    {"optimizer": "SGD[momentum=---..1]"},
    {"optimizer": "SGD[momentum=" + "(" * 5000 + "]"},
    {"optimizer": "Adam[betas=5]"},
    {"optimizer": "Adam[foreach=True]"},
    {"optimizer": "LBFGS"},
    {"optimizer": "SparseAdam"},
    {"optimizer": "Optimizer"},
    {"optimizer": "lr_scheduler"},
    {"optimizer": 3},
    {"stages": "exact[" * 3000},
    {"stages": "," * 10**5},
    {"stages": "exact:" + "9" * 400},
    {"stages": "exact[max_memory=[1]]:3"},
    {"stages": {"exact": 3}},
    {"learning_rate": "linear:1,0," + "9" * 400},
    {"learning_rate": "9" * 400},
    {"learning_rate": True},
    {"max_memory": 1e300},
    {"seed": 2**62},
    {"seed": "../0"},
    {"seed": -1},
    {"seconds": []},
    {"dataset": "../digits"},
    {"networks": None},
    {"evaluate_every": "1e400"},
    {"judge": ["exact"]},
    {"speed": 1},
]
#: Invalid settings of a comparison, for its report.
COMPARED = [
    {"cells": []},
    {"cells": [3]},
    {"cells": [{}]},
    {"cells": [{"estimator": 1, "setting": "", "seed": 0}]},
    {"cells": [{"estimator": "exact", "setting": [], "seed": 0}]},
    {"cells": {"exact": 0}},
    {"cells": [{"estimator": r"$\frac{$", "setting": "", "seed": 0}]},
    {"cells": [{"estimator": f"{n}", "setting": "", "seed": 0} for n in range(600)]},
    {"image_shape": []},
    {"image_shape": [8, "8"]},
    {"image_shape": [0, 8]},
    {"image_shape": [2**40, 2**40]},
    {"image_shape": 8},
    {"num_latents": "4"},
    {"num_latents": -4},
    {"num_categories": 0},
    {"num_categories": 2**70},
    {"epochs": []},
    {"dataset": {}},
    {"seeds": 3},
    {"sizes": "8x4"},
    {"versions": []},
    {"command": ["rm"]},
]
#: Invalid lines of metrics.jsonl.
LINES = [
    *("5", "null", "[1]", "{", "NaN", DEEP, '{"step": 1}', '{"a": {"b": 1}}', "\x00\xff", '{"step": 1e999}'),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, without_rendering):
    with without_rendering():
        return train_run(tmp_path_factory.mktemp("damaged") / "trained")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, without_rendering):
    with without_rendering():
        return compare_run(tmp_path_factory.mktemp("damaged") / "compared")


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def comparison(compared, tmp_path):
    return shutil.copytree(compared, tmp_path / "comparison")


def refused(name, run):
    """Run a command that must be refused; return the message, which `main` prints before it ends with code 2."""
    with pytest.raises((ValueError, OSError)) as caught:
        command(name, run)
    said = str(caught.value)
    assert said.startswith("Expected") and len(said) < 30_000
    return said


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_config_that_is_none(text, run):
    (run / "config.json").write_text(text)
    for name in ("resume", "report", "evaluate", "gaps"):
        refused(name, run)


@pytest.mark.parametrize("changed", SETTINGS, ids=range(len(SETTINGS)))
def test_settings_that_cannot_be(changed, run):
    rewrite(run, lambda old: old | {"train": old["train"] | changed})
    refused("resume", run)


@pytest.mark.parametrize("changed", COMPARED, ids=range(len(COMPARED)))
def test_a_comparison_that_cannot_be(changed, comparison):
    rewrite(comparison, lambda old: old | changed)
    refused("report", comparison)


@pytest.mark.parametrize("name", ["cells", "dataset", "epochs", "image_shape", "num_latents", "seeds"])
def test_a_comparison_that_lacks_something(name, comparison):
    rewrite(comparison, lambda old: {key: value for key, value in old.items() if key != name})
    assert "Expected a run folder" in refused("report", comparison)


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
@pytest.mark.parametrize("name", ["resume", "sample"])
def test_lines_beside_a_damaged_one_are_used(name, line, run, unrendered):
    path = run / "metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]) + "\n", encoding="latin-1")
    with pytest.warns(RuntimeWarning, match=r"left out torn line|has lost"):
        command(name, run)


def state_of(**changed):
    return lambda content: content | {"state": content["state"] | changed}


def optimizer_of(change):
    def harmed(content):
        return content | {"optimizer": {number: change(dict(state)) for number, state in content["optimizer"].items()}}

    return harmed


#: Invalid checkpoints with a valid checksum.
CONTENTS = [
    *(
        lambda content, name=name: {key: value for key, value in content.items() if key != name}
        for name in (
            "config",
            "data",
            "state",
            "vae",
            "optimizer",
            "parameters",
            "own",
            "random",
            "random_of_others",
            "metrics_bytes",
        )
    ),
    *(
        lambda content, name=name: content | {name: 3}
        for name in ("config", "data", "state", "vae", "optimizer", "parameters", "own", "random", "random_of_others")
    ),
    *(lambda content, size=size: content | {"metrics_bytes": size} for size in (-1, "9", None, [])),
    lambda content: None,
    lambda content: [content],
    state_of(younger=1),
    state_of(step="many"),
    state_of(step=-1),
    state_of(stage=7),
    state_of(stage=-1),
    state_of(seconds=math.nan),
    state_of(judge="mine"),
    lambda content: content | {"state": {}},
    optimizer_of(lambda state: state | {"exp_avg": torch.zeros(1)}),
    optimizer_of(lambda state: state | {"exp_avg": state["exp_avg"].double()}),
    optimizer_of(lambda state: state | {"step": 3}),
    optimizer_of(lambda state: state | {"step": torch.zeros(2)}),
    optimizer_of(lambda state: {name: value for name, value in state.items() if name != "exp_avg_sq"}),
    optimizer_of(lambda state: state | {"momentum_buffer": torch.zeros(())}),
    optimizer_of(lambda state: 3),
    lambda content: content | {"optimizer": {-1: content["optimizer"][0]}},
    lambda content: content | {"optimizer": {"0": content["optimizer"][0]}},
    lambda content: content | {"random": content["random"] | {"torch": torch.zeros(3, dtype=torch.uint8)}},
    lambda content: content | {"random": content["random"] | {"torch": [0]}},
    lambda content: content | {"random": content["random"] | {"python": {"version": 3, "numbers": [1], "gauss": None}}},
    *(
        lambda content, change=change: (
            content | {"random": content["random"] | {"numpy": content["random"]["numpy"] | change}}
        )
        for change in ({"pos": 10**6}, {"pos": -1}, {"key": torch.zeros(3)}, {"bit_generator": "PCG64"}, {"gauss": "x"})
    ),
    lambda content: content | {"vae": {}},
    lambda content: content | {"vae": {name: torch.zeros(1) for name in content["vae"]}},
]


@pytest.mark.parametrize("harm", CONTENTS, ids=range(len(CONTENTS)))
def test_a_checkpoint_with_other_parts(harm, run):
    (run / "weights.safetensors").unlink()
    path = run / "checkpoint.safetensors"
    save_checkpoint(path, harm(load_checkpoint(path)))
    before = (run / "metrics.jsonl").read_bytes()
    refused("resume", run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_tables_are_as_long_as_they_were():
    counts = [len(table) for table in (TEXTS, SETTINGS, COMPARED, LINES, CONTENTS)]
    assert sum(counts) >= 135, counts


#: Lines that are valid one by one, but that no run writes together.
HISTORIES = {
    "begins late": (lambda lines: lines[1:], None),
    "out of order": (lambda lines: lines[::-1], "in order"),
    "stages again": (lambda lines: [line | {"stage": n % 2} for n, line in enumerate([*lines, lines[-1]])], "in order"),
    "large": (lambda lines: [line | {"train_elbo": 1e300, "seconds": 1e300} for line in lines], None),
    "small": (lambda lines: [line | {"train_elbo": -1e300, "test_elbo": 1e-300} for line in lines], None),
    "far": (lambda lines: [line | {"step": 2**62, "epoch": 1e300} for line in lines], None),
    "markup": (lambda lines: [line | {"estimator": r"<b>$\frac{$", "elbo_is": "{{ 3 }}"} for line in lines], None),
}


@pytest.mark.parametrize(("change", "sentence"), HISTORIES.values(), ids=HISTORIES)
def test_a_history_of_nobodys_is_drawn_or_refused(change, sentence, run):
    path = run / "metrics.jsonl"
    written = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in written))
    if sentence is None:
        command("report", run)
    else:
        assert sentence in refused("report", run)


# Undamaged parts next to a damaged one.


def flip(path, place=-30):
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    "harm", [flip, lambda path: path.write_bytes(path.read_bytes()[:-7]), lambda path: path.unlink()]
)
def test_weights_that_are_lost_are_those_of_the_checkpoint(harm, run, trained, unrendered):
    expected = load_file(trained / "weights.safetensors")
    harm(run / "weights.safetensors")
    lost = not (run / "weights.safetensors").exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert command("report", run)
    assert lost or any("The weights of the checkpoint are used" in str(warning.message) for warning in caught)
    assert "not finished" not in (run / "report.html").read_text()
    assert command("resume", run)
    found = load_file(run / "weights.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_flipped_bit_in_weights_is_noticed_wherever_it_is(run):
    path = run / "weights.safetensors"
    (run / "checkpoint.safetensors").unlink()
    whole = path.read_bytes()
    for place in (*range(0, 120, 7), *range(200, len(whole), 97)):
        flip(path, place)
        refused("sample", run)
        path.write_bytes(whole)
    assert command("sample", run)


def test_weights_of_a_run_whose_checkpoint_is_damaged_are_used(run):
    flip(run / "checkpoint.safetensors")
    assert command("sample", run)
    assert "damaged" in refused("resume", run)


def test_a_history_that_is_lost(run, unrendered):
    """A finished run is evaluated again; its weights stay the same."""
    weights, last = (run / "weights.safetensors").read_bytes(), (run / "metrics.jsonl").read_text().splitlines()[-1]
    (run / "metrics.jsonl").unlink()
    assert "Try resume" in refused("report", run)
    with pytest.warns(RuntimeWarning, match="has lost evaluations of the run, which is continued"):
        assert command("resume", run)
    found = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(found[-1])["test_elbo"] == json.loads(last)["test_elbo"] and len(found) == 1
    assert (run / "weights.safetensors").read_bytes() == weights
    assert command("resume", run) and command("report", run)


def test_a_cell_whose_history_is_lost_is_judged_again(comparison, unrendered):
    [history] = comparison.glob("cells/*/metrics.jsonl")
    last = json.loads(history.read_text().splitlines()[-1])
    history.unlink()
    with pytest.warns(RuntimeWarning, match="has lost evaluations"):
        assert command("resume", comparison)
    line = json.loads((comparison / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["finished"] and line["test_elbo"] == last["test_elbo"]


# With hypothesis: any value in any place.

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**6, 10**12, 2**63, 2**70, -1]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
BY_CHANCE = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(value, path=()):
    """Return the paths of all values in nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [path] + [place for key, item in items for place in places(item, (*path, key))]


def put(value, place, item):
    if not place:
        return item
    copy = value.copy()
    copy[place[0]] = put(value[place[0]], place[1:], item)
    return copy


@pytest.mark.parametrize("kind", ["trained", "compared"])
@BY_CHANCE
@given(draw=st.data())
def test_any_config_is_read_or_refused(kind, request, tmp_path, draw):
    original = request.getfixturevalue(kind)
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(original, run)
    written = parse_json((original / "config.json").read_text())
    damaged = put(written, draw.draw(st.sampled_from(places(written))), draw.draw(JUNK))
    (run / "config.json").write_text(json.dumps(damaged))
    for read in (read_config, read_train_config, read_compare_config, read_run):
        try:
            read(run)
        except ValueError as error:
            assert str(error).startswith("Expected")


@BY_CHANCE
@given(draw=st.data())
def test_any_checkpoint_is_restored_or_refused(draw, tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(stages="gumbel-softmax:100", batch_size=9, judge="none")
    training = Training(CategoricalVAE(4, 1, 2, (2,)), torch.ones(9, 4), config)
    training.step.taken = 0
    content = training.content()
    damaged = put(content, draw.draw(st.sampled_from(places(content))), draw.draw(JUNK))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            training.restore(damaged)
        except ValueError as error:
            assert str(error).startswith("Expected")


@BY_CHANCE
@given(st.binary(max_size=400))
def test_any_file_of_tensors_is_read_or_refused(tmp_path, content):
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Expected"):
        load_checkpoint(path)
