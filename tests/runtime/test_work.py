"""Counted work: it depends on shapes alone."""

import itertools
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_gvae import exact
from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.exact.costs import MEASURED_CODES
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.layout import lay_out
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.programs.statements import read
from pyro_gvae.runtime.work import OPERATIONS_PER_ELEMENT, _Counted, count_operations

A, B = torch.ones(2, 3), torch.ones(3, 4)
#: Name -> a computation, its number of operations in products, and of written elements.
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
    two, four = (exact.cost(CategoricalVAE(6, 1, size, (5,)), torch.ones(4, 6)).operations for size in (2, 4))
    assert 0.45 * four < two < 0.5 * four  # half of the codes, and a narrower layer


def test_the_work_is_that_of_one_pass_forward_and_backward():
    """Operations that do not depend on the codes are a few percent, and are not counted."""
    vae, x = CategoricalVAE(100, 5, 3, (64,)), torch.ones(7, 100)
    runs = bind_pair(vae, x)
    layout, codes = lay_out(runs), {"z": joint_codes(5, 3)}
    whole = count_operations(lambda: read(runs.model, layout, codes, {}).factors["x"].log_prob.sum().backward())
    assert exact.cost(vae, x).operations == pytest.approx(whole, rel=0.05)


def test_seconds_are_those_of_all_codes(monkeypatch):
    """The clock advances by one second per reading."""
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)
    found = exact.cost(CategoricalVAE(6, 7, 3, (5,)), torch.ones(4, 6))
    assert found.seconds == 3**7 / MEASURED_CODES


def test_the_operations_of_products_are_those_that_torch_counts():
    gru = nn.GRU(3, 5, batch_first=True)
    x, y = torch.ones(2, 4, 3), torch.ones(2, 3, 6)

    def run():
        loss = gru(x)[0].sum() + torch.baddbmm(torch.ones(2, 4, 6), x, y).sum() + (x @ y).sum() + (x @ y[0]).sum()
        return loss + nn.functional.conv1d(x, gru.weight_hh_l0[:2, :4].unsqueeze(-1)).sum()

    with FlopCounterMode(display=False) as theirs, _Counted() as ours:
        run().backward()
    with torch.inference_mode(), FlopCounterMode(display=False) as inferred, _Counted() as our_inferred:
        run()
    assert ours.products == theirs.get_total_flops() > 0
    assert our_inferred.products == inferred.get_total_flops() > 0
