"""Reading of programs: sites without a plate, constants outside of it, decoders that pair codes with data."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import nn

from pyro_gvae import CategoricalVAE, ExactELBO, enumerated, estimator, exact
from pyro_gvae.exact import Pair

DATA = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0], dtype=torch.float64)
GLOBALS = {"weights": torch.tensor([0.4, 0.6]).double(), "locs": torch.tensor([0.5, 11.0]).double()}


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2).double()))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2).double(), 10.0).to_event(1))
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.OneHotCategorical(weights))
        pyro.sample("x", dist.Normal((z * locs).sum(-1), 1.0), obs=x)


def assignments(x):
    with pyro.plate("data", 5):
        pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(5, 2).double()))


def test_an_observed_site_outside_of_the_plate_is_a_constant():
    """A mixture with given parameters, as after a MAP fit; stock Pyro is the oracle."""
    model = poutine.condition(mixture, data=GLOBALS)
    stock = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), enumerated(assignments), DATA)
    assert ExactELBO().loss(model, assignments, DATA) == pytest.approx(stock, abs=1e-9)
    assert -exact.elbo(Pair(model, assignments), DATA).sum().item() == pytest.approx(stock, abs=1e-9)
    loo = estimator("local-expectation").bind(Pair(model, assignments))  # with one latent it is exact
    assert loo.elbo.loss(loo.model, loo.guide, DATA) == pytest.approx(stock, abs=1e-9)


@pytest.mark.parametrize("slice_size", [1, None])
def test_a_site_outside_of_the_plate_that_mixes_codes_is_refused(slice_size):
    """The shape does not show it: the sum over data removes the axis of the codes."""

    def model(x):
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(2).double()))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        pyro.sample("count", dist.Normal(z[..., 0].sum(0), 1.0), obs=torch.tensor(2.0).double())

    with pytest.raises(ValueError, match=r"found 'count' outside of them: it belongs to no single datum"):
        exact.elbo(Pair(model, assignments), DATA, slice_size=slice_size)


@pytest.mark.parametrize("loop", [pyro.markov, iter])
@pytest.mark.parametrize("loss", ["exact", "reinforce-loo"])
@pytest.mark.parametrize("of_guide", [lambda z: dist.Normal(z, 1.0), dist.Delta], ids=["normal", "delta"])
def test_so_is_one_that_mixes_them_through_a_continuous_latent(loop, loss, of_guide):
    def drawn(law):
        for _ in loop(range(1)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((5,), 0.4).double()))
            c = pyro.sample("c", law(z))
        return c

    def guide(x):
        with pyro.plate("data", 5):
            drawn(of_guide)

    def model(x):
        with pyro.plate("data", 5):
            c = drawn(lambda z: dist.Normal(0.0 * z, 1.0))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)
        pyro.sample("total", dist.Normal(c.sum(-1, keepdim=True), 1.0), obs=torch.tensor([2.0]).double())

    model, guide, elbo = estimator(loss).bind(Pair(model, guide))
    with pytest.raises(ValueError, match=r"depends on .z. .* found .total. outside of them"):
        elbo.loss(model, guide, DATA)


def test_a_program_without_a_plate():
    def model(x):
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 2)).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0].sum(-1), 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([[0.0, 1.0], [2.0, 0.0]])).to_event(1))

    x, pair = torch.tensor(0.7), Pair(model, guide)
    stock = TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated(model), enumerated(guide), x)
    assert ExactELBO().loss(model, guide, x) == pytest.approx(stock, abs=1e-5)
    found = exact.elbo(pair, x)
    assert found.shape == () and -found.item() == pytest.approx(stock, abs=1e-5)
    assert exact.posterior(pair, x).marginals.shape == exact.mean_field(pair, x).logits.shape == (2, 2)
    for name in ("reinforce-loo", "local-expectation", "disarm-iw", "rebar"):
        bound = estimator(name).bind(pair)
        assert bound.elbo.loss(bound.model, bound.guide, x) < 10  # one draw; the bound is below -log p(x) by KLs


FLAT = [nn.Flatten(), nn.Linear(6, 12)]


@pytest.mark.parametrize(("name", "sizes"), [("local-expectation", (1, 6)), ("disarm-iw", (2, 3)), ("rebar", (2, 3))])
@pytest.mark.parametrize("batch_size", [8, 9])  # 9 is the number of codes
def test_a_decoder_that_pairs_codes_with_data_gets_one_sample_at_a_time(name, sizes, batch_size):
    """The noise is the same; for a single digit, local expectation is exact whatever it draws."""
    vae, x = CategoricalVAE(12, *sizes, hidden=(8,), decoder=nn.Sequential(*FLAT)), torch.rand(batch_size, 12).round()
    model, guide, elbo = estimator(name).bind(vae)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses.append(elbo.loss(model, guide, x))
        assert [("one joint code after another" in str(one.message)) for one in caught] == [True] * (len(losses) == 1)
        vae.decoder[0], elbo = nn.Flatten(-2), estimator(name).elbo()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("function", [exact.elbo, exact.log_evidence])
def test_a_decoder_that_pairs_codes_with_data_gets_one_code_at_a_time(function, validation):
    """With 9 data and 9 codes the sizes agree and no operation fails, so programs are probed with other sizes."""
    vae, x = CategoricalVAE(12, 2, 3, hidden=(8,), decoder=nn.Sequential(*FLAT)), torch.rand(9, 12).round()
    with pyro.validation_enabled(validation), pytest.warns(UserWarning, match="one joint code after another"):
        found = function(vae, x)
    vae.decoder[0] = nn.Flatten(-2)
    torch.testing.assert_close(found, function(vae, x))


def test_an_error_of_the_program_itself_stays_as_it_is():
    class Broken(nn.Module):
        def forward(self, z):
            raise RuntimeError("my own mistake")

    vae = CategoricalVAE(12, 2, 3, hidden=(8,), decoder=Broken())
    with pytest.raises(RuntimeError, match=r"^my own mistake$"):
        exact.elbo(vae, torch.ones(9, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["exact", "exact-evidence", "reinforce-loo", "local-expectation", "rebar", "disarm-iw"]
)
def test_half_precision_networks_get_codes_of_their_own_type(name, dtype):
    """Scores are summed in float32, so the loss is that of the rounded weights, up to rounding in the networks."""
    vae, x = CategoricalVAE(12, 2, 3, hidden=(16,)), (torch.rand(10, 12) > 0.5).float()
    right = estimator(name).bind(vae.to(dtype).float())
    torch.manual_seed(3)
    wanted = right.elbo.loss(right.model, right.guide, x)
    half = estimator(name).bind(vae.to(dtype))
    torch.manual_seed(3)
    assert half.elbo.loss(half.model, half.guide, x.to(dtype)) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("computed", ["site", "deterministic", "tensor"])
def test_stock_losses_refuse_one_that_mixes_them_through_a_computed_value(computed):
    value_of = {
        "site": lambda z: pyro.sample("c", dist.Delta(1.0 * z)),
        "deterministic": lambda z: pyro.deterministic("c", 1.0 * z),
        "tensor": lambda z: 1.0 * z,
    }[computed]

    def model():
        with pyro.plate("data", 2):
            c = value_of(pyro.sample("z", dist.Categorical(logits=torch.tensor([0.1, 0.3]))))
        pyro.sample("y", dist.Normal(c.sum() ** 2, 1.0), obs=torch.tensor(0.5))  # its shape does not show the codes

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=torch.zeros(2, 2)))

    with pytest.raises(ValueError, match=r"depends on the enumerated site 'z' .* found 'y' outside"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), enumerated(guide))
