"""Labels: which ones are known, which ones a program is given, and what is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_gvae import Dataset, TrainConfig, dataset_of, exact, fit
from pyro_gvae.data.batches import epoch_batches
from pyro_gvae.data.columns import columns
from pyro_gvae.data.dataset import binarized
from pyro_gvae.data.labels import class_names, given, judged, labels_in_words, shown, with_labelled_share
from pyro_gvae.data.splits import numbers_among
from pyro_gvae.evaluate.metrics import evaluate
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.conditional_vae import ConditionalVAE
from pyro_gvae.models.semi_supervised_vae import SemiSupervisedVAE

M, D = 12, 6
LABELS = torch.arange(M) % 3
SOME = torch.where(torch.arange(M) < 7, LABELS, -1)


def images(labels=LABELS, test_labels=LABELS[:4], **options):
    x = torch.rand(M + 4, D, generator=torch.Generator().manual_seed(1))
    return Dataset("small", x[:M].round(), x[M:].round(), (2, 3), labels, test_labels, **options)


def learned():
    torch.manual_seed(0)
    return SemiSupervisedVAE(D, 3, 2, (5,), label_weight=2.0)


def conditional():
    torch.manual_seed(0)
    return ConditionalVAE(D, 3, 1, 3, (5,))


def weights(vae):
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def test_each_program_is_given_what_it_takes():
    data = images(SOME)
    found = given(learned(), data)
    assert torch.equal(columns(found.train)[1], SOME) and torch.equal(found.watched, data.train)
    assert torch.equal(found.test, data.test) and torch.equal(found.labels, SOME) and found.validation is None
    whole = images()
    found = given(conditional(), whole)
    assert torch.equal(columns(found.test)[1], whole.test_labels) and len(columns(found.watched)) == 2
    assert torch.equal(columns(shown(conditional(), whole, 2))[1], whole.test_labels[:2])
    unused = given(BernoulliVAE(D, 2, (5,)), data)
    assert unused.labels is None and unused.train is data.train
    assert judged(learned(), data.train, SOME) is data.train


@pytest.mark.parametrize(("make", "labels"), [(learned, SOME), (conditional, LABELS)])
def test_a_data_set_and_a_tuple_train_alike(make, labels):
    config = TrainConfig(stages="exact:2steps", batch_size=5, evaluate_every="2steps")
    found = []
    for data in (images(labels), (images().train, labels), images(labels.roll(1))):
        vae = make()
        found.append((vae, fit(vae, data, config, progress=False).history[-1]["test_elbo"]))
    first, second, other = (weights(vae) for vae, _ in found)
    assert torch.equal(first, second) and not torch.equal(first, other)
    if make is conditional:  # its bound is exact and draws nothing
        vae, data = found[0][0], images()
        assert found[0][1] == pytest.approx(exact.elbo(vae, data.test, data.test_labels).mean().item(), abs=1e-5)


def test_the_bounds_of_an_evaluation_are_those_of_data_with_their_labels():
    vae, data = conditional(), images()
    found = evaluate(vae, data)
    for part, x, y in (("train", data.train, LABELS), ("test", data.test, data.test_labels)):
        assert found.value(part, "log_evidence") == pytest.approx(exact.log_evidence(vae, x, y).mean().item(), abs=1e-4)
    assert "linear_probe_accuracy" not in set(found.metrics["metric"])


def test_the_accuracy_is_that_of_known_labels():
    vae, data = learned(), images(SOME, torch.tensor([0, -1, 2, 1]))
    found = evaluate(vae, data, num_particles=2)
    for x, labels, part in ((data.test, data.test_labels, "test"), (data.train, SOME, "train")):
        known = labels >= 0
        right = (vae.classifier(x).argmax(-1) == labels)[known].double().mean().item()
        assert found.value(part, "accuracy") == pytest.approx(right)


def test_batches_have_the_labels_of_their_rows():
    data = binarized(Dataset("grey", torch.linspace(0, 1, M).repeat(D, 1).T, torch.zeros(1, D), (2, 3)), "dynamic")
    rows = torch.arange(M)
    with_labels = list(epoch_batches(data, 5, seed=3, epoch=1, labels=rows))
    for (x, y), alone in zip(with_labels, epoch_batches(data, 5, seed=3, epoch=1), strict=True):
        assert torch.equal(x, alone) and len(y) == len(x)
    assert torch.equal(torch.cat([y for _, y in with_labels]).sort().values, rows)
    grey = list(epoch_batches(replace(data, binarize="none"), 5, seed=3, epoch=1, labels=rows))
    assert all(torch.equal(x, data.train[y]) for x, y in grey)


def test_a_share_of_each_class_stays():
    data = images(torch.tensor([0] * 6 + [1] * 4 + [2] + [-1]))
    kept = with_labelled_share(data, 0.5, seed=1).train_labels
    assert kept[kept >= 0].bincount().tolist() == [3, 2, 1]
    known = kept >= 0
    assert torch.equal(kept[known], data.train_labels[known])
    assert not torch.equal(kept, with_labelled_share(data, 0.5, seed=2).train_labels)
    assert labels_in_words(replace(data, train_labels=kept)).startswith("labels: 6 of 12 training rows, 3 classes")


FRAME = pd.DataFrame({"a": torch.rand(8).tolist(), "of": ["x", None, "y", "x", "y", "x", "y", "x"]})


def test_a_class_called_minus_one_beside_whole_numbers_is_warned_of():
    """scikit-learn marks unknown labels by -1; classes -1 and 1 are those of support vector machines."""
    x = np.zeros((9, 2), np.float32)
    with pytest.warns(RuntimeWarning, match="-1 is taken as a class. If .* unknown label, leave the cell empty"):
        assert dataset_of(x, labels=np.arange(9) % 3 - 1, test_share=0.4).classes == ("-1", "0", "1")
    assert dataset_of(x, labels=2 * (np.arange(9) % 2) - 1, test_share=0.4).classes == ("-1", "1")


def test_labels_of_a_column_have_names():
    found = dataset_of(FRAME, labels="of")
    assert found.classes == class_names(found) == ("x", "y")
    assert int((torch.cat([found.train_labels, found.test_labels]) < 0).sum()) == 1
    assert numbers_among(FRAME["of"], ("y", "x")).tolist() == [1, -1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dataset_of(FRAME, labels="of", every_label=True), "Expected a label in each row, .* none in row 2"),
        (lambda: numbers_among(FRAME["of"], ("x", "z")), "Expected a label among x, z, but found 'y' in row 3"),
        (lambda: class_names(images(None, None)), "Expected data with labels, but found none in 'small'"),
        (lambda: class_names(images(torch.arange(M))), "Expected labels of two classes or more, each of several rows"),
        (lambda: with_labelled_share(images(None), 0.5), "Expected training data with labels"),
        (lambda: given(conditional(), images(SOME)), "for a ConditionalVAE, .* but found none in row 8 of 12"),
        (lambda: given(conditional(), images(None)), "for a ConditionalVAE, .* but found data without labels"),
        (lambda: given(conditional(), images().train), "for a ConditionalVAE, .* but found data alone"),
        (lambda: given(learned(), images(SOME + 1)), "Expected labels 0 to 2, but found 3 in row 3 of the train data"),
        (lambda: given(learned(), images(SOME.float())), "Expected labels as integers, but found torch.float32"),
        (lambda: given(conditional(), images(LABELS % 2)), "found none of label 2, which row 3 of the test data has"),
    ],
)
def test_invalid_labels_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
