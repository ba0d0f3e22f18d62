"""Counted work depends on shapes alone."""

import pytest
import torch
from torch import nn

from pyro_gvae import exact
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runtime.work import OPERATIONS_PER_ELEMENT, count_operations

A, B = torch.ones(2, 3), torch.ones(3, 4)
#: name -> a computation, its operations in products, and the elements that it writes.
COMPUTATIONS = {
    "product": (lambda: A @ B, 2 * 2 * 3 * 4, 2 * 4),
    "element by element": (lambda: (A + 1).exp(), 0, 2 * 6),
    "views": (lambda: A.T.reshape(-1)[:2].unsqueeze(0), 0, 6),  # of a copy
    "nothing": (lambda: A.T.expand(5, 3, 2)[0], 0, 0),
    "convolution": (lambda: nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(2, 1, 3, 3)), 2 * 2 * 4 * 9, 42),
}


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_products_and_elements_are_counted(name):
    run, products, elements = COMPUTATIONS[name]
    assert count_operations(run) == products + OPERATIONS_PER_ELEMENT * elements


def test_a_backward_pass_is_counted():
    weight = nn.Parameter(B.clone())
    forward = count_operations(lambda: (A @ weight).sum())
    both = count_operations(lambda: (A @ weight).sum().backward())
    assert both >= forward + 2 * 2 * 3 * 4 and weight.grad is not None


def test_the_work_of_a_sum_depends_on_its_shapes_alone(slow_clock):
    vae, x = CategoricalVAE(20, 5, 3, (16,)), torch.ones(7, 20)
    found = exact.cost(vae, x)
    assert found.operations == exact.cost(vae, x, slice_size=3).operations > 243 * 2 * (2 * 15 * 16 + 16 * 20 + 20 * 7)
    sharper = CategoricalVAE(20, 5, 3, (16,))
    assert exact.cost(sharper, torch.zeros(7, 20)).operations == found.operations
    assert exact.cost(vae, torch.ones(14, 20)).operations > found.operations
    assert exact.cost(CategoricalVAE(20, 6, 3, (16,)), x).operations > 3 * found.operations


def test_codes_that_are_fewer_than_are_measured_are_counted():
    assert exact.cost(CategoricalVAE(6, 1, 2, (5,)), torch.ones(4, 6)).operations > 0
