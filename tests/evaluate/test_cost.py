"""What evaluations cost, counted: runs of the networks, and exponentials that are worth taking."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_gvae import CategoricalVAE, exact
from pyro_gvae.evaluate.bounds import is_summable
from pyro_gvae.evaluate.generate import encode
from pyro_gvae.evaluate.guides import closed_log_probs, read_guide
from pyro_gvae.exact import costs, factorized_apart
from pyro_gvae.exact.best import best_codes
from pyro_gvae.programs.look import look
from pyro_gvae.programs.runs import bind_pair


def vae_and_data():
    torch.manual_seed(0)
    return CategoricalVAE(12, 2, 3, (8,)).double(), torch.rand(50, 12, dtype=torch.float64).round()


#: What is asked -> how often it runs the encoder on the data.
ASKED = {
    "bounds": (exact.bounds, 1),
    "mean_field": (exact.mean_field, 1),
    "read_guide": (read_guide, 1),
    "closed_log_probs": (closed_log_probs, 1),
    "encode": (encode, 1),
    "posterior": (exact.posterior, 0),
    "best_codes": (best_codes, 0),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_encoder_runs_once(name):
    (ask, times), (vae, x) = ASKED[name], vae_and_data()
    calls = []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        ask(vae, x)
    assert len(calls) == times


def test_a_guide_that_draws_or_learns_is_run_again():
    vae, x = vae_and_data()
    assert look(bind_pair(vae, x)).says_all
    encoder = vae.encoder
    for layer in (torch.nn.Dropout(), torch.nn.BatchNorm1d(12).double()):
        vae.encoder = torch.nn.Sequential(layer, encoder)
        assert not look(bind_pair(vae, x)).says_all
        vae.eval()
        assert look(bind_pair(vae, x)).says_all
    vae.train()
    means = vae.encoder[0].running_mean.clone()
    exact.bounds(vae, x)
    assert not torch.equal(vae.encoder[0].running_mean, means)  # learnt once, as by any run in train mode


def test_a_gradient_is_not_that_of_the_first_look():
    vae, x = vae_and_data()
    exact.elbo(vae, x).sum().backward()
    assert all(parameter.grad is not None for parameter in vae.encoder.parameters())
    with torch.no_grad():
        torch.testing.assert_close(exact.elbo(vae, x), exact.bounds(vae, x).elbo)


def test_whether_a_sum_is_taken_does_not_depend_on_the_clock(monkeypatch):
    vae, x = vae_and_data()
    assert costs.operations(vae, x) == exact.cost(vae, x).operations
    monkeypatch.setattr(costs, "_seconds", None)
    assert is_summable(vae, [(x,)], look(bind_pair(vae, x)), 1e15, None)


class Exponentials(TorchDispatchMode):
    """Keeps the least number whose exponential is taken."""

    least = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.exp, torch.ops.aten.exp_):
            self.least = min(self.least, args[0].min().item())
        return function(*args, **kwargs or {})


def test_no_exponential_is_taken_of_a_weight_that_is_nothing():
    vae, x = vae_and_data()
    with torch.no_grad(), Exponentials() as found:
        vae.decoder[-1].weight.mul_(1e3)
        bounds = exact.bounds(vae, x)
    assert (bounds.elbo <= bounds.log_evidence).all() and -60 < found.least < -10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_that_have_converged_are_not_swept_again(dtype, monkeypatch):
    torch.manual_seed(0)
    vae, x = CategoricalVAE(12, 3, 3, (8,)).to(dtype), torch.rand(50, 12, dtype=dtype).round()
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(20)
    swept, sweep = [], factorized_apart.sweep

    def counted(log_q, joint, plan):
        swept.append(len(joint))
        return sweep(log_q, joint, plan)

    monkeypatch.setattr(factorized_apart, "sweep", counted)
    few = exact.mean_field(vae, x)
    assert len(swept) < 150 and swept.count(50) < 0.7 * len(swept)  # of 300, all of 50
    monkeypatch.setattr(factorized_apart, "gains", lambda elbo, *_: torch.ones_like(elbo, dtype=torch.bool))
    every = exact.mean_field(vae, x)
    tolerance = 1e-4 if dtype is torch.float32 else 1e-5
    torch.testing.assert_close(few.elbo, every.elbo, rtol=0, atol=tolerance)
