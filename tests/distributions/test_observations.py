import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import OneHotCategorical
from pyro.infer import JitTrace_ELBO, JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor
from torch import distributions as td
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_gvae.distributions.bernoulli import Bernoulli, ContinuousBernoulli
from pyro_gvae.distributions.exponential_family import ExponentialFamily
from pyro_gvae.distributions.observations import CategoricalPixels, Gaussian, Multinomial
from pyro_gvae.handlers import discretize, enumerated

D = 6
LEVELS = 3
SCALES = torch.linspace(0.2, 1.5, D, dtype=torch.float64)


@dataclass(frozen=True)
class Family:
    """One row: the family, the torch distribution that it replaces, and data in its support."""

    make: Callable[..., ExponentialFamily]
    reference: Callable[[Tensor], td.Distribution]
    data: Callable[[Any], Tensor]
    natural_dim: int = D

    def natural(self, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return 2 * torch.randn(*batch, self.natural_dim, dtype=dtype)

    def reference_log_prob(self, natural: Tensor, x: Tensor) -> Tensor:
        return self.reference(natural).log_prob(x).sum(-1)


def binary(shape: Any) -> Tensor:
    return torch.randint(2, shape).double()


def grey(shape: Any) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


class CrossEntropy(td.Bernoulli):
    """The reference for Bernoulli with grey targets, which torch's own refuses."""

    def log_prob(self, value: Tensor) -> Tensor:
        logits, value = torch.broadcast_tensors(self.logits, value)
        return -F.binary_cross_entropy_with_logits(logits, value, reduction="none")


class AnyLength(td.Multinomial):
    """The reference for Multinomial with data of several lengths; it scores a datum, not a pixel."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(1, logits=logits)

    def log_prob(self, value: Tensor) -> Tensor:
        logits, value = torch.broadcast_tensors(self.logits, value)
        rows = zip(logits.reshape(-1, D), value.reshape(-1, D), strict=True)
        scores = [td.Multinomial(int(x.sum()), logits=eta).log_prob(x) for eta, x in rows]
        return torch.stack(scores).reshape(*value.shape[:-1], 1)


FAMILIES = {
    "bernoulli": Family(Bernoulli, lambda eta: td.Bernoulli(logits=eta), binary),
    "bernoulli-grey": Family(Bernoulli, lambda eta: CrossEntropy(logits=eta), grey),
    "continuous-bernoulli": Family(ContinuousBernoulli, lambda eta: td.ContinuousBernoulli(logits=eta), grey),
    "gaussian": Family(
        lambda mu, **options: Gaussian(mu, 0.7, **options),
        lambda mu: td.Normal(mu, 0.7),
        lambda shape: torch.randn(shape, dtype=torch.float64),
    ),
    "gaussian-scales": Family(
        lambda mu, **options: Gaussian(mu, SCALES, **options),
        lambda mu: td.Normal(mu, SCALES),
        lambda shape: torch.randn(shape, dtype=torch.float64),
    ),
    "categorical": Family(
        lambda logits, **options: CategoricalPixels(logits, LEVELS, **options),
        lambda logits: td.Categorical(logits=logits.unflatten(-1, (D, LEVELS))),
        lambda shape: torch.randint(LEVELS, shape),
        natural_dim=D * LEVELS,
    ),
    "multinomial": Family(
        Multinomial, lambda logits: AnyLength(logits), lambda shape: torch.randint(4, shape).double()
    ),
}

# Batch shapes of the natural parameters and of the data.
SHAPES = [
    ((), ()),
    ((), (4,)),
    ((3,), ()),
    ((4,), (4,)),
    ((1,), (4,)),
    ((3, 1), (4,)),  # every code under every datum
    ((3, 1), (1,)),
    ((3, 4), (4,)),
    ((4,), (3, 4)),
    ((2, 1, 3), (4, 1)),
    ((2, 3), (4, 1, 3)),  # a product in two dimensions, batched over the third
]


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(0)
    return request.param


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest storage that any operation returns, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


# Against the reference distribution


@pytest.mark.parametrize(("own", "given"), SHAPES)
def test_log_prob_and_its_gradients_equal_the_reference(family: Family, own: Any, given: Any) -> None:
    natural, x = family.natural(*own).requires_grad_(), family.data((*given, D))
    actual = family.make(natural).log_prob(x)
    expected = family.reference_log_prob(natural, x)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    grads = [torch.autograd.grad(y, natural, weights)[0] for y in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("own", [(), (7,), (2, 7)])
def test_outer_log_prob_equals_the_reference_in_a_loop(family: Family, own: Any) -> None:
    natural, x = family.natural(*own), family.data((5, D))
    expected = torch.stack([family.reference_log_prob(natural, datum) for datum in x], -1)  # (..., B)
    torch.testing.assert_close(family.make(natural).outer_log_prob(x), expected, rtol=1e-10, atol=1e-10)


def test_the_parts_sum_a_weighted_table_without_forming_it(family: Family) -> None:
    observation, x = family.make(family.natural(7)), family.data((5, D))
    weights = torch.rand(7, 5, dtype=torch.float64)  # (S, B)
    linear = (observation.coefficients * (weights @ observation.sufficient_statistics(x))).sum()
    constant = observation.log_base_measure(x) @ weights.sum(0) - observation.log_normalizer() @ weights.sum(1)
    expected = (weights * observation.outer_log_prob(x)).sum()
    torch.testing.assert_close(linear + constant, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("product", [False, True], ids=["paired", "product"])
def test_gradcheck(family: Family, product: bool) -> None:
    natural = family.natural(2, 1) if product else family.natural(3)
    x = family.data((3, D))
    assert torch.autograd.gradcheck(
        lambda eta: family.make(eta).log_prob(x), natural.requires_grad_(), check_undefined_grad=False
    )
    assert torch.autograd.gradgradcheck(lambda eta: family.make(eta).log_prob(x), natural)


@pytest.mark.parametrize("product", [False, True], ids=["paired", "product"])
@pytest.mark.parametrize("name", ["bernoulli-grey", "continuous-bernoulli", "gaussian"])
def test_gradients_flow_to_grey_data(name: str, product: bool) -> None:
    torch.manual_seed(0)
    family = FAMILIES[name]
    natural, x = family.natural(*((2, 1) if product else (3,))), family.data((3, D)).requires_grad_()
    actual, expected = family.make(natural).log_prob(x), family.reference_log_prob(natural, x)
    torch.testing.assert_close(*(torch.autograd.grad(score.sum(), x)[0] for score in (actual, expected)))


@pytest.mark.parametrize("own", [(4,), (3, 1)], ids=["paired", "product"])
@pytest.mark.parametrize("scale", [torch.tensor(0.7), torch.tensor([0.7]), SCALES], ids=["()", "(1,)", "(D,)"])
def test_gradients_flow_to_a_learned_scale(own: Any, scale: Tensor) -> None:
    torch.manual_seed(0)
    scale = scale.double().clone().requires_grad_()
    mean, x = torch.randn(*own, D).double(), torch.rand(4, D).double()
    (actual,) = torch.autograd.grad(Gaussian(mean, scale).log_prob(x).sum(), scale)
    (expected,) = torch.autograd.grad(td.Normal(mean, scale).log_prob(x).sum(), scale)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_continuous_bernoulli_integrates_to_one_and_grey_bernoulli_does_not() -> None:
    x = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).unsqueeze(-1)  # midpoints, (B, 1)
    natural = torch.tensor([[-7.0], [-0.3], [0.0], [2.0]], dtype=torch.float64)
    integral = ContinuousBernoulli(natural).outer_log_prob(x).exp().mean(-1)
    torch.testing.assert_close(integral, torch.ones_like(integral), rtol=1e-5, atol=0)
    assert (Bernoulli(natural).outer_log_prob(x).exp().mean(-1) < 0.9).all()


# Laziness


def test_expand_keeps_the_parameters_and_only_changes_the_batch_shape(family: Family) -> None:
    observation = family.make(family.natural(3, 1))
    expanded = observation.expand((2, 3, 4))
    assert expanded.natural is observation.natural
    assert (observation.batch_shape, expanded.batch_shape) == ((3, 1), (2, 3, 4))
    assert expanded.event_shape == (D,)
    assert expanded.log_normalizer().shape == (3, 1)
    assert expanded.mean.shape == (2, 3, 4, D)
    assert expanded.sample((5,)).shape == (5, 2, 3, 4, D)
    for given in [(), (4,), (3, 4), (2, 1, 1), (6, 1, 1, 4)]:
        x = family.data((*given, D))
        actual = expanded.log_prob(x)
        assert actual.shape == torch.broadcast_shapes((2, 3, 4), given)
        torch.testing.assert_close(actual, observation.log_prob(x).expand(actual.shape))


@pytest.mark.parametrize("batch_shape", [(3, 4), (2, 5), (4,)])
def test_expand_to_an_incompatible_shape(batch_shape: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected a batch shape that .*\(2, 4\).*, but found"):
        Bernoulli(torch.zeros(2, 4, D)).expand(batch_shape)


@pytest.mark.parametrize("form", ["log_prob", "expanded", "outer_log_prob", "reference"])
def test_nothing_of_codes_times_data_times_pixels_is_allocated(family: Family, form: str) -> None:
    codes, batch = 11, 10
    natural = family.natural(codes, 1).requires_grad_()
    x = family.data((batch, D))
    forms: dict[str, Callable[[], Tensor]] = {
        "log_prob": lambda: family.make(natural).log_prob(x),
        "expanded": lambda: family.make(natural).expand((codes, batch)).log_prob(x),
        "outer_log_prob": lambda: family.make(natural.squeeze(1)).outer_log_prob(x),
        "reference": lambda: family.reference_log_prob(natural, x),
    }
    with LargestTensor() as largest:
        table = forms[form]()
        table.sum().backward()
    assert table.shape == (codes, batch)
    if form == "reference":  # the control: the check can fail
        assert largest.numel >= codes * batch * D
    else:
        assert largest.numel <= codes * max(family.natural_dim, batch)


def test_paired_parameters_take_no_more_than_their_own_size(family: Family) -> None:
    natural, x = family.natural(5, 4).requires_grad_(), family.data((4, D))  # (P, B, ·) against (B, D)
    with LargestTensor() as largest:
        family.make(natural).log_prob(x).sum().backward()
    assert largest.numel <= natural.numel()


# Precision


@pytest.mark.parametrize("own", [(4,), (3, 1)], ids=["paired", "product"])
def test_float32_agrees_with_float64(family: Family, own: Any) -> None:
    natural, x = family.natural(*own), family.data((4, D))
    single = family.make(natural.float()).log_prob(x)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), family.make(natural).log_prob(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_scored_in_float32(family: Family, dtype: torch.dtype) -> None:
    natural, x = family.natural(7, dtype=dtype).requires_grad_(), family.data((5, D))
    table = family.make(natural).outer_log_prob(x)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, family.make(natural.float()).outer_log_prob(x), rtol=0, atol=0)
    table.sum().backward()
    assert natural.grad is not None and natural.grad.dtype == dtype


def test_autocast_does_not_round_the_products(family: Family) -> None:
    natural, x = family.natural(7, dtype=torch.float32), family.data((5, D))
    observation = family.make(natural)
    expected = observation.outer_log_prob(x)
    statistics = observation.sufficient_statistics(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(observation.outer_log_prob(x), expected, rtol=0, atol=0)
        assert (observation.coefficients @ statistics.mT).dtype == torch.bfloat16  # autocast was on


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("bernoulli", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float32]),
        ("gaussian", [torch.bfloat16, torch.float32]),
        ("categorical", [torch.uint8, torch.int32, torch.bfloat16, torch.float32, torch.float64]),
    ],
)
def test_data_of_any_dtype(name: str, dtypes: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    family = FAMILIES[name]
    natural, x = family.natural(7, 1), torch.randint(2, (5, D))
    for observation in (family.make(natural), family.make(natural[:5, 0])):
        expected = observation.log_prob(x)
        for dtype in dtypes:
            torch.testing.assert_close(observation.log_prob(x.to(dtype)), expected, rtol=0, atol=0)


EXTREME = [0.0, 1e-30, 1e-8, 1e-4, 0.01, 0.1, 0.399999, 0.4, 0.400001, 1.0, 5.0, 50.0, 1e3, 1e6, 1e30]


def exact_log_normalizer_and_mean(eta: float) -> tuple[float, float]:
    """Compute both for the continuous Bernoulli in 120 decimal digits (1e6 keeps all, 1e30 overflows to its limit)."""
    if eta == 0:
        return 0.0, 0.5
    with localcontext() as context:
        context.prec = 120
        magnitude = Decimal(abs(eta))
        decay = (-min(magnitude, Decimal(1000))).exp()
        log_normalizer = max(Decimal(eta), Decimal(0)) + ((1 - decay) / magnitude).ln()
        mean = 1 / (1 - decay) - 1 / magnitude
        return float(log_normalizer), float(mean if eta > 0 else 1 - mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_continuous_bernoulli_is_accurate_at_extreme_parameters(dtype: torch.dtype, sign: int) -> None:
    eta = (sign * torch.tensor(EXTREME, dtype=dtype)).unsqueeze(-1).requires_grad_()  # (S, 1)
    log_normalizer = ContinuousBernoulli(eta).log_normalizer()
    (slope,) = torch.autograd.grad(log_normalizer.sum(), eta, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), eta)
    exact = torch.tensor([exact_log_normalizer_and_mean(e) for e in eta.flatten().tolist()], dtype=torch.float64)
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(log_normalizer.double(), exact[:, 0], **tolerance)
    torch.testing.assert_close(slope.squeeze(-1).double(), exact[:, 1], **tolerance)
    torch.testing.assert_close(ContinuousBernoulli(eta).mean, slope, **tolerance)
    assert curvature.isfinite().all()
    torch.testing.assert_close(curvature[0].item(), 1 / 12)  # the variance of a uniform pixel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family_name", ["bernoulli", "continuous-bernoulli", "categorical"])
def test_scores_and_gradients_are_finite_at_extreme_parameters(family_name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[family_name]
    natural = torch.tensor([-1e6, -1e3, -40.0, 0.0, 40.0, 1e3, 1e6], dtype=dtype)
    natural = natural.unsqueeze(-1).expand(-1, family.natural_dim).contiguous().requires_grad_()
    for x in (torch.zeros(1, D), torch.ones(1, D)):
        table = family.make(natural).outer_log_prob(x)
        (grad,) = torch.autograd.grad(table.sum(), natural)
        assert table.isfinite().all() and grad.isfinite().all()


def test_a_certain_and_right_bernoulli_scores_zero_pixel_by_pixel() -> None:
    natural = torch.tensor([[-1e4, 1e4, 41.0]], dtype=torch.float32).requires_grad_()
    log_prob = Bernoulli(natural).log_prob(torch.tensor([[0.0, 1.0, 1.0]]))
    assert log_prob.item() == 0
    assert torch.autograd.grad(log_prob.sum(), natural)[0].abs().max() == 0
    exact = -math.log1p(math.exp(-41.0))  # what softplus drops at its threshold is below rounding
    wrong = Bernoulli(torch.tensor([41.0], dtype=torch.float64)).log_prob(torch.zeros(1)).item()
    assert wrong == pytest.approx(exact - 41.0, rel=1e-15)


def test_a_narrow_gaussian_in_float32_loses_nothing() -> None:
    torch.manual_seed(0)
    x = torch.rand(20, 784)
    mean = x + 0.01 * torch.randn_like(x)
    exact = td.Normal(mean.double(), 0.01).log_prob(x.double()).sum(-1)
    paired = Gaussian(mean, 0.01).log_prob(x)
    product = Gaussian(mean, 0.01).outer_log_prob(x).diagonal()
    assert (paired - exact).abs().max() < 2e-3
    assert (product - exact).abs().max() < 2e-4


# Moments and samples


def test_mean_equals_the_reference(family: Family) -> None:
    natural = family.natural(4)
    if natural.shape[-1] == D:
        expected = family.reference(natural).mean
    else:
        expected = natural.unflatten(-1, (D, LEVELS)).softmax(-1) @ torch.arange(LEVELS).double()
    torch.testing.assert_close(family.make(natural).mean, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_moments_of_the_scores(family: Family, dtype: torch.dtype) -> None:
    """5 standard errors in 36 comparisons per family: a correct sampler fails for fewer than 1 seed in 10,000."""
    natural = family.natural(3, dtype=dtype)
    observation = family.make(natural)
    draws = observation.sample((20_000,))  # (P, 3, D)
    assert observation.support.check(draws).all()
    assert not draws.requires_grad
    draws = draws.double()
    for moment in (lambda x: x, torch.square):
        values = moment(draws)
        standard_error = values.std(0) / len(values) ** 0.5
        reference = second_moment(family, natural.double()) if moment is torch.square else observation.mean
        assert ((values.mean(0) - reference).abs() <= 5 * standard_error + 1e-6).all()


def second_moment(family: Family, natural: Tensor) -> Tensor:
    if natural.shape[-1] == D:
        reference = family.reference(natural)
        return reference.mean.square() + reference.variance
    return natural.unflatten(-1, (D, LEVELS)).softmax(-1) @ torch.arange(LEVELS).double().square()


def test_continuous_bernoulli_samples_at_extreme_parameters() -> None:
    torch.manual_seed(0)
    natural = torch.tensor([-1e6, -30.0, -1e-7, 0.0, 1e-30, 30.0, 1e6])
    observation = ContinuousBernoulli(natural)
    draws = observation.sample((20_000,))
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert draws.min() >= 0 and draws.max() <= 1
    assert ((draws.mean(0) - observation.mean).abs() <= 5 * standard_error + 1e-7).all()


def test_gaussian_samples_are_reparameterized_and_the_others_are_not(family: Family) -> None:
    natural = family.natural(3).requires_grad_()
    observation = family.make(natural)
    assert observation.has_rsample == isinstance(observation, Gaussian)
    assert observation().requires_grad == observation.has_rsample
    if observation.has_rsample:
        (grad,) = torch.autograd.grad(observation.rsample((2,)).sum(), natural)
        torch.testing.assert_close(grad, torch.full_like(grad, 2.0))


# Under Pyro and under torch's transforms


@pytest.mark.parametrize("infer", ["model", "guide"])
def test_enumeration_of_a_plated_program_equals_brute_force(family: Family, infer: str) -> None:
    codes, batch = 4, 5
    x = family.data((batch, D))
    logits = torch.randn(batch, codes, dtype=torch.float64, requires_grad=True)
    weights = family.natural(codes).requires_grad_()  # (K, ·): the decoder is a table

    def model(x: Tensor) -> None:
        with pyro.plate("data", batch):
            prior = OneHotCategorical(logits=torch.zeros(codes, dtype=torch.float64))
            z = pyro.sample("z", prior, infer={"enumerate": "parallel"})  # (K, 1, K)
            pyro.sample("x", family.make(z @ weights), obs=x)

    def guide(x: Tensor) -> None:
        if infer == "guide":
            with pyro.plate("data", batch):
                pyro.sample("z", OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})

    table = torch.stack([family.reference_log_prob(weights[k], x) for k in range(codes)])  # (K, B)
    joint = table - math.log(codes)
    log_q = logits.log_softmax(-1).T  # (K, B)
    elbo = joint.logsumexp(0) if infer == "model" else (log_q.exp() * (joint - log_q)).sum(0)
    parameters = [weights] if infer == "model" else [weights, logits]

    with LargestTensor() as largest:
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, x)
        grads = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(loss, -elbo.sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, torch.autograd.grad(-elbo.sum(), parameters), rtol=1e-10, atol=1e-10)
    assert largest.numel < codes * batch * D


def test_trace_elbo_of_an_observed_plate_is_minus_the_log_probability(family: Family) -> None:
    natural, x = family.natural(4), family.data((4, D))

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("x", family.make(natural), obs=x)

    expected = -family.reference_log_prob(natural, x).sum().item()
    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("own", [(4,), (3, 1)], ids=["paired", "product"])
def test_a_traced_gradient_equals_the_eager_one(family: Family, own: Any) -> None:
    def gradient(natural: Tensor, x: Tensor) -> Tensor:
        natural = natural.detach().requires_grad_()
        loss = family.make(natural, validate_args=False).log_prob(x).sum()
        return torch.autograd.grad(loss, natural)[0]

    traced = make_fx(gradient)(family.natural(*own), family.data((4, D)))
    natural, x = family.natural(*own), family.data((4, D))
    torch.testing.assert_close(traced(natural, x), gradient(natural, x), rtol=0, atol=0)


def test_vmap_over_codes_equals_the_product(family: Family) -> None:
    natural, x = family.natural(7), family.data((5, D))
    table = torch.func.vmap(lambda eta: family.make(eta, validate_args=False).log_prob(x))(natural)
    torch.testing.assert_close(table, family.make(natural).outer_log_prob(x), rtol=1e-10, atol=1e-10)


def test_copies_score_the_same(family: Family) -> None:
    observation, x = family.make(family.natural(3, 1)).expand((3, 4)), family.data((4, D))
    for twin in (copy.deepcopy(observation), pickle.loads(pickle.dumps(observation))):
        assert twin.batch_shape == (3, 4)
        torch.testing.assert_close(twin.log_prob(x), observation.log_prob(x), rtol=0, atol=0)


# Errors


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Bernoulli(torch.tensor(0.0)), r"Expected natural of shape \(\.\.\., D\), but found \(\)"),
        (lambda: Bernoulli(torch.tensor([math.nan])), "Expected parameter natural"),
        (lambda: CategoricalPixels(torch.zeros(7), 3), r"shape \(\.\.\., D \* 3\), but found \(7,\)"),
        (lambda: CategoricalPixels(torch.zeros(7), 0), r"shape \(\.\.\., D \* 0\)"),
        (lambda: Gaussian(torch.zeros(2), 0.0), "Expected parameter scale"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(3)), r"scalar or of shape \(2,\), but found \(3,\)"),
        (lambda: Gaussian(torch.zeros(4, 2), torch.ones(4, 1)), r"but found \(4, 1\)"),
    ],
)
def test_parameters_that_are_refused(make: Callable[[], ExponentialFamily], sentence: str) -> None:
    with pyro.validation_enabled(), pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("name", "x", "sentence"),
    [
        ("bernoulli", torch.full((D,), 255), r"Expected x in \[0, 1\] .*try x / 255.*from 255 to 255"),
        ("bernoulli", torch.full((D,), math.nan), "found values from nan to nan"),
        ("continuous-bernoulli", torch.full((D,), -0.5), r"Expected x in \[0, 1\]"),
        ("gaussian", torch.full((D,), math.nan), "Expected x without NaN"),
        ("categorical", torch.full((D,), LEVELS), "Expected x of integer levels 0 to 2, .* from 3 to 3"),
        ("categorical", torch.full((D,), 0.5), "Expected x of integer levels 0 to 2"),
    ],
)
def test_values_out_of_the_support_are_refused_while_validation_is_on(name: str, x: Tensor, sentence: str) -> None:
    natural = torch.zeros(3, FAMILIES[name].natural_dim)
    with pytest.raises(ValueError, match=sentence):
        FAMILIES[name].make(natural, validate_args=True).log_prob(x)
    with pytest.raises(ValueError, match=sentence):
        FAMILIES[name].make(natural, validate_args=True).outer_log_prob(x.expand(2, D))
    if name != "categorical":  # whose gather may refuse a level that does not exist
        assert FAMILIES[name].make(natural, validate_args=False).log_prob(x).shape == (3,)


@pytest.mark.parametrize("validate_args", [False, True])
def test_data_of_a_wrong_shape_are_refused_always(family: Family, validate_args: bool) -> None:
    observation = family.make(family.natural(3), validate_args=validate_args)
    for shape in [(3, D + 1), (3, 1), ()]:
        with pytest.raises(ValueError, match=rf"Expected x of shape \(\.\.\., {D}\), but found"):
            observation.log_prob(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"broadcasts with \(3,\), but found \(4,\)"):
        observation.log_prob(torch.zeros(4, D))
    with pytest.raises(ValueError, match=rf"Expected x of shape \(B, {D}\), but found"):
        observation.outer_log_prob(torch.zeros(D))
    with pytest.raises(ValueError, match="Expected x to be a tensor"):
        observation.log_prob([0.0] * D)


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ExponentialFamily(torch.zeros(D), 1)


@pytest.mark.parametrize("method", ["log_prob", "outer_log_prob"])
@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_survive_the_provenance_that_stock_tracegraph_tracks(family, method):
    row = FAMILIES[family]
    natural, x = row.natural(4).requires_grad_(), row.data((4, D))
    tracked = row.make(track_provenance(natural, frozenset({"z"})))
    found, expected = getattr(tracked, method)(x), getattr(row.make(natural), method)(x)
    assert get_provenance(found) == {"z"}
    for scores in (found, expected):
        torch.testing.assert_close(detach_provenance(scores), expected)
    gradients = [torch.autograd.grad(detach_provenance(scores).sum(), natural)[0] for scores in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("offset", [0.0, 300.0, 1000.0])
def test_data_far_from_zero_lose_nothing(offset: float) -> None:
    """Inner products of numbers as large as the offset would round by up to 27 nats; scores depend on x - mu."""
    mean = (offset + torch.randn(30, 1, 64)).requires_grad_()
    x = offset + torch.randn(20, 64)
    found = Gaussian(mean, 1.0).log_prob(x)
    right = Gaussian(mean.double(), 1.0).log_prob(x.double())
    torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-3)
    [slope] = torch.autograd.grad(found.sum(), mean)
    torch.testing.assert_close(slope, (x - mean).sum(1, keepdim=True), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("jit", "plain", "handler"),
    [
        (JitTrace_ELBO, Trace_ELBO, discretize),
        (lambda: JitTraceEnum_ELBO(max_plate_nesting=1), lambda: TraceEnum_ELBO(max_plate_nesting=1), enumerated),
    ],
    ids=["sampled", "enumerated"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
def test_stock_jit_elbos_give_what_plain_ones_give(jit: Any, plain: Any, handler: Any, family: Family) -> None:
    x = family.data((4, D)).double()
    decoder = torch.nn.Linear(3, family.natural_dim).double()
    certain = 100 * torch.eye(3, dtype=torch.float64)[torch.tensor([0, 1, 2, 0])]  # the same codes in every run

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", 4):
            z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(3, dtype=torch.float64)))
            pyro.sample("x", family.make(decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", OneHotCategorical(logits=pyro.param("q", certain)))

    found = []
    for elbo in (plain(), jit()):
        decoder.zero_grad()
        torch.manual_seed(1)
        guide(x)
        torch.manual_seed(1)
        loss = elbo.loss_and_grads(handler(model), handler(guide), x)
        found.append((loss, decoder.weight.grad))
    torch.testing.assert_close(found[1], found[0])
