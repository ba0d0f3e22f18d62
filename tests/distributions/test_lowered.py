import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_gvae.distributions.bernoulli import Bernoulli
from pyro_gvae.distributions.lowered import log_prob
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.runtime.compat.torch import TorchDispatchMode, tensors_in

S, B, D, K = 5, 7, 6, 3
KEPT = torch.arange(B * D).reshape(B, D) % 4 > 0


class Family(NamedTuple):
    """A stock distribution of elements from free parameters, and data in its support."""

    make: Callable[[Tensor, Tensor], Any]  # of (.., D) or (.., D, K), and of (D,)
    data: Callable[..., Tensor]
    categories: tuple[int, ...] = ()


def binary(*shape: int) -> Tensor:
    return torch.randint(2, shape).double()


def grey(*shape: int) -> Tensor:
    return torch.rand(shape).double()


def counts(*shape: int) -> Tensor:
    return torch.randint(5, shape).double()


def levels(*shape: int) -> Tensor:
    return torch.randint(K, shape)


def one_hots(*shape: int) -> Tensor:
    return torch.nn.functional.one_hot(levels(*shape), K).double()


FAMILIES = {
    "bernoulli, logits": Family(lambda eta, _: dist.Bernoulli(logits=eta), binary),
    "bernoulli, probs": Family(lambda eta, _: dist.Bernoulli(eta.sigmoid()), binary),
    "bernoulli, grey": Family(lambda eta, _: dist.Bernoulli(logits=eta, validate_args=False), grey),
    "continuous bernoulli, logits": Family(lambda eta, _: dist.ContinuousBernoulli(logits=eta), grey),
    "continuous bernoulli, probs": Family(lambda eta, _: dist.ContinuousBernoulli(eta.sigmoid()), grey),
    "binomial, logits": Family(lambda eta, _: dist.Binomial(9, logits=eta), counts),
    "binomial, probs": Family(lambda eta, _: dist.Binomial(9, eta.sigmoid()), counts),
    "binomial, counts of each datum": Family(lambda eta, _: dist.Binomial(4 + binary(B, D), logits=eta), counts),
    "poisson": Family(lambda eta, _: dist.Poisson(eta.exp()), counts),
    "exponential": Family(lambda eta, _: dist.Exponential(eta.exp()), grey),
    "normal, a number": Family(lambda eta, _: dist.Normal(eta, 0.7), grey),
    "normal, one scale": Family(lambda eta, free: dist.Normal(eta, free.exp()[0]), grey),
    "normal, a scale of each element": Family(lambda eta, free: dist.Normal(eta, free.exp()), grey),
    "normal, a scale of each code": Family(lambda eta, free: dist.Normal(eta, (0.3 * eta + free).exp()), grey),
    "categorical, logits": Family(lambda eta, _: dist.Categorical(logits=eta), levels, (K,)),
    "categorical, probs": Family(lambda eta, _: dist.Categorical(eta.softmax(-1)), levels, (K,)),
    "one-hot, logits": Family(lambda eta, _: dist.OneHotCategorical(logits=eta), one_hots, (K,)),
    "one-hot, probs": Family(lambda eta, _: dist.OneHotCategorical(eta.softmax(-1)), one_hots, (K,)),
    "multinomial": Family(
        lambda eta, _: dist.Multinomial(4, logits=eta, validate_args=False), lambda *shape: counts(*shape, K), (K,)
    ),
}

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda fn: fn.to_event(1),
    "expanded by a plate": lambda fn: fn.to_event(1).expand([S, B]),
    "masked data": lambda fn: fn.to_event(1).mask(KEPT[:, 0]),
    "masked elements": lambda fn: fn.mask(KEPT).to_event(1).expand([S, B]),
    "masked twice": lambda fn: fn.mask(KEPT).mask(KEPT[0]).to_event(1).mask(KEPT[:, 1]).mask(mask=True),
}


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        storages = [(tensor.untyped_storage().nbytes() // tensor.element_size()) for tensor in tensors_in(out)]
        self.numel = max([self.numel, *storages])
        return out


def scored(score: Callable[..., Tensor], fn: Any, x: Tensor, *parameters: Tensor) -> tuple[list[Tensor], int]:
    """Scores and gradients, and the largest tensor that they took."""
    with LargestTensor() as largest:
        scores = score(fn, x)
        weights = torch.linspace(-1.0, 2.0, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
        gradients = torch.autograd.grad(
            (scores * weights).sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    return [scores, *gradients], largest.numel


def stock(fn: Any, x: Tensor) -> Tensor:
    return fn.log_prob(x)


def parameters(family: Family, *batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    eta = torch.randn(*batch, *family.categories, dtype=torch.float64).to(dtype)
    return eta.requires_grad_(), torch.linspace(-1.0, 0.5, D, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_product_equals_the_stock_score_and_its_gradients(family: Family, wrapper: Callable[[Any], Any]) -> None:
    free = parameters(family, S, 1, D)
    fn, x = wrapper(family.make(*free)), family.data(B, D)
    expected, stock_size = scored(stock, fn, x, *free)
    actual, size = scored(log_prob, fn, x, *free)
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert size < S * B * D <= stock_size  # it is a product, and its derivative is one


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_float32_is_near_float64(family: Family) -> None:
    found = []
    for dtype, score in ((torch.float64, stock), (torch.float32, log_prob)):
        free = parameters(family, S, 1, D, dtype=dtype)
        fn, x = family.make(*free).to_event(1), family.data(B, D)
        found.append(scored(score, fn, x.to(dtype) if x.is_floating_point() else x, *free)[0])
    expected, actual = found
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "low"),
    [
        (lambda eta: dist.Normal(eta, 0.5), 1000.0),
        (lambda eta: dist.Normal(eta, 0.5 + 0.001 * (eta - 1000).square()), 1000.0),
        (lambda eta: dist.Poisson(eta), 1000.0),
        (lambda eta: dist.Binomial(4000, eta / 4000), 1000.0),
    ],
    ids=["normal", "normal, a scale of each code", "poisson", "binomial"],
)
def test_what_is_multiplied_is_centred(make: Callable[[Tensor], Any], low: float) -> None:
    torch.manual_seed(0)
    eta = (low + torch.rand(S, 1, 64)).double()
    x = low + torch.randint(3, (B, 64)).double()
    exact = make(eta).to_event(1).log_prob(x)
    fn = make(eta.float()).to_event(1)
    ours, stocks = (
        (scores.double() - exact).abs().max() for scores in (log_prob(fn, x.float()), fn.log_prob(x.float()))
    )
    assert ours < 2 * stocks + 1e-4  # products of numbers of 1,000 would be off by 10 nats


SHAPES = [
    ((S, 1, 1), (2, B), True),  # two plates
    ((S, 2, 1), (2, B), True),  # a product for each of two
    ((B,), (S, 1), True),  # codes in the data
    ((S, B), (B,), False),  # each datum has its own parameters
    ((B,), (S, B), False),
    ((1, 1), (B,), False),
    ((S, 1), (1,), False),
]


@pytest.mark.parametrize(("own", "given", "is_product"), SHAPES)
@pytest.mark.parametrize("name", ["bernoulli, logits", "normal, a scale of each code", "one-hot, probs"])
def test_shapes_that_meet_are_left_alone(name: str, own: Any, given: Any, is_product: bool) -> None:
    family = FAMILIES[name]
    eta, free = parameters(family, *own, 2, 3)
    fn, x = family.make(eta, free[:3]).to_event(2), family.data(*given, 2, 3)
    expected, _ = scored(stock, fn, x, eta)
    actual, size = scored(log_prob, fn, x, eta)
    if is_product:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert size < expected[0].numel() * D
    else:
        assert all(map(torch.equal, actual, expected))


def test_a_subclass_scores_itself() -> None:
    class Shifted(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) + 1

    fn, x = Shifted(torch.zeros(S, 1, D), 1.0).to_event(1), torch.zeros(B, D)
    assert log_prob(fn, x).equal(fn.log_prob(x))


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (dist.Bernoulli(logits=torch.zeros(S, 1, D)), torch.full((B, D), 0.5)),
        (dist.Poisson(torch.ones(S, 1, D)), torch.full((B, D), -1.0)),
        (dist.Binomial(2, torch.full((S, 1, D), 0.5)), torch.full((B, D), 3.0)),
        (dist.Normal(torch.zeros(S, 1, D), 1.0), torch.full((B, D), math.nan)),
        (dist.Categorical(torch.ones(S, 1, D, K)), torch.full((B, D), K)),
        (dist.OneHotCategorical(torch.ones(S, 1, D, K)), torch.zeros(B, D, K)),
        (dist.Bernoulli(logits=torch.zeros(S, 1, D)), torch.zeros(B, D - 1)),
    ],
)
def test_stock_pyro_refuses_what_it_refused(fn: Any, x: Tensor) -> None:
    with pytest.raises(ValueError) as expected:
        fn.to_event(1).log_prob(x)
    with pytest.raises(ValueError) as actual:
        log_prob(fn.to_event(1), x)
    assert str(actual.value) == str(expected.value)


def test_impossible_data_do_not_spoil_others() -> None:
    rate = torch.tensor([[[0.0, 1.0]], [[2.0, 3.0]]], requires_grad=True)
    logits = torch.tensor([[[0.0, -math.inf]], [[1.0, 2.0]]])
    impossible = torch.tensor([[True, False], [False, False]])
    poisson = log_prob(dist.Poisson(rate).to_event(1), torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
    one_hot = log_prob(dist.OneHotCategorical(logits=logits), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    for scores in (poisson, one_hot):
        assert (scores < -1e38).equal(impossible) and not scores.isnan().any()
    poisson[~impossible].sum().backward()
    assert rate.grad is not None and rate.grad.isfinite().all()


def test_missing_elements_may_be_no_number() -> None:
    loc = torch.zeros(S, 1, D).requires_grad_()
    x = torch.where(KEPT, 1.0, math.nan)
    fn = dist.Normal(loc, 1.0, validate_args=False).mask(KEPT).to_event(1)
    torch.testing.assert_close(log_prob(fn, x), fn.log_prob(x))
    assert torch.autograd.grad(log_prob(fn, x).sum(), loc)[0].isfinite().all()


# In a program


def losses(likelihood: Callable[[Tensor], Any], elbo: Any) -> tuple[list[Tensor], int]:
    """The loss and its gradient of a program that is scaled, masked and in a plate."""
    pyro.clear_param_store()
    x = (torch.arange(B * 40).reshape(B, 40) % 3 == 0).float()

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.linspace(-1, 1, 4 * 40).sin().reshape(4, 40))
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 2)).to_event(1))
            pyro.sample("x", likelihood(z.flatten(-2) @ weight), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.linspace(-1, 1, 4).reshape(2, 2))
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=2.0):
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))

    with LargestTensor() as largest:
        loss = torch.as_tensor(elbo.loss_and_grads(model, guide, x))
    gradients = [value.unconstrained().grad for value in pyro.get_param_store().values()]
    return [loss, *gradients], largest.numel


def test_a_program_that_observes_a_stock_family_takes_the_product() -> None:
    expected, _ = losses(lambda natural: Bernoulli(natural), ExactELBO())
    actual, size = losses(lambda natural: dist.Bernoulli(logits=natural).to_event(1), ExactELBO())
    torch.testing.assert_close(actual, expected)
    assert size < 4 * B * 40


def test_the_product_can_be_recorded() -> None:
    stock_family = lambda natural: dist.Bernoulli(logits=natural).to_event(1)  # noqa: E731
    expected, _ = losses(stock_family, ExactELBO())
    traced = TracedELBO(ExactELBO())
    losses(stock_family, traced)
    actual, _ = losses(stock_family, traced)
    torch.testing.assert_close(actual, expected)
