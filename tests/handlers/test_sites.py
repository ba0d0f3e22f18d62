"""Every handler on every kind of discrete latent: it acts, or refuses in one sentence."""

import itertools
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import BECOMES, HALF, SITES, K, Refused, family_of
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, infer_discrete

from pyro_gvae import ExactELBO
from pyro_gvae.distributions.surrogates import KINDS
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through, weigh_kl
from pyro_gvae.handlers.sites import Kind, discrete

B = 5


def is_exact(value):
    return bool(((value == 0) | (value == 1)).all())


def relaxes(node, nodes, site):
    assert ((node["value"] > 0) & (node["value"] < 1)).all() and node["value"].requires_grad
    assert node["value"].shape == node["fn"].batch_shape + node["fn"].event_shape
    torch.testing.assert_close(site.values_of(nodes["z_log"]["value"].exp()), node["value"])


def draws_with_a_gradient(node, nodes, site):
    assert is_exact(node["value"]) and node["value"].requires_grad and not nodes["z"]["is_observed"]


def draws(node, nodes, site):
    assert site.kind is Kind.INTEGER or is_exact(node["value"])
    assert not node["fn"].has_rsample and not node["value"].requires_grad


HANDLERS = {
    "relax": (relax(temperature=0.5), relaxes),
    "straight_through": (straight_through(temperature=0.5), draws_with_a_gradient),
    "discretize": (discretize(), draws),
}


def program_of(kind, logits):
    def program():
        with pyro.plate("data", B):
            return pyro.sample("z", SITES[kind](logits))

    return program


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("name", HANDLERS)
def test_no_handler_is_silent(name, kind):
    handler, acts = HANDLERS[name]
    expected = getattr(BECOMES[kind], name)
    torch.manual_seed(0)
    program = handler(program_of(kind, torch.tensor([0.1, -0.2, 0.3], requires_grad=True)))
    if isinstance(expected, Refused):
        with pytest.raises(ValueError, match=re.escape(expected.sentence)):
            program()
    else:
        nodes = poutine.trace(program).get_trace().nodes
        assert family_of(nodes["z"]["fn"]) == expected
        acts(nodes["z"], nodes, discrete(nodes["z"]["fn"]))


@pytest.mark.parametrize("kind", SITES)
def test_every_kind_is_weighed(kind):
    program = weigh_kl(program_of(kind, torch.tensor([0.1, -0.2, 0.3])), beta=0.25)
    assert poutine.trace(program).get_trace().nodes["z"]["scale"] == 0.25


@pytest.mark.parametrize("kind", SITES)
def test_every_kind_is_enumerated_or_refused(kind):
    program = enumerated(program_of(kind, torch.tensor([0.1, -0.2, 0.3])))
    expected = BECOMES[kind].enumerated
    with poutine.enum(first_available_dim=-2):
        if isinstance(expected, Refused):
            with pytest.raises(ValueError, match=re.escape(expected.sentence)):
                program()
        else:
            found = program()
            assert len(found.unique(dim=0)) == len(found) == expected


def test_a_discrete_bit_needs_its_score():
    log_odds = torch.zeros(B, requires_grad=True)

    def program():
        with pyro.plate("data", B):
            pyro.sample("z", dist.RelaxedBernoulli(HALF, logits=log_odds))

    with pytest.raises(ValueError, match=r"score of the discrete site 'z' .* Try VIMCO"):
        RenyiELBO(num_particles=2).loss_and_grads(discretize(program), discretize(program))


@pytest.mark.parametrize("handler", [relax, straight_through])
@pytest.mark.parametrize("kind", ["bit", "relaxed bit"])
def test_temperatures_of_bits(handler, kind):
    """The temperature is that of the handler, else of the distribution, else of the site's settings, else none."""

    def program(**settings):
        return pyro.sample("z", SITES[kind](torch.zeros(K)), infer=settings)

    def temperature(handled, **settings):
        trace = poutine.trace(handled).get_trace(**settings)
        return discrete(trace.nodes["z"]["fn"]).temperature.item()

    assert temperature(handler(program, temperature=0.25)) == 0.25
    assert temperature(handler(program), temperature=0.125) == (0.5 if kind == "relaxed bit" else 0.125)
    if kind == "bit":
        with pytest.raises(ValueError, match="Expected a temperature for the discrete site 'z'"):
            handler(program)()


# ------------------------------------------------------------------------- relaxed bits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_density_of_a_relaxed_bit_is_that_of_pyro(temperature):
    """The density is that of the bit itself; the log-ratio of its digits is its log-odds."""
    log_odds = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.manual_seed(0)
    trace = poutine.trace(relax(lambda: pyro.sample("z", dist.Bernoulli(logits=log_odds)), temperature=temperature))
    nodes = trace.get_trace().nodes
    log_site, z = nodes["z_log"], nodes["z"]["value"]
    assert (z > 0.5).any() and (z < 0.5).any()
    found = log_site["fn"].log_prob(log_site["value"]) - z.log() - (1 - z).log()
    expected = dist.RelaxedBernoulli(torch.tensor(temperature, dtype=torch.float64), logits=log_odds).log_prob(z)
    finite = expected.isfinite() & ((z - 0.5).abs() < 0.5 - 1e-9)  # where 1 - z does not round to 0
    assert finite.sum() > 40
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-6, atol=1e-6)
    trace.trace.compute_log_prob()
    assert nodes["z"]["log_prob_sum"] == 0


def test_a_relaxed_bit_does_not_underflow():
    log_odds = torch.linspace(-30, 30, 100, requires_grad=True)

    def program(prior=False):
        with pyro.plate("data", 100):
            pyro.sample("z", dist.Bernoulli(logits=0 * log_odds if prior else log_odds))

    torch.manual_seed(0)
    model, guide = relax(lambda: program(prior=True), temperature=0.01), relax(program, temperature=0.02)
    loss = Trace_ELBO().differentiable_loss(model, guide)
    assert loss.isfinite() and torch.autograd.grad(loss, log_odds)[0].isfinite().all()
    stock = dist.RelaxedBernoulli(torch.tensor(0.02), logits=log_odds)  # the negative control: it rounds the bit
    odds = stock.base_dist.rsample()
    right = stock.base_dist.log_prob(odds) - odds.sigmoid().log() - odds.neg().sigmoid().log()
    assert ((stock.log_prob(odds.sigmoid()) - right).abs() > 1).any()


@pytest.mark.parametrize("handler", [relax(temperature=0.5), straight_through(temperature=0.5)])
def test_mean_field_takes_the_kl_of_bernoullis(handler):
    q, p = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([-0.3, 0.2, 1.0]).double()

    def program(log_odds):
        with pyro.plate("data", B):
            pyro.sample("a", dist.Bernoulli(logits=log_odds).to_event(1))
            pyro.sample("b", dist.Bernoulli(logits=log_odds[0]).mask(torch.arange(B) > 1))

    loss = TraceMeanField_ELBO().loss(handler(lambda: program(p)), handler(lambda: program(q)))
    expected = torch.distributions.kl_divergence(dist.Bernoulli(logits=q), dist.Bernoulli(logits=p))
    assert loss == pytest.approx(B * expected.sum().item() + 3 * expected[0].item())


# ------------------------------------------------------------------------- the same as one-hots of two categories


class TwoWays:
    """Bits, and the same as one-hots of two categories: scalars and vectors that depend on each other."""

    def __init__(self, is_one_hot):
        generator = torch.Generator().manual_seed(0)
        self.is_one_hot = is_one_hot
        self.parameters = [torch.randn(*shape, generator=generator).double() for shape in ((3,), (B, 3), (3,), (B,))]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.x = torch.randn(B, generator=generator).double()

    def site(self, name, log_odds, event_dim):
        if self.is_one_hot:
            logits = torch.stack([torch.zeros_like(log_odds), log_odds], -1)
            return pyro.sample(name, dist.OneHotCategorical(logits=logits).to_event(event_dim))[..., 1]
        return pyro.sample(name, dist.Bernoulli(logits=log_odds).to_event(event_dim))

    def model(self):
        prior, _, weight, _ = self.parameters
        with pyro.plate("data", B):
            many = self.site("many", prior, 1)
            one = self.site("one", (many * weight).sum(-1), 0)
            mean = (many * prior).sum(-1).sin() * (1 + one) + one * many[..., 0]
            pyro.sample("x", dist.Normal(mean, 0.5), obs=self.x)

    def guide(self):
        _, many, _, one = self.parameters
        with pyro.plate("data", B):
            self.site("many", many, 1)
            self.site("one", one, 0)

    def losses(self, handler, elbo):
        torch.manual_seed(0)
        loss = elbo.differentiable_loss(handler(self.model), handler(self.guide))
        return [loss.detach(), *torch.autograd.grad(loss, self.parameters)]


SAME = {kind: straight_through(kind=kind, temperature=0.7) for kind in KINDS} | {"relax": relax(temperature=0.7)}


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("name", SAME)
def test_bits_are_one_hots_of_two_categories(name, elbo):
    """With the same noise, loss and gradients are the same."""
    found, expected = (TwoWays(is_one_hot).losses(SAME[name], elbo()) for is_one_hot in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(gradient.abs().max() > 1e-3 for gradient in found[1:])


# ------------------------------------------------------------------------- enumerated bits


def test_enumerated_bits_are_summed():
    exact_elbo = TraceEnum_ELBO(max_plate_nesting=1)
    program = TwoWays(is_one_hot=False)
    losses = [
        exact_elbo.differentiable_loss(enumerated(program.model), enumerated(program.guide)),
        ExactELBO().differentiable_loss(program.model, program.guide),
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, program.parameters) for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


POSTERIORS = ["bit", "bits", "bits of two dimensions", "masked bits", "integer"]


@pytest.mark.parametrize("kind", POSTERIORS)
def test_posteriors_of_bits_and_integers(kind):
    """Compare marginals, most probable values and samples with a loop over all values."""
    logits = torch.tensor([0.1, -1.2, 0.5], dtype=torch.float64)
    x = torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)

    def mean(z):
        z = z.double()
        return (z * z.new_tensor([3.0, 1.0, -1.5])[: z.shape[-1]]).flatten(-max(site.num_event_dims, 1)).sum(-1).sin()

    def model(repeats=1):
        data = x.repeat(repeats)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", SITES[kind](logits))
            pyro.sample("x", dist.Normal(mean(z if site.num_event_dims else z.unsqueeze(-1)), 0.5), obs=data)
        return z

    site = discrete(SITES[kind](logits))
    digits = itertools.product(range(site.num_categories), repeat=site.shape.numel())
    values = torch.tensor(list(digits)).reshape(-1, *site.shape)  # (S, *shape)
    observed = dist.Normal(mean(values if site.num_event_dims else values.unsqueeze(-1)).unsqueeze(-1), 0.5)
    prior = SITES[kind](logits).log_prob(values.to(site.dtype))
    probs = (prior.unsqueeze(-1) + observed.log_prob(x)).softmax(0)  # (S, B)
    assert probs.std(1).max() > 0.01

    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(enumerated(model), lambda: None)["z"]
    found = marginals.log_prob(values.unsqueeze(1).to(site.dtype)).exp()
    torch.testing.assert_close(found, probs)

    best = infer_discrete(enumerated(model), first_available_dim=-2, temperature=0)()
    assert torch.equal(best, values[probs.argmax(0)].to(site.dtype))

    pyro.set_rng_seed(0)
    repeats = 1000
    for run in (
        lambda: infer_discrete(enumerated(model), first_available_dim=-2)(repeats),
        lambda: TraceEnum_ELBO(max_plate_nesting=1).sample_posterior(enumerated(model), lambda _: None, repeats),
    ):
        drawn = run().unflatten(0, (repeats, len(x)))
        hits = (drawn == values[:, None, None]).reshape(len(values), repeats, len(x), -1).all(-1)
        error = (probs * (1 - probs) / repeats).sqrt() + 1 / repeats
        assert ((hits.double().mean(1) - probs).abs() < 5 * error).all()


def test_bits_and_integers_are_summed_as_pyro_sums_them():
    def model(mark):
        with pyro.plate("data", B):
            k = pyro.sample("k", dist.Categorical(logits=torch.tensor([0.1, 0.5, -0.3])), infer=mark)
            a = pyro.sample("a", dist.Bernoulli(logits=k - 1.0), infer=mark)
            pyro.sample("x", dist.Normal(k + 2 * a, 1.0), obs=torch.linspace(-1, 3, B))

    losses = []
    for mark, handled in (({}, enumerated), ({"enumerate": "parallel"}, lambda program: program)):
        losses.append(TraceEnum_ELBO(max_plate_nesting=1).loss(handled(model), lambda _: None, mark))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert math.isfinite(losses[0])
