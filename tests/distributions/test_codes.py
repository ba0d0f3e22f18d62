"""Neighbours of codes, against a loop over all pairs."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_gvae.distributions.codes import hamming_neighbours, joint_codes


def in_a_loop(z):
    """Return the neighbours of one code, given as a list of categories."""
    num_categories = 4
    return [
        [(k + j) % num_categories if n == m else k for m, k in enumerate(z)]
        for n in range(len(z))
        for j in range(1, num_categories)
    ]


@pytest.mark.parametrize("slice_size", [1, 4, 7, 18, 100])
def test_neighbours_are_those_of_a_loop_in_slices_of_that_size(slice_size):
    numbers = torch.tensor([[3, 63, 17, 0, 40], [8, 8, 62, 5, 1]])  # P = 2, B = 5
    z = joint_codes(3, 4)[numbers].double()
    parts = list(hamming_neighbours(z, slice_size))
    assert [len(part) for part in parts[:-1]] == [slice_size] * (len(parts) - 1) and 0 < len(parts[-1]) <= slice_size
    found = torch.cat(parts)
    assert found.dtype == torch.float64 and found.shape == (2 * 9, 5, 3, 4) and (found.sum(-1) == 1).all()
    for p, b in itertools.product(range(2), range(5)):
        assert found[9 * p : 9 * (p + 1), b].argmax(-1).tolist() == in_a_loop(z[p, b].argmax(-1).tolist())


def test_one_category_has_no_neighbours():
    assert list(hamming_neighbours(torch.ones(2, 3, 4, 1), 5)) == []


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest result."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.most = max(self.most, found.numel() if isinstance(found, torch.Tensor) else 0)
        return found


def test_nothing_larger_than_a_slice_is_ever_held():
    z = joint_codes(6, 5, 7, 8).expand(3, 6, 5).unsqueeze(0)  # P = 1, B = 3
    all_at_once = 6 * 4 * z.numel()
    for slice_size, most in ((2, 2 * z.numel()), (24, all_at_once)):
        with Largest() as largest:
            for _ in hamming_neighbours(z, slice_size):
                pass
        assert largest.most == most
