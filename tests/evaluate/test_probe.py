"""The linear probe: information on labels in codes, against scikit-learn's regression on the same codes."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyro_gvae.evaluate.probe import _fitted, linear_probe


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_weights_are_those_of_scikit_learn(num_classes):
    codes = torch.nn.functional.one_hot(torch.randint(3, (300, 4)), 3).flatten(1)
    labels = (codes.double() @ torch.randn(12, num_classes).double() + torch.randn(300, num_classes)).argmax(1)
    theirs = LogisticRegression(max_iter=1000).fit(codes.numpy(), labels.numpy())
    different, code = codes.unique(dim=0, return_inverse=True)
    counts = torch.stack([code[labels == label].bincount(minlength=len(different)) for label in range(num_classes)], 1)
    weights = _fitted(different.double(), counts.double())
    torch.testing.assert_close(weights[:, :-1], torch.from_numpy(theirs.coef_), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights[:, -1], torch.from_numpy(theirs.intercept_), atol=1e-6, rtol=1e-6)
    found = linear_probe(codes.unsqueeze(-1), labels + 5, codes.unsqueeze(-1), labels + 5)
    assert found.value == theirs.score(codes.numpy(), labels.numpy())


def test_a_linear_probe_learns_what_codes_say_and_no_more():
    labels = torch.randint(3, (400,))
    codes = torch.stack([labels, torch.randint(4, (400,))], 1)
    assert linear_probe(codes[:200], labels[:200], codes[200:], labels[200:]).value == 1.0
    noise = torch.randint(4, (400, 2))
    found = linear_probe(noise[:150], labels[:150], noise[150:], labels[150:])
    assert abs(found.value - 1 / 3) < 5 * found.standard_error
    assert found.standard_error == pytest.approx(math.sqrt(found.value * (1 - found.value) / 250))
    one_hots = torch.nn.functional.one_hot(codes, 4)
    assert linear_probe(one_hots[:200], labels[:200], one_hots[200:], labels[200:]).value == 1.0


def test_categories_that_train_data_lack_are_no_obstacle():
    codes, labels = torch.tensor([[0], [1]] * 10), torch.tensor([0, 1] * 10)
    assert linear_probe(codes, labels, torch.tensor([[1], [4]]), torch.tensor([1, 0])).value in (0.5, 1.0)


@pytest.mark.parametrize(("train_labels", "test_labels"), [([1, 1, 1, 1], [1, 1]), ([0, 1, 0, 1], [0, 2])])
def test_labels_that_ask_nothing(train_labels, test_labels):
    codes = torch.zeros(4, 2, dtype=torch.long)
    assert linear_probe(codes, torch.tensor(train_labels), codes[:2], torch.tensor(test_labels)) is None
