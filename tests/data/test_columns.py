"""Data with several columns, which are the arguments of a program."""

import pytest
import torch

from pyro_gvae.data.batches import epoch_batches
from pyro_gvae.data.columns import as_data, chunks, digest_of

X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5)


@pytest.mark.parametrize("data", [(X, Y), (X.numpy(), Y.numpy()), {"x": X, "y": Y}, (X.double().numpy(), Y)])
def test_columns_keep_their_names_and_integers(data):
    found = as_data(data)
    x, y = found.values() if isinstance(found, dict) else found
    assert torch.equal(x, X) and x.dtype == torch.float32 and torch.equal(y, Y) and y.dtype == torch.int64
    assert isinstance(found, type(data)) and (not isinstance(data, dict) or list(found) == ["x", "y"])


def test_nested_numbers_are_one_tensor_and_a_tuple_of_tensors_is_not():
    assert as_data(((0, 1), (1, 0))).shape == (2, 2)
    assert isinstance(as_data((X,)), tuple)


def test_data_keep_their_shapes():
    sequences = torch.arange(12.0).reshape(2, 3, 2)
    (found,) = as_data((sequences,))
    assert torch.equal(found, sequences) and as_data({"x": sequences.numpy()})["x"].shape == (2, 3, 2)
    assert torch.equal(as_data(sequences), sequences) and torch.equal(as_data(sequences.tolist()), sequences)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"Expected as many data in each of 2 tensors, but found \[5, 4\]"):
        as_data((X, Y[:4]))


def test_rows_stay_together():
    for data in ((X, Y), {"x": X, "y": Y}):
        batches = epoch_batches(data, 2, seed=0, epoch=0)
        order = [tuple(batch.values()) if isinstance(batch, dict) else batch for batch in batches]
        assert [len(y) for _, y in order] == [2, 2, 1]
        assert all(torch.equal(x, X[y]) for x, y in order)
        alone = torch.cat(list(epoch_batches(X, 2, seed=0, epoch=0)))
        assert torch.equal(torch.cat([x for x, _ in order]), alone)
    assert [len(y) for _, y in chunks((X, Y), 3)] == [3, 2]


def test_a_digest_is_of_all_columns_and_their_names():
    found = [(X, Y), (X, Y + 1), (X,), X, {"x": X, "y": Y}, {"y": X, "x": Y}]
    assert len({digest_of(data) for data in found}) == len(found) - 1  # (x,) is x
    assert digest_of((X,)) == digest_of(X)
