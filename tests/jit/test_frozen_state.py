"""State that a recording must not freeze: where a program reads it, a change has an effect in the next step."""

import contextvars
import itertools
import multiprocessing
import os
import sys
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

from pyro_gvae import ExactELBO, TracedELBO, estimator, make_step

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
BETA = 1.0
SETTING = contextvars.ContextVar("beta", default=1.0)


class Program(nn.Module):
    """A program whose loss is proportional to its weight."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(2, 3), nn.Linear(3, 2)

    def weight(self):
        return 1.0

    def model(self, x):
        pyro.module("m", self)
        with pyro.plate("d", len(x)), poutine.scale(scale=self.weight()):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(self.dec(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("m", self)
        with pyro.plate("d", len(x)), poutine.scale(scale=self.weight()):
            pyro.sample("z", dist.OneHotCategorical(logits=self.enc(x)))


class AttributeBase(Program):
    beta = 1.0

    def weight(self):
        return self.beta


class Inherited(AttributeBase):
    pass


class HelperBase(Program):
    def weight(self):
        return BETA


class InheritedHelper(HelperBase):
    pass


class Defaults:
    beta = 1.0


class Settings(Defaults):
    pass


class InheritedSetting(Program):
    def weight(self):
        return Settings.beta


class Property(Program):
    @property
    def beta(self):
        return BETA

    def weight(self):
        return self.beta


class Static(Program):
    @staticmethod
    def beta():
        return BETA

    def weight(self):
        return self.beta()


class OfClass(Program):
    @classmethod
    def beta(cls):
        return BETA

    def weight(self):
        return self.beta()


class LocalImport(Program):
    def weight(self):
        import settings_of_a_test

        return settings_of_a_test.beta


class Context(Program):
    def weight(self):
        return SETTING.get()


class SharedMemory(Program):
    def __init__(self):
        super().__init__()
        self.value = multiprocessing.Value("d", 1.0)

    def weight(self):
        return self.value.value


class Environment(Program):
    def weight(self):
        return float(os.environ.get("BETA_OF_A_TEST", "1"))


class Globals(Program):
    def weight(self):
        return globals()["BETA"]


class Counting(Program):
    """Its weight is 1 in 30 calls, and then 3."""

    def __init__(self):
        super().__init__()
        self.count = itertools.count()

    def weight(self):
        return 1.0 if next(self.count) < 30 else 3.0


@pytest.fixture(autouse=True)
def settings(recorded, monkeypatch):
    module = types.ModuleType("settings_of_a_test")
    module.beta = 1.0
    monkeypatch.setitem(sys.modules, "settings_of_a_test", module)
    monkeypatch.setattr(sys.modules[__name__], "BETA", 1.0)
    monkeypatch.setattr(AttributeBase, "beta", 1.0)
    monkeypatch.setattr(Defaults, "beta", 1.0)
    monkeypatch.delenv("BETA_OF_A_TEST", raising=False)
    yield
    SETTING.set(1.0)
    os.environ.pop("BETA_OF_A_TEST", None)


#: What changes the weight from 1 to 3. A method that does so would refer to it, and the guard would see it anyway.
NOTICED = {
    Inherited: lambda program: setattr(AttributeBase, "beta", 3.0),
    InheritedHelper: lambda program: setattr(sys.modules[__name__], "BETA", 3.0),
    InheritedSetting: lambda program: setattr(Defaults, "beta", 3.0),
    Property: lambda program: setattr(sys.modules[__name__], "BETA", 3.0),
    Static: lambda program: setattr(sys.modules[__name__], "BETA", 3.0),
    OfClass: lambda program: setattr(sys.modules[__name__], "BETA", 3.0),
    LocalImport: lambda program: setattr(sys.modules["settings_of_a_test"], "beta", 3.0),
    Context: lambda program: SETTING.set(3.0),
    SharedMemory: lambda program: setattr(program.value, "value", 3.0),
    Environment: lambda program: os.environ.update(BETA_OF_A_TEST="3"),
}
NOT_RECORDED = {
    Globals: (lambda program: setattr(sys.modules[__name__], "BETA", 3.0), r"found globals\(\) in 'weight'"),
    Counting: (lambda program: [next(program.count) for _ in range(30)], "found a count"),
}


def triples(program, change):
    """Compare the loss before and after the change, which makes it three times as large."""
    step = make_step(program, "exact", optimizer=torch.optim.SGD(program.parameters(), lr=0.0))
    before = [step(X) for _ in range(3)][-1]
    change(program)
    torch.testing.assert_close(step(X), 3 * before)


@pytest.mark.parametrize("program", NOTICED)
def test_a_change_is_noticed(program):
    triples(program(), NOTICED[program])


@pytest.mark.parametrize("program", NOT_RECORDED)
def test_a_program_whose_changes_nobody_would_notice_is_not_recorded(program):
    change, said = NOT_RECORDED[program]
    with pytest.warns(UserWarning, match=said):
        triples(program(), change)


HISTORY = []


class Trainer(Program):
    """A base class with a training loop, which the program never calls."""

    def fit(self):
        HISTORY.append(next(self.batches))


class Trained(Trainer):
    def __init__(self):
        super().__init__()
        self.batches = iter([1.0, 2.0])


def test_a_training_loop_in_a_base_class_does_not_matter():
    program = Trained()
    step = make_step(program, "exact", optimizer=torch.optim.SGD(program.parameters(), lr=0.0))
    for _ in range(4):
        step(X)
        HISTORY.append(1.0)
    assert step._gradients._traced.num_recordings == 1


@pytest.mark.parametrize(
    ("handler", "factor"), [(poutine.scale(scale=3.0), 3), (poutine.mask(mask=torch.tensor(False)), 0)]
)
def test_handlers_around_a_step_act_on_it(handler, factor):
    program = Program()
    step = make_step(program, estimator("exact"), optimizer=torch.optim.SGD(program.parameters(), lr=0.0))
    before = [step(X) for _ in range(3)][-1]
    with handler:
        torch.testing.assert_close(step(X), factor * before)
    torch.testing.assert_close(step(X), before)


@pytest.mark.parametrize("first", [True, False])
def test_parameters_in_the_store_are_frozen_and_unfrozen(first):
    def model(x):
        t = pyro.param("t", torch.tensor([0.0, 1.0, 0.5]))
        with pyro.plate("d", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(z @ t, 1.0), obs=x)

    def guide(x):
        q = pyro.param("q", torch.zeros(3))
        with pyro.plate("d", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=q))

    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), TracedELBO(ExactELBO()))
    pyro.param("t", torch.tensor([0.0, 1.0, 0.5])).requires_grad_(first)
    for _ in range(3):
        svi.step(X[:, 0])
    before = pyro.param("t").detach().clone()
    pyro.param("t").requires_grad_(not first)
    for _ in range(3):
        svi.step(X[:, 0])
    assert torch.equal(pyro.param("t"), before) == first
