"""Optimizers by name: their states are known, and unsuitable ones are refused before training."""

import pytest
import torch
from torch import nn

from pyro_gvae.train.optimizers import check_optimizer_state, new_optimizer

#: Optimizers that need a closure, or sparse gradients.
OTHERS = {"LBFGS", "SparseAdam"}
NAMES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
#: Parameters of several shapes; Muon only takes matrices.
SHAPES = {"Muon": [(3, 2)]}


def stepped(name):
    parameters = [nn.Parameter(torch.ones(shape)) for shape in SHAPES.get(name, [(3, 2), (4,), ()])]
    optimizer = new_optimizer(name, parameters, 0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERS])
def test_a_state_fits_its_own_optimizer_and_no_other(name):
    optimizer = stepped(name)
    state = optimizer.state_dict()["state"]
    check_optimizer_state(optimizer, state)
    wrong = {number: {**entries, "other": 1} for number, entries in (state or {0: {}}).items()}
    with pytest.raises(ValueError, match="for parameter 0, but found another one"):
        check_optimizer_state(optimizer, wrong)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_cannot_step_by_gradients_alone_is_refused(name):
    with pytest.raises(ValueError, match=f"Expected an optimizer that steps by gradients alone, but found {name}"):
        new_optimizer(name, [nn.Parameter(torch.ones(2))])
