"""The requirements of fit on its process, and the traces that it leaves there."""

import os
import threading
import warnings

import pyro
import pytest
import torch

from pyro_gvae import CategoricalVAE, TrainConfig, fit
from pyro_gvae.estimators import ESTIMATORS, estimator
from pyro_gvae.runtime.exclusive import only_thread


def new_vae(num_categories=3):
    torch.manual_seed(0)
    return CategoricalVAE(6, 2, num_categories, (5,))


def images():
    return torch.rand(8, 6, generator=torch.Generator().manual_seed(1)).round().float()


def config(stages="exact:1", **options):
    return TrainConfig(stages=stages, batch_size=4, **options)


def test_a_second_thread_is_refused():
    refusals = []

    def second():
        try:
            fit(new_vae(), images(), config(), progress=False)
        except ValueError as error:
            refusals.append(str(error))

    with only_thread("fit"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        fit(new_vae(), images(), config(), progress=False)  # in the same thread
    (refusal,) = refusals
    assert refusal.startswith("Expected fit in one thread of a process, whose random states and Pyro handlers all")
    thread = threading.Thread(target=second)  # the control: on its own, another thread may fit
    thread.start()
    thread.join()
    assert len(refusals) == 1


@pytest.mark.usefixtures("recorded")
def test_nothing_is_left_in_the_process():
    fit(new_vae(), images(), config("gumbel-softmax:1"), progress=False)  # do imports first, which change state
    pyro.clear_param_store()
    filters, environment = list(warnings.filters), dict(os.environ)
    threads = threading.enumerate()
    fit(new_vae(), images(), config("gumbel-softmax:1,exact:1"))
    assert warnings.filters == filters and dict(os.environ) == environment
    assert threading.enumerate() == threads and len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_torchs_default_type_changes_no_number(name, request):
    """A float32 network on float32 data gives the same numbers, recorded or not: no float64 constants interfere."""
    options = {}
    if name in {"gumbel-softmax", "exact"}:
        request.getfixturevalue("recorded")
    else:
        options = {"judge": "none"}  # the evaluations are those of any estimator
    weights = []
    for dtype in (torch.float32, torch.float64):
        vae, x = new_vae(estimator(name).num_categories or 3), images()
        torch.set_default_dtype(dtype)
        fit(vae, x, config(f"{name}:3", learning_rate=0.01, **options), progress=False)
        torch.set_default_dtype(torch.float32)
        weights.append(torch.cat([parameter.flatten() for parameter in vae.parameters()]))
    assert weights[1].isfinite().all() and weights[1].dtype == torch.float32
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
