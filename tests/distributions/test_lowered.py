import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.nn import functional as F

from pyro_gvae.distributions.bernoulli import Bernoulli, ContinuousBernoulli
from pyro_gvae.distributions.lowered import log_prob
from pyro_gvae.distributions.observations import CategoricalPixels, Gaussian
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.runtime.compat.torch import Watching, tensors_in

S, B, D, K = 5, 7, 6, 3
KEPT = torch.arange(B * D).reshape(B, D) % 4 > 0


class Family(NamedTuple):
    """A stock distribution of the elements, as a function of free parameters, and data in its support."""

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


class LargestTensor(Watching):
    """Record the number of elements of the largest tensor that an operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        floats = [tensor for tensor in tensors_in(out) if tensor.is_floating_point()]  # no states of random numbers
        storages = [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in floats]
        self.numel = max([self.numel, *storages])
        return out


def scored(score: Callable[..., Tensor], fn: Any, x: Tensor, *parameters: Tensor) -> tuple[list[Tensor], int]:
    """Return scores and gradients, and the size of the largest tensor that they needed."""
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
    assert size < S * B * D <= stock_size  # forward and backward are products


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


class Extreme(NamedTuple):
    """A distribution with float32 parameters, data, and the terms of its textbook formula in float64."""

    fn: Any
    x: Tensor
    terms: tuple[Tensor, ...]  # each of a shape that expands to (S, B, W), of W elements or categories of elements


W = 64


def spread(low: float, high: float, *shape: int) -> Tensor:
    return (low + (high - low) * torch.rand(*shape)).float()


def of_codes(x: Tensor) -> Tensor:
    """Return parameters of codes, each of which explains a datum of its own well."""
    return x[torch.arange(S) % len(x)].unsqueeze(1)


def normals(x: Tensor, scale: Tensor, *, ours: bool = False) -> Extreme:
    loc = of_codes(x) + scale * torch.randn(S, 1, W)
    fn = Gaussian(loc, scale) if ours else dist.Normal(loc, scale).to_event(1)
    loc, scale = loc.double(), scale.double()
    return Extreme(
        fn, x, (-0.5 * ((x - loc) / scale).square(), -scale.log(), torch.tensor(-0.5 * math.log(2 * math.pi)))
    )


def bernoullis(x: Tensor, logits: Tensor, *, ours: bool = False) -> Extreme:
    fn = Bernoulli(logits) if ours else dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
    return Extreme(fn, x, (x * logits.double(), -F.softplus(logits.double())))


def probabilities(x: Tensor, probs: Tensor) -> Extreme:
    logits = torch.logit(probs.double())
    return Extreme(dist.Bernoulli(probs).to_event(1), x, (x * logits, -F.softplus(logits)))


def continuous_bernoullis(x: Tensor, logits: Tensor, *, ours: bool = False) -> Extreme:
    fn = ContinuousBernoulli(logits) if ours else dist.ContinuousBernoulli(logits=logits).to_event(1)
    logits = logits.double()
    remainder = (-torch.expm1(-logits.abs()) / logits.abs()).log()
    return Extreme(fn, x, (x * logits, -logits.relu(), -remainder))


def binomials(count: int, probs: Tensor) -> Extreme:
    probs = probs.expand(S, 1, W)
    x = torch.distributions.Binomial(count, probs[torch.arange(B) % S, 0]).sample()
    logits, n, x64 = torch.logit(probs.double()), torch.tensor(float(count), dtype=torch.float64), x.double()
    choose = (torch.lgamma(n + 1), -torch.lgamma(x64 + 1), -torch.lgamma(n - x64 + 1))
    return Extreme(dist.Binomial(count, probs).to_event(1), x, (x64 * logits, -n * F.softplus(logits), *choose))


def poissons(rate: Tensor) -> Extreme:
    x, rate = torch.poisson(rate), of_codes(rate)
    fn, rate64, x64 = dist.Poisson(rate).to_event(1), rate.double(), x.double()
    return Extreme(fn, x, (x64 * rate64.log(), -rate64, -torch.lgamma(x64 + 1)))


def exponentials(mean: Tensor) -> Extreme:
    x, rate = mean * torch.empty_like(mean).exponential_(), of_codes(1 / mean)
    return Extreme(dist.Exponential(rate).to_event(1), x, (rate.double().log(), -rate.double() * x))


def categoricals(logits: Tensor, make: Callable[[Tensor], Any], *, as_one_hot: bool = False) -> Extreme:
    """Cover one-hots, levels and pixels: each datum has the most probable levels of one code."""
    x = logits[torch.arange(B) % S, 0].argmax(-1)
    one_hot = F.one_hot(x, K)
    logits64 = logits.double()
    normalizer = F.pad(logits64.logsumexp(-1, keepdim=True), (0, K - 1))
    terms = ((one_hot * logits64).flatten(-2), -normalizer.flatten(-2))
    return Extreme(make(logits), one_hot.float() if as_one_hot else x, terms)


def multinomials(count: int, logits: Tensor) -> Extreme:
    x = torch.distributions.Multinomial(count, logits=logits[torch.arange(B) % S, 0]).sample()
    fn = dist.Multinomial(count, logits=logits, validate_args=False).to_event(1)
    log_probs, x64 = logits.double().log_softmax(-1), x.double()
    choose = F.pad(torch.lgamma(x64.sum(-1, keepdim=True) + 1), (0, K - 1))
    return Extreme(fn, x, ((x64 * log_probs).flatten(-2), choose.flatten(-2), -torch.lgamma(x64 + 1).flatten(-2)))


def bits(*shape: int) -> Tensor:
    return torch.randint(2, shape).float()


def signed(size: float, x: Tensor) -> Tensor:
    """Return log-odds of this size; their signs for each code are those of its datum."""
    return size * (2 * of_codes(x) - 1) * spread(0.5, 1.5, S, 1, W)


def far_from_each_other() -> Tensor:
    return 1000 * (torch.arange(B) % 2).unsqueeze(-1) + torch.randn(B, W)


ONE = torch.tensor(1.0)
EXTREMES: dict[str, Callable[[], Extreme]] = {
    "normal, far": lambda: normals(1000 + torch.randn(B, W), ONE),
    "normal, very far": lambda: normals(1e5 + torch.randn(B, W), spread(0.5, 1.5, W)),
    "normal, far from each other": lambda: normals(far_from_each_other(), ONE),
    "normal, narrow": lambda: normals(spread(0, 1, B, W), torch.tensor(0.001)),
    "normal, narrow, each code": lambda: normals(spread(0, 1, B, W), spread(0.001, 0.002, S, 1, W)),
    "gaussian, far": lambda: normals(1000 + torch.randn(B, W), ONE, ours=True),
    "gaussian, far from each other": lambda: normals(far_from_each_other(), ONE, ours=True),
    "gaussian, narrow": lambda: normals(spread(0, 1, B, W), torch.tensor(0.001), ours=True),
    **{
        f"{name}, log-odds of {size:g}": lambda make=make, size=size, ours=ours: make(
            x := bits(B, W), signed(size, x), ours=ours
        )
        for name, make, ours in (
            ("bernoulli", bernoullis, False),
            ("our bernoulli", bernoullis, True),
            ("our continuous bernoulli", continuous_bernoullis, True),
            ("continuous bernoulli", continuous_bernoullis, False),
        )
        for size in (0.01, 30.0, 1e4)
    },
    "bernoulli, improbable": lambda: probabilities(torch.zeros(B, W), spread(1e-6, 1e-5, S, 1, W)),
    "bernoulli, nearly certain": lambda: probabilities(torch.ones(B, W), 1 - spread(1e-6, 1e-4, S, 1, W)),
    "binomial, few of many": lambda: binomials(1_000_000, spread(1e-6, 1e-5, S, 1, W)),
    "binomial, half of many": lambda: binomials(4_000, spread(0.4, 0.6, S, 1, W)),
    "poisson, rare": lambda: poissons(spread(1e-4, 1e-3, B, W)),
    "poisson, many": lambda: poissons(spread(900, 1100, B, W)),
    "poisson, of all sizes": lambda: poissons(10 ** spread(-2, 6, B, W)),
    "exponential, of all sizes": lambda: exponentials(10 ** spread(-6, 6, B, W)),
    **{
        f"{name}, logits of {size:g}": lambda make=make, size=size, is_one_hot=is_one_hot: categoricals(
            size * torch.randn(S, 1, W, K), make, as_one_hot=is_one_hot
        )
        for name, make, is_one_hot in (
            ("categorical", lambda logits: dist.Categorical(logits=logits).to_event(1), False),
            ("one-hot", lambda logits: dist.OneHotCategorical(logits=logits).to_event(1), True),
            ("our categorical", lambda logits: CategoricalPixels(logits.flatten(-2), K), False),
        )
        for size in (1.0, 1e4)
    },
    "our categorical, far": lambda: categoricals(
        1000 + torch.randn(S, 1, W, K), lambda logits: CategoricalPixels(logits.flatten(-2), K)
    ),
    "multinomial": lambda: multinomials(1000, torch.randn(S, 1, W, K)),
}
#: Allowed error of a score, in float32 rounding steps of the summed sizes of its terms plus one nat per element.
MOST_STEPS = 4


def steps_off(scores: Tensor, case: Extreme) -> float:
    """Return the greatest error of float32 scores (S, B), in rounding steps of the sizes of their terms."""
    exact, sizes = (
        sum(part.expand(S, B, part.shape[-1] if part.dim() else W).sum(-1) for part in parts)
        for parts in (case.terms, [term.abs() for term in case.terms])
    )
    return ((scores.double() - exact).abs() / (torch.finfo(torch.float32).eps * (sizes + W))).max().item()


@pytest.mark.parametrize("case", EXTREMES.values(), ids=EXTREMES.keys())
def test_a_score_is_rounded_no_more_than_the_terms_of_its_formula(case: Callable[[], Extreme]) -> None:
    """The error is at most that of rounding each term to float32 and adding up, however large the factors are."""
    torch.manual_seed(0)
    found = case()
    scores = log_prob(found.fn, found.x)
    assert scores.shape == (S, B) and scores.dtype == torch.float32
    assert steps_off(scores, found) < MOST_STEPS


@pytest.mark.parametrize("name", ["normal, far", "normal, far from each other", "normal, narrow"])
def test_the_bound_notices_what_cancels(name: str) -> None:
    """The negative control: the naive form of the same product."""
    torch.manual_seed(0)
    found = EXTREMES[name]()
    loc, scale = found.fn.base_dist.loc.squeeze(1), found.fn.base_dist.scale.squeeze()[0, 0]
    constant = W * (scale.log() + 0.5 * math.log(2 * math.pi))
    squares = [0.5 * (part / scale).square().sum(-1) for part in (loc, found.x)]
    scores = (loc / scale.square()) @ found.x.mT - squares[0].unsqueeze(-1) - squares[1] - constant
    assert steps_off(scores, found) > 5 * MOST_STEPS


SHAPES = [
    ((S, 1, 1), (2, B), True),  # two plates
    ((S, 2, 1), (2, B), True),  # two products
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
    """Return the loss and its gradient for a program that is scaled, masked and in a plate."""
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
