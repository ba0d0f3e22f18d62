"""Programs with several discrete latents of every kind and continuous ones, and their losses in stock Pyro.

The noise of continuous latents is fixed, so that losses that sum over codes are deterministic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

B, D, L = 5, 4, 2
DATA = torch.linspace(-1.0, 1.5, B * D, dtype=torch.float64).sin().reshape(B, D)
COLUMNS = torch.linspace(-60.0, 60.0, 400, dtype=torch.float64).cos()


class FixedNormal(dist.Normal):
    """A normal whose samples are always 0.7 standard deviations above its mean."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return (self.loc + 0.7 * self.scale).expand(self._extended_shape(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class FixedDirichlet(dist.Dirichlet):
    """A Dirichlet whose samples are always its mean."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.mean.expand(self._extended_shape(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


def weights(*shape: int) -> Tensor:
    """Return parameters, a different draw for each shape."""
    numel = torch.Size(shape).numel()
    name = "w" + "x".join(map(str, shape))
    return pyro.param(name, COLUMNS[: 3 * numel : 3].roll(len(shape)).reshape(shape).clone())


def linear(out: int, *inputs: Tensor) -> Tensor:
    """Multiply each input (..., in) with its own matrix and add up; this broadcasts."""
    return sum(value @ weights(value.shape[-1], out) + i for i, value in enumerate(inputs))


def concatenated(out: int, *inputs: Tensor) -> Tensor:
    """Compute the same as a product of the concatenated inputs with one matrix, which does not broadcast."""
    matrix = torch.cat([weights(value.shape[-1], out) for value in inputs])
    return torch.cat(inputs, -1) @ matrix + sum(range(len(inputs)))


def one_hot(logits: Tensor) -> Any:
    return dist.OneHotCategorical(logits=logits)


def normal(loc: Tensor) -> Any:
    return FixedNormal(loc, 0.8).to_event(1)


def observe(*latents: Tensor, obs: Tensor) -> None:
    pyro.sample("x", dist.Normal(linear(D, *latents), 1.0).to_event(1), obs=obs)


# Each model and guide below is a pair of functions of the data.


def two_layers_model(x, *, dense=linear):
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", one_hot(weights(3)))
        below = pyro.sample("below", one_hot(dense(4, top)))
        pyro.sample("x", dist.Normal(dense(D, top, below), 1.0).to_event(1), obs=x)


def bottom_up_guide(x, *, dense=linear):
    with pyro.plate("data", len(x)):
        below = pyro.sample("below", one_hot(dense(4, x)))
        pyro.sample("top", one_hot(dense(3, x, below)))


def top_down_guide(x, *, dense=linear):
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", one_hot(dense(3, x)))
        pyro.sample("below", one_hot(dense(4, x, top)))


def independent_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("below", one_hot(linear(4, x)))
        pyro.sample("top", one_hot(linear(3, x)))


def bits_model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(logits=weights(1)[0]))
        b = pyro.sample("b", dist.Bernoulli(logits=2 * a - 1))
        k = pyro.sample("k", dist.Categorical(logits=weights(3) * (1 + a.unsqueeze(-1))))
        observe(torch.stack(torch.broadcast_tensors(a, b, a * b), -1), weights(3, 2)[k], obs=x)


def bits_guide(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(logits=x[:, 0]))
        pyro.sample("a", dist.Bernoulli(logits=x[:, 1] * b))
        pyro.sample("k", dist.Categorical(logits=linear(3, x)))


def m2_model(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(3)))
        z = pyro.sample("z", normal(torch.zeros(L).double()))
        observe(y, z, obs=x)


def m2_guide(x, *, dense=linear):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(dense(3, x)))
        pyro.sample("z", normal(dense(L, x, y)))


def continuous_first_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(L).double()))
        y = pyro.sample("y", one_hot(linear(3, z)))
        observe(y, z, obs=x)


def continuous_first_guide(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(linear(L, x)))
        pyro.sample("y", one_hot(linear(3, x, z)))


def mixture_model(x):
    portions = pyro.sample("portions", dist.Dirichlet(torch.ones(3).double()))
    centres = pyro.sample("centres", dist.Normal(torch.zeros(3, D).double(), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(portions))
        pyro.sample("x", dist.Normal(centres[k], 1.0).to_event(1), obs=x)


def mixture_guide(x):
    pyro.sample("portions", FixedDirichlet(weights(3).exp()))
    pyro.sample("centres", FixedNormal(weights(3, D), 0.8).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=linear(3, x)))


def tutorial_model(x):
    """The mixture of Pyro's tutorial, whose components are in their own plate at the dimension of the data."""
    portions = pyro.sample("portions", dist.Dirichlet(torch.ones(3).double()))
    with pyro.plate("components", 3):
        centres = pyro.sample("centres", dist.Normal(torch.zeros(3).double(), 2.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(portions))
        pyro.sample("x", dist.Normal(centres[k], 1.0), obs=x[:, 0])


def tutorial_guide(x):
    pyro.sample("portions", FixedDirichlet(weights(3).exp()))
    with pyro.plate("components", 3):
        pyro.sample("centres", FixedNormal(weights(3), 0.8))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=linear(3, x)))


def global_code_model(x):
    style = pyro.sample("style", one_hot(weights(2)))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(linear(3, style)))
        observe(style, y, obs=x)


def global_code_guide(x):
    style = pyro.sample("style", one_hot(weights(2) - 1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", one_hot(linear(3, x, style)))


def subsampled_model(x):
    centre = pyro.sample("centre", dist.Normal(torch.zeros(D).double(), 1.0).to_event(1))
    with pyro.plate("data", 4 * len(x), subsample=torch.arange(len(x))), poutine.mask(mask=x[:, 0] > 0):
        y = pyro.sample("y", one_hot(weights(3)))
        with poutine.scale(scale=0.5):
            bit = pyro.sample("bit", dist.Bernoulli(logits=y[..., 0]))
        observe(y, bit.unsqueeze(-1), centre, obs=x)


def subsampled_guide(x):
    pyro.sample("centre", normal(weights(D)))
    with pyro.plate("data", 4 * len(x), subsample=torch.arange(len(x))), poutine.mask(mask=x[:, 0] > 0):
        y = pyro.sample("y", one_hot(linear(3, x)))
        with poutine.scale(scale=0.5):
            pyro.sample("bit", dist.Bernoulli(logits=y[..., 1]))


def nested_model(x):
    with pyro.plate("documents", len(x), dim=-2):
        topic = pyro.sample("topic", one_hot(weights(3)))
        with pyro.plate("words", D, dim=-1):
            on = pyro.sample("on", dist.Bernoulli(logits=linear(1, topic).squeeze(-1)))
            pyro.sample("x", dist.Normal(on + topic[..., 0], 1.0), obs=x)


def nested_guide(x):
    with pyro.plate("documents", len(x), dim=-2):
        topic = pyro.sample("topic", one_hot(linear(3, x).unsqueeze(-2)))
        with pyro.plate("words", D, dim=-1):
            pyro.sample("on", dist.Bernoulli(logits=x + topic[..., 1]))


PARALLEL = {"enumerate": "parallel"}  # for stock Pyro, where the guide lacks the latent


def chain_model(x):
    """A hidden Markov model: each row of the data is a sequence."""
    z = None
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", one_hot(weights(3) if z is None else linear(3, z)), infer=PARALLEL)
            pyro.sample(f"x{t}", dist.Normal(linear(1, z).squeeze(-1), 1.0), obs=x[:, t])


def chain_guide(x):
    z = None
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", one_hot(linear(3, x) if z is None else linear(3, x[:, t:], z)))


def second_order_model(x):
    z = [torch.zeros(2).double(), torch.zeros(2).double()]
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1]), history=2):
            z.append(pyro.sample(f"z{t}", one_hot(linear(2, z[-1], 2 * z[-2])), infer=PARALLEL))
            pyro.sample(f"x{t}", dist.Normal(linear(1, z[-1]).squeeze(-1), 1.0), obs=x[:, t])


def factorial_model(x):
    """Two chains, of bits and of integers, that share their observations, and a global code."""
    style = pyro.sample("style", dist.Bernoulli(logits=weights(2)[0]), infer=PARALLEL)
    bit, k = torch.zeros(()).double(), torch.tensor(0)
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            bit = pyro.sample(f"bit{t}", dist.Bernoulli(logits=2 * bit - 1 + style), infer=PARALLEL)
            k = pyro.sample(f"k{t}", dist.Categorical(logits=weights(3, 3)[k]), infer=PARALLEL)
            pyro.sample(f"x{t}", dist.Normal(bit + weights(3)[k], 1.0), obs=x[:, t])


def sparse_model(x):
    """A plate of components next to a subsampled one, with a mask; the code of each datum is summed."""
    portions = pyro.sample("portions", dist.Dirichlet(torch.ones(3).double()))
    with pyro.plate("components", 3):
        centres = pyro.sample("centres", dist.Normal(torch.zeros(3).double(), 2.0))
    with pyro.plate("data", 4 * len(x), subsample=torch.arange(len(x))), poutine.mask(mask=x[:, 1] > 0):
        k = pyro.sample("k", dist.Categorical(portions), infer=PARALLEL)
        pyro.sample("x", dist.Normal(centres[k], 1.0), obs=x[:, 0])


def sparse_guide(x):
    pyro.sample("portions", FixedDirichlet(weights(3).exp()))
    with pyro.plate("components", 3):
        pyro.sample("centres", FixedNormal(weights(3), 0.8))


def words_model(x):
    with pyro.plate("documents", len(x), dim=-2):
        topic = pyro.sample("topic", one_hot(weights(3)), infer=PARALLEL)
        with pyro.plate("words", D, dim=-1):
            on = pyro.sample("on", dist.Bernoulli(logits=linear(1, topic).squeeze(-1)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(on + topic[..., 0], 1.0), obs=x)


def topic_guide(x):
    with pyro.plate("documents", len(x), dim=-2):
        pyro.sample("topic", one_hot(linear(3, x).unsqueeze(-2)))


def switching_model(x):
    """A chain of codes, each with a normal."""
    y = None
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            y = pyro.sample(f"y{t}", one_hot(weights(3) if y is None else linear(3, y)))
            z = pyro.sample(f"z{t}", normal(linear(L, y)))
            pyro.sample(f"x{t}", dist.Normal(linear(1, y, z).squeeze(-1), 1.0), obs=x[:, t])


def code_first_guide(x):
    y = None
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            y = pyro.sample(f"y{t}", one_hot(linear(3, x) if y is None else linear(3, x, y)))
            pyro.sample(f"z{t}", normal(linear(L, x[:, t:], y)))


def normal_first_guide(x):
    y = None
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", normal(linear(L, x[:, t:])))
            y = pyro.sample(f"y{t}", one_hot(linear(3, z) if y is None else linear(3, z, y)))


def no_guide(x):
    """No latents."""


def without_markov(program):
    """Return the same program with a plain loop instead of `pyro.markov`, so that joint codes are summed."""

    def run(x):
        with mock.patch.object(pyro, "markov", lambda steps, **_: steps):
            program(x)

    return run


def in_copies(program: Callable[..., Any], number: int, nesting: int) -> Callable[..., Any]:
    """Run independent copies of a program in a plate, at the cost of one run."""

    def copied(*data: Tensor) -> None:
        with pyro.plate("copies", number, dim=-nesting - 1):
            program(*data)

    return copied


class Program(NamedTuple):
    """A pair, and the number of its plates."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    nesting: int = 1


PROGRAMS = {
    "two layers, independent": Program(two_layers_model, independent_guide),
    "two layers, bottom-up": Program(two_layers_model, bottom_up_guide),
    "two layers, top-down": Program(two_layers_model, top_down_guide),
    "bits and an integer": Program(bits_model, bits_guide),
    "a normal given a code": Program(m2_model, m2_guide),
    "a code given a normal": Program(continuous_first_model, continuous_first_guide),
    "a mixture with Dirichlet weights": Program(mixture_model, mixture_guide),
    "a mixture with a plate of components": Program(tutorial_model, tutorial_guide),
    "a global code": Program(global_code_model, global_code_guide),
    "a subsampled plate with scale and mask": Program(subsampled_model, subsampled_guide),
    "nested plates": Program(nested_model, nested_guide, 2),
}

#: Programs whose latents have one axis each: in `pyro.markov`, or in the model alone.
CHAINS = {
    "a chain": Program(chain_model, chain_guide),
    "a chain of the model alone": Program(chain_model, no_guide),
    "a chain of second order": Program(second_order_model, no_guide),
    "two chains and a global code": Program(factorial_model, no_guide),
    "a mixture whose codes the model alone has": Program(sparse_model, sparse_guide),
    "nested plates of the model alone": Program(words_model, no_guide, 2),
    "inner latents of the model alone": Program(words_model, topic_guide, 2),
    "a chain, a normal given each code": Program(switching_model, code_first_guide),
    "a chain, each code given a normal": Program(switching_model, normal_first_guide),
    "a chain with a scale": Program(poutine.scale(chain_model, scale=3.0), poutine.scale(chain_guide, scale=3.0)),
    "a chain of the model alone with a scale": Program(poutine.scale(chain_model, scale=3.0), no_guide),
}


def with_gradients(loss: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the loss, and its gradient for each parameter."""
    pyro.clear_param_store()
    value = loss()
    gradients = {name: value.unconstrained().grad for name, value in pyro.get_param_store().items()}
    assert any(gradient.abs().max() > 0.01 for gradient in gradients.values())
    return {"loss": torch.as_tensor(value, dtype=torch.float64), **gradients}


def validated_once(call: Callable[[], Any], count: int) -> list[Any]:
    """Return the results of several calls; as in training, Pyro validates only the first."""
    found = []
    for number in range(count):
        with pyro.validation_enabled(number == 0):
            found.append(call())
    return found


def stock(program: Program) -> dict[str, Tensor]:
    elbo = TraceEnum_ELBO(max_plate_nesting=program.nesting)
    return with_gradients(lambda: elbo.loss_and_grads(program.model, config_enumerate(program.guide), DATA))


def standard_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return how many standard errors the means of rows are off, the maximum over coordinates."""
    worst = 0.0
    for name, right in expected.items():
        rows = found[name]
        error = rows.std(0) / len(rows) ** 0.5
        worst = max(worst, ((rows.mean(0) - right).abs() / (error + 1e-9 * (1 + right.abs()))).max().item())
    return worst
