"""Handled programs can be called, copied and pickled, and have their parameters, like the programs themselves."""

import copy
import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_gvae import CategoricalVAE
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through, weigh_kl

B, N, K, D = 5, 2, 3, 4
HANDLERS = {
    "relax": functools.partial(relax, temperature=0.5),
    "straight_through": functools.partial(straight_through, temperature=0.5),
    "discretize": discretize,
    "enumerated": enumerated,
    "weigh_kl": functools.partial(weigh_kl, beta=2.0),
}


def program():
    return pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(K)))


@relax(temperature=0.5)
def decorated():
    return program()


class Owner:
    logits = torch.tensor([0.0, 50.0])

    @discretize()
    def program(self):
        """Say what it is."""
        return pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=self.logits))


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](N * K, D)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(N, K)).to_event(1))
            mean = self.dropout(self.decoder(z.flatten(-2)))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
        return z


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.encoder = PyroModule[nn.Linear](D, N * K)

    def forward(self, x):
        logits = self.encoder(x).unflatten(-1, (N, K))
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def seeded(handled, *args):
    pyro.set_rng_seed(1)
    pyro.clear_param_store()  # otherwise a copy would find the tensors of another one
    return handled(*args)


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize(
    "same", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_copies_do_the_same(handler, same):
    vae, x = CategoricalVAE(D, N, K, hidden=(3,)), torch.ones(B, D)
    for thing, args in ((program, ()), (Model(), (x,)), (vae.guide, (x,)), (handler(program), ()), (vae, (x,))):
        if isinstance(thing, CategoricalVAE) and handler in (discretize, enumerated):
            continue  # its calls are refused while gradients are enabled
        handled = handler(thing)
        assert torch.equal(seeded(same(handled), *args), seeded(handled, *args))


def test_a_decorated_program_is_pickled_by_its_name():
    for handled in (decorated, Owner.program):
        assert pickled(handled) is copy.deepcopy(handled) is handled
    assert pickled(Owner().program)().argmax() == 1


def test_a_decorated_method_is_a_method():
    first, second = Owner(), Owner()
    second.logits = torch.tensor([50.0, 0.0])
    assert first.program().argmax() == 1 and second.program().argmax() == 0
    assert first.program == first.program != second.program
    assert first.program.__doc__ == "Say what it is." and first.program.__name__ == "program"


def test_a_copy_of_a_method_has_a_module_of_its_own():
    vae = CategoricalVAE(D, N, K, hidden=(3,))
    model = copy.deepcopy(relax(vae.model, temperature=0.5))
    [layer, *_] = model.__wrapped__.__self__.parameters()
    assert torch.equal(layer, next(vae.parameters())) and layer is not next(vae.parameters())


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("local", [False, True])
def test_a_handled_module_is_a_module(handler, local):
    elbo = (TraceEnum_ELBO if handler is enumerated else Trace_ELBO)(max_plate_nesting=1)
    with pyro.settings.context(module_local_params=local):
        model, guide = Model(), Guide()
        loss = elbo(handler(model), handler(guide))
        parameters = [*model.parameters(), *guide.parameters()]
        assert list(map(id, loss.parameters())) == list(map(id, parameters))
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        before = [parameter.detach().clone() for parameter in parameters]
        loss(torch.randn(B, D)).backward()
        optimizer.step()
    assert not any(map(torch.equal, before[:2], parameters[:2])), "the decoder's at least"
    loss.eval()
    assert not model.dropout.training and not guide.training and not handler(model).training
    loss.load_state_dict({name: torch.zeros_like(value) for name, value in loss.state_dict().items()})
    assert not any(parameter.any() for parameter in parameters)
    assert next(handler(model).double().parameters()).dtype == model.decoder.weight.dtype == torch.float64


def test_parameters_have_the_names_that_they_had():
    model, guide, x = Model(), Guide(), torch.randn(B, D)
    handled = [relax(program, temperature=0.5) for program in (model, guide)]
    SVI(*handled, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(x)
    names = {"decoder.weight", "decoder.bias", "encoder.weight", "encoder.bias"}
    assert set(pyro.get_param_store().keys()) == names
    samples = Predictive(handled[0], guide=handled[1], num_samples=3)(x)
    assert samples["z"].shape == (3, B, N, K)
    assert set(pyro.get_param_store().keys()) == names
