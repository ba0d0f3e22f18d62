"""Programs and data from public bug reports that no other test covers, and the test names in `docs/reliability.md`."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.nn import PyroModule
from torch import nn

from pyro_gvae import ESTIMATORS, CategoricalVAE, ExactELBO, TracedELBO, TrainConfig, enumerated, estimator, fit
from pyro_gvae.exact import Pair

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


# ------------------------------------------------------------------------------- the page names tests that exist


def named(text):
    """Return (file, function) of each test that a text names, as `tests/FILE.py::FUNCTION`."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def exists(path, function):
    source = ROOT / path
    tree = ast.parse(source.read_text(encoding="utf-8")) if source.exists() else ast.Module([], [])
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)


def test_the_page_names_tests_that_exist():
    tests = named(PAGE.read_text(encoding="utf-8"))
    assert len(tests) > 80
    assert [f"{path}::{function}" for path, function in tests if not exists(path, function)] == []


class Counted:
    """A pytest plugin that counts the cases of each test."""

    def __init__(self):
        self.cases = Counter()

    def pytest_collection_finish(self, session):
        self.cases.update(tuple(item.nodeid.split("[")[0].split("::")) for item in session.items)


@pytest.mark.slow
def test_the_figures_on_the_page_are_those_of_the_tests():
    """A number in brackets is how many cases a test has; the last table says how many rows it has."""
    text = PAGE.read_text(encoding="utf-8")
    told = {(path, name): int(number) for path, name, number in re.findall(r"`(tests/\S+)::(\w+)` \((\d+)\)", text)}
    files = dict.fromkeys(path for path, _ in told)
    counted, paths = Counted(), [str(ROOT / path) for path in files]
    quietly = ["--collect-only", "-qq", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    assert pytest.main([*quietly, *paths], plugins=[counted]) == 0
    assert len(told) > 30 and told == {test: counted.cases[test] for test in told}
    last = text[text.index("| what a person did") :]
    assert f"Beyond that, {len(re.findall(r'^[|] ', last, re.MULTILINE)) - 1} programs" in text
    soak = json.loads((ROOT / "experiments" / "results" / "soak.json").read_text(encoding="utf-8"))
    assert f"{soak['runs']} runs, {soak['kills']} kills, nothing lost" in text and soak["lost"] == 0


def test_a_test_that_does_not_exist_is_found():
    assert not exists("tests/house/test_cases.py", "test_nothing")
    assert not exists("tests/house/test_nowhere.py", "test_nothing")


# ------------------------------------------------------------------------------- errors of a program in `fit`


class WithoutEvent(nn.Module):
    """A program whose observation lacks its `.to_event(1)`."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 6), nn.Linear(6, 12)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z.flatten(-2))), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.encoder(x).unflatten(-1, (2, 3))
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


def plain_vae():
    return CategoricalVAE(12, 2, 3, hidden=(8,))


@pytest.mark.parametrize(
    ("make", "data", "sentence"),
    [
        (plain_vae, torch.ones(16, 12).double(), "Expected data of the networks' dtype torch.float32"),
        (WithoutEvent, torch.ones(16, 12), "Shape mismatch inside plate"),
    ],
)
def test_what_does_not_fit_is_told_as_it_is(make, data, sentence):
    """The error must not look like a loss that is not finite, which a lower learning rate would cure."""
    with pytest.raises(ValueError, match=sentence) as error:
        fit(make(), data, TrainConfig(stages="exact:1", batch_size=8), progress=False)
    assert "finite" not in str(error.value) and "learning rate" not in str(error.value)


# ------------------------------------------------------------------------------- every estimator


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision_networks_are_trained_by_every_estimator(name, dtype):
    vae = CategoricalVAE(12, 2, estimator(name).num_categories or 3, hidden=(16,)).to(dtype)
    model, guide, elbo = estimator(name).bind(vae)
    loss = elbo.loss_and_grads(model, guide, torch.ones(10, 12, dtype=dtype))
    assert 0 < loss < 1000
    gradients = [parameter.grad for parameter in vae.decoder.parameters()]
    assert all(gradient.dtype is dtype and gradient.isfinite().all() and gradient.any() for gradient in gradients)


ALLOWED = torch.tensor([[True, True, False], [True, True, True]])
WEIGHTS = torch.linspace(-1.0, 1.5, 24).sin().reshape(2, 3, 4)
ROWS = torch.linspace(-2.0, 1.0, 20).cos().reshape(5, 4)


def excluding(allowed=ALLOWED):
    """Build a pair with two latents, where the last category of the first is excluded."""

    def model(x):
        with pyro.plate("data", len(x)):
            logits = torch.zeros(2, 3).masked_fill(~allowed, -torch.inf)
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))
            pyro.sample("x", dist.Normal(torch.einsum("...nk,nkd->...d", z, WEIGHTS), 1.0).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(5, 2, 3)).masked_fill(~allowed, -torch.inf)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))

    return Pair(model, guide)


#: Estimators without a gradient of the guide, with K = 2 only, or with soft samples, which cannot exclude categories.
REFUSING = ("exact-evidence", "disarm", "arms", "gumbel-softmax")


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in REFUSING])
def test_excluded_categories_have_no_gradient_under_any_estimator(name):
    model, guide, elbo = estimator(name).bind(excluding())
    loss = elbo.loss_and_grads(model, guide, ROWS)
    gradient = pyro.param("logits").grad
    assert 0 < loss < 200 and gradient.isfinite().all() and gradient[:, ALLOWED].any()
    assert not gradient[:, ~ALLOWED].any()


# ------------------------------------------------------------------------------- Pyro's own examples


def test_autoguides_beside_summed_one_hots():
    """From Pyro's tutorial on mixtures: its `config_enumerate` of the same program is the oracle."""
    x = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    def program(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("assignment", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Normal((z * locs).sum(-1), 1.0), obs=x)

    def losses(model):
        with pyro.get_param_store().scope():
            start = init_to_value(values={"weights": torch.tensor([0.3, 0.7]), "locs": torch.tensor([1.0, 9.0])})
            guide = AutoDelta(poutine.block(model, hide=["assignment"]), init_loc_fn=start)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO(max_plate_nesting=1))
            return [svi.step(x) for _ in range(4)]

    assert losses(enumerated(program)) == pytest.approx(losses(config_enumerate(program)), rel=1e-5)


def test_a_recorded_loss_of_modules_with_parameters_of_their_own():
    """From Pyro's example svi_torch: the loss is called as a module, and a torch optimizer trains its parameters."""

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = PyroModule[nn.Linear](1, 1)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.net(torch.ones(1)), 1.0).to_event(1), obs=x)

    gradients = []
    with pyro.settings.context(module_local_params=True):
        for elbo in (Trace_ELBO(), TracedELBO(Trace_ELBO())):
            torch.manual_seed(0)
            model = Model()
            loss = elbo(model, lambda x: None)
            loss(torch.ones(6, 1)).backward()
            assert list(map(id, loss.parameters())) == list(map(id, model.parameters()))
            gradients.append(model.net.bias.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].any()


def test_subsampled_documents_have_the_gradient_of_all_on_average():
    """Two of three documents are subsampled in a topic model: the mean over all three choices is the exact gradient."""
    words = torch.tensor([[0, 1, 3], [2, 3, 0]])  # (words, documents)
    start = torch.linspace(-1.0, 2.0, 12).double().sin().reshape(2, 3, 2)

    def model(batch):
        topics = pyro.param("topics", start.reshape(3, 4)[:2].softmax(-1))
        proportions = pyro.param("proportions", start[0].clone())
        with pyro.plate("documents", 3, batch) as rows, pyro.plate("words", 2):
            z = pyro.sample("z", dist.OneHotCategorical(logits=proportions[rows]))
            pyro.sample("w", dist.Categorical(logits=z @ topics), obs=words[:, rows])

    def guide(batch):
        logits = pyro.param("q", start.clone())
        with pyro.plate("documents", 3, batch) as rows, pyro.plate("words", 2):
            chosen.append(tuple(sorted(rows.tolist())))
            pyro.sample("z", dist.OneHotCategorical(logits=logits[:, rows]))

    def estimate(batch):
        pyro.clear_param_store()
        loss = elbo.loss_and_grads(model, guide, batch)
        store = pyro.get_param_store()
        gradients = {name: value.unconstrained().grad for name, value in store.items()}
        return {"loss": torch.tensor(loss).double(), **gradients}

    chosen, elbo, found = [], ExactELBO(), {}
    right = estimate(None)
    for _ in range(100):
        one = estimate(2)
        found[chosen[-1]] = one
        if len(found) == 3:
            break
    for name, value in right.items():
        torch.testing.assert_close(torch.stack([one[name] for one in found.values()]).mean(0), value)
        assert value.abs().max() > 0.01
