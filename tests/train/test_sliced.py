"""Training on rows that are read in slices: resuming is exact to the bit, and evaluations use all test rows."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, estimator, exact, fit, make_step, sliced_dataset
from pyro_gvae.config.stages import Amount
from pyro_gvae.data.columns import first
from pyro_gvae.data.labels import class_names, given, labels_in_words
from pyro_gvae.evaluate.metrics import evaluate
from pyro_gvae.models.conditional_vae import ConditionalVAE
from pyro_gvae.models.semi_supervised_vae import SemiSupervisedVAE
from pyro_gvae.models.table import TableObservation
from pyro_gvae.train import monitor
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.monitor import choose_judge, discrete_elbo

pytest.importorskip("pyarrow")


def people():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"age": random.normal(size=150), "sex": random.choice(["f", "m"], 150)})
    return frame.mask(random.random(frame.shape) < 0.1)


def written(frame, folder, **options):
    frame.to_parquet(folder / "people.parquet", row_group_size=16)
    return sliced_dataset(folder / "people.parquet", memory=2 * 2 * 16 * 2 * 4, **options)


@pytest.fixture
def data(tmp_path):
    return written(people(), tmp_path)


def program(data):
    torch.manual_seed(0)
    return CategoricalVAE(2, 1, 3, (4,), observation=TableObservation(data.columns))


def conditional(data):
    torch.manual_seed(0)
    return ConditionalVAE(2, 3, 1, 3, (4,), observation=TableObservation(data.columns))


def learned(data):
    torch.manual_seed(0)
    return SemiSupervisedVAE(2, 3, 2, (4,), observation=TableObservation(data.columns), label_weight=1.0)


def with_labels(folder, *, missing=False, **options):
    """A third of the rows has each label; the label says in which third of the numbers the age is."""
    frame = people().assign(age=np.linspace(-1, 1, 150), group=np.repeat(["x", "y", "z"], 50))
    frame = frame.sample(frac=1, random_state=0)
    if missing:
        frame.loc[::4, "group"] = None
    return written(frame, folder, labels="group", **options)


def third_of(data, x):
    [age] = [column for column in data.columns if column.name == "age"]
    return ((x[:, 0] * age.spread + age.centre + 1) * 1.5).long().clamp(0, 2)


@pytest.mark.parametrize("missing", [False, True])
def test_slices_have_the_labels_of_their_rows(missing, tmp_path):
    data = with_labels(tmp_path, missing=missing, validation_share=0.1)
    rows = data.train.labelled(every=False)
    batches = [list(rows.batches(7, seed=3, epoch=epoch)) for epoch in (0, 1)]
    found = [rows.sample(9), next(rows.chunks(9)), first(rows, 5), *batches[0], *batches[1]]
    for x, y in found:
        assert x.shape == (len(y), 2) and torch.equal(y[y >= 0], third_of(data, x)[y >= 0])
    for epoch in batches:
        x, y = map(torch.cat, zip(*epoch, strict=True))
        assert len(x) == len(data.train) and (y >= 0).sum() == sum(data.labelled)
        assert data.labelled == tuple(y[y >= 0].bincount().tolist()) and (y < 0).any() == missing
    assert not torch.equal(batches[0][0][0], batches[1][0][0])
    skipped = list(rows.batches(7, seed=3, epoch=0, skip=3))
    torch.testing.assert_close(skipped, batches[0][3:], rtol=0, atol=0, equal_nan=True)
    assert rows.digest() != data.train.digest()
    if missing:
        with pytest.raises(ValueError, match=r"Expected a label in each row, .* but found none in row"):
            list(data.train.labelled(every=True).batches(7, seed=3, epoch=0))


def test_a_share_of_the_training_labels_is_taken(tmp_path):
    data, whole = with_labels(tmp_path, labelled_share=0.3), with_labels(tmp_path)
    kept, known = (next(one.train.labelled(every=False).chunks(999))[1] for one in (data, whole))
    assert data.labelled == tuple(kept[kept >= 0].bincount().tolist()) and 20 < sum(data.labelled) < 50
    assert torch.equal(kept[kept >= 0], known[kept >= 0]) and sum(whole.labelled) == len(whole.train)
    assert (next(data.test.parts(999)).labels >= 0).all()
    assert (
        labels_in_words(data) == f"labels: {sum(data.labelled)} of {len(data.train)} training rows, 3 classes: x, y, z"
    )
    with pytest.raises(ValueError, match=r"labelled_share=0.001 keeps none of '.'"):
        with_labels(tmp_path, labelled_share=0.001)


@pytest.mark.parametrize("make", [conditional, learned])
def test_programs_learn_from_labels_and_are_resumed_to_the_bit(make, tmp_path):
    """By hand: the same batches in memory, step by step; and the bound of all test rows."""
    data = with_labels(tmp_path, missing=make is learned)
    config = TrainConfig(stages="exact:1", batch_size=7, learning_rate=1e-2)
    whole, by_hand, again = make(data), make(data), make(data)
    done = fit(whole, data, config, progress=False)
    step = make_step(by_hand, estimator("exact"), lr=1e-2)
    rows = data.train.labelled(every=make is conditional)
    torch.manual_seed(0)
    for batch in rows.batches(7, seed=0, epoch=0):
        step(batch)
    stop = Milestones([Amount(5.0, "steps")], lambda _: {})
    fit(again, data, config, output=tmp_path / "run", resume=True, progress=False, milestones=stop)
    fit(again := make(data), data, config, output=tmp_path / "run", resume=True, progress=False)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        if make is conditional:  # whose sums have no draws
            torch.testing.assert_close(weight, by_hand.state_dict()[name])
    if make is conditional:
        expected = exact.elbo(whole, next(data.test.labelled(every=True).chunks(999))).mean().item()
        assert done.history[-1]["test_elbo"] == pytest.approx(expected, rel=1e-5)
        found = evaluate(whole, data).value("test", "elbo")
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        assert evaluate(whole, data, num_particles=2).value("test", "accuracy") > 0


def test_labels_that_cannot_be_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"for a ConditionalVAE, .* but found data without labels"):
        given(conditional(data), data)
    with pytest.raises(ValueError, match=r"Expected data with labels, but found none in 'people.parquet'"):
        class_names(data)
    with pytest.raises(ValueError, match=r"Expected rows with labels, but found none in 'people.parquet'"):
        data.train.labelled(every=False)
    labelled = with_labels(tmp_path)
    few = ConditionalVAE(2, 2, 1, 3, (4,), observation=TableObservation(labelled.columns))
    with pytest.raises(ValueError, match=r"Expected labels of 2 classes, but found 3 in 'people.parquet': x, y, z"):
        given(few, labelled)
    with pytest.raises(ValueError, match=r"training data of every class, .* but found none of 'y'"):
        given(conditional(data), replace(labelled, labelled=(3, 0, 2)))


def test_a_resumed_run_is_the_same_to_the_bit(data, tmp_path):
    config = TrainConfig(stages="gumbel-softmax:2", batch_size=7)
    whole, again = program(data), program(data)
    done = fit(whole, data, config, progress=False)
    steps = [Amount(float(step), "steps") for step in (3, 21)]  # in the first epoch, and the second
    for stop in steps:
        fit(
            again,
            data,
            config,
            output=tmp_path / "run",
            resume=True,
            progress=False,
            milestones=Milestones([stop], lambda _: {}),
        )
        again = program(data)
    resumed = fit(again, data, config, output=tmp_path / "run", resume=True, progress=False)
    assert done.steps == resumed.steps > 21
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert resumed.history[-1]["test_elbo"] == done.history[-1]["test_elbo"]


def test_all_test_rows_are_judged(data, monkeypatch):
    monkeypatch.setattr(monitor, "AT_A_TIME", 7)
    vae, x = program(data), torch.cat(list(data.test.chunks(1000)))
    expected = exact.elbo(vae, x).mean().item()
    assert discrete_elbo(vae, data.test, "exact") == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(discrete_elbo(vae, data.test, "sampled"))
    assert choose_judge(vae, data.test) == "exact"


def test_a_program_of_other_columns_is_told_before_it_is_trained(data):
    other = CategoricalVAE(2, 1, 3, (4,))
    with pytest.raises(ValueError, match="without NaN or infinity"):
        fit(other, data, TrainConfig(stages="exact:1steps", batch_size=7), progress=False)


def test_the_order_is_part_of_what_a_checkpoint_is_held_against(data, tmp_path):
    config = TrainConfig(stages="exact:2steps", batch_size=7)
    fit(program(data), data, config, output=tmp_path / "run", progress=False)
    other = sliced_dataset(tmp_path / "people.parquet", memory=2 * 16 * 2 * 4)
    with pytest.raises(ValueError, match="the training data of the checkpoint, but found other"):
        fit(program(data), other, config, output=tmp_path / "run", resume=True, progress=False)
    in_memory = Dataset(
        "people", next(data.train.chunks(999)), next(data.test.chunks(999)), (1, 2), columns=data.columns
    )
    with pytest.raises(ValueError, match="the training data of the checkpoint, but found other"):
        fit(program(data), in_memory, config, output=tmp_path / "run", resume=True, progress=False)
