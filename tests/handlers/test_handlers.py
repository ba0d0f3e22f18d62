"""Handlers on users' programs, against brute force and stock Pyro with separate sites."""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import nn
from torch.nn.functional import one_hot

from pyro_gvae.distributions.concrete import ExpConcrete, RelaxedOneHotCategorical
from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through, weigh_kl
from pyro_gvae.handlers.sites import discrete

B, N, K, D = 5, 3, 4, 6


class User(nn.Module):
    """A user's program: N one-hots, an MLP that mixes them, binary pixels; the site is written in `kind`'s way."""

    def __init__(self, kind, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.prior = nn.Parameter(torch.randn(N, K, generator=generator).double())
        self.logits = nn.Parameter(torch.randn(B, N, K, generator=generator).double())
        self.weight = nn.Parameter(torch.randn(N * K, 8, generator=generator).double())
        self.out = nn.Parameter(torch.randn(8, D, generator=generator).double())
        self.x = torch.rand(B, D, generator=generator).double().round()

    def decode(self, z):
        return (z.flatten(-2) @ self.weight).tanh() @ self.out

    def model(self):
        with pyro.plate("data", B):
            z = pyro.sample("z", KINDS[self.kind](self.prior))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=self.x)

    def guide(self):
        with pyro.plate("data", B):
            pyro.sample("z", KINDS[self.kind](self.logits))

    def gradients(self, loss):
        return torch.autograd.grad(loss, list(self.parameters()), allow_unused=True, materialize_grads=True)


KINDS = {
    "one-hot": lambda logits: dist.OneHotCategorical(logits=logits).to_event(1),
    "relaxed": lambda logits: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits).to_event(1),
    "ours": lambda logits: FactorizedOneHotCategorical(logits=logits),
    "our-relaxed": lambda logits: RelaxedOneHotCategorical(0.5, logits=logits).to_event(1),
    "masked": lambda logits: dist.OneHotCategorical(logits=logits).to_event(1).mask(True),
}


def brute_force(user):
    """Compute (elbo, log_evidence) of the discrete program, summed over data, by a loop over all K^N codes."""
    log_joint, log_q = [], []
    for code in itertools.product(range(K), repeat=N):
        z = one_hot(torch.tensor(code), K).double()
        log_prior = (user.prior.log_softmax(-1) * z).sum()
        likelihood = dist.Bernoulli(logits=user.decode(z)).log_prob(user.x).sum(-1)
        log_joint.append(log_prior + likelihood)
        log_q.append((user.logits.log_softmax(-1) * z).sum((-2, -1)))
    log_joint, log_q = torch.stack(log_joint), torch.stack(log_q)
    return (log_q.exp() * (log_joint - log_q)).sum(), log_joint.logsumexp(0).sum()


def check_same(user, loss, expected):
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, reference in zip(user.gradients(loss), user.gradients(expected), strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_enumerated_guide_is_the_exact_elbo(kind):
    user = User(kind)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(user.model), enumerated(user.guide))
    check_same(user, loss, -brute_force(user)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_enumerated_model_is_the_exact_log_evidence(kind):
    user = User(kind)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(user.model), lambda: None)
    check_same(user, loss, -brute_force(user)[1])


def test_enumerated_equals_stock_pyro_with_separate_sites():
    user = User("one-hot")

    def site(n, logits):
        q = dist.OneHotCategorical(logits=logits[..., n, :])
        return pyro.sample(f"z_{n}", q, infer={"enumerate": "parallel"})

    def model():
        with pyro.plate("data", B):
            codes = torch.broadcast_tensors(*[site(n, user.prior) for n in range(N)])
            natural = user.decode(torch.stack(codes, -2))
            pyro.sample("x", dist.Bernoulli(logits=natural).to_event(1), obs=user.x)

    def guide():
        with pyro.plate("data", B):
            for n in range(N):
                site(n, user.logits)

    stock = TraceEnum_ELBO(max_plate_nesting=1)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(user.model), enumerated(user.guide))
    check_same(user, loss, stock.differentiable_loss(model, guide))
    evidence = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(user.model), lambda: None)
    check_same(user, evidence, stock.differentiable_loss(model, lambda: None))


def test_stock_pyro_samples_the_same_program_silently():
    """The negative control: this is why `enumerated` is needed."""
    user = User("one-hot")
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    guide = config_enumerate(user.guide, default="parallel")
    losses = {round(elbo.loss(user.model, guide), 6) for _ in range(5)}
    assert len(losses) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_discretized_program_is_unbiased_for_the_exact_elbo(kind):
    user = User(kind)
    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    losses = torch.tensor([elbo.loss(discretize(user.model), discretize(user.guide)) for _ in range(100)])
    standard_error = losses.std() / math.sqrt(len(losses))
    assert (losses.mean() + brute_force(user)[0]).abs() < 5 * standard_error
    assert standard_error < 0.02 * losses.mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_relaxed_gradients_of_every_parameter_are_slopes(kind, elbo):
    """Compare with slopes along a random direction of each parameter, with the same noise."""
    user = User(kind)

    def loss():
        pyro.set_rng_seed(0)
        return elbo().differentiable_loss(relax(user.model, temperature=0.5), relax(user.guide, temperature=0.7))

    for parameter, gradient in zip(user.parameters(), user.gradients(loss()), strict=True):
        direction, start, ends = torch.randn_like(parameter), parameter.detach().clone(), []
        for step in (1e-6, -1e-6):
            parameter.data = start + step * direction
            ends.append(loss().item())
        parameter.data = start
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_relaxed_sites_are_sampled_in_log_space_at_the_given_temperature(kind):
    trace = pyro.poutine.trace(relax(User(kind).guide, temperature=0.25)).get_trace()
    log_site, site = one_hot_free_base(trace.nodes["z_log"]["fn"]), trace.nodes["z"]
    assert isinstance(log_site, ExpConcrete) and log_site.temperature.item() == 0.25
    assert torch.equal(site["value"], trace.nodes["z_log"]["value"].exp())
    assert discrete(site["fn"]).temperature.item() == 0.25
    trace.compute_log_prob()
    assert site["log_prob_sum"] == 0


def one_hot_free_base(fn):
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def annotated(program, temperature):
    return pyro.poutine.infer_config(program, config_fn=lambda site: {"temperature": temperature})


@pytest.mark.parametrize(
    ("program", "temperature"),
    [
        (relax(User("our-relaxed").guide), 0.5),
        (relax(annotated(User("one-hot").guide, 0.25)), 0.25),
        (relax(annotated(User("one-hot").guide, 0.25), temperature=0.125), 0.125),
        (relax(relax(annotated(User("one-hot").guide, 0.25))), 0.25),
    ],
)
def test_relax_keeps_the_programs_own_temperature(program, temperature):
    trace = pyro.poutine.trace(program).get_trace()
    assert one_hot_free_base(trace.nodes["z_log"]["fn"]).temperature.item() == temperature


def test_straight_through_keeps_the_programs_own_temperature():
    trace = pyro.poutine.trace(straight_through(annotated(User("one-hot").guide, 0.25))).get_trace()
    assert one_hot_free_base(trace.nodes["z"]["fn"]).temperature.item() == 0.25


@pytest.mark.parametrize(
    ("handled", "site"),
    [
        (lambda f: discretize(relax(f, temperature=0.5)), FactorizedOneHotCategorical),
        (lambda f: relax(discretize(f), temperature=0.5), ExpConcrete),
        (lambda f: enumerated(relax(f, temperature=0.5)), FactorizedOneHotCategorical),
        (lambda f: relax(relax(f, temperature=0.1), temperature=0.9), ExpConcrete),
    ],
)
def test_the_outermost_handler_decides(handled, site):
    with pyro.poutine.enum(first_available_dim=-2), pyro.poutine.trace() as tracer:
        handled(User("one-hot").guide)()
    nodes = tracer.trace.nodes
    found = one_hot_free_base(nodes["z_log" if "z_log" in nodes else "z"]["fn"])
    assert isinstance(found, site)
    if site is ExpConcrete:
        assert found.temperature.item() in (0.5, 0.9)


def test_decorator_context_manager_and_function_are_one():
    program = User("one-hot").guide

    @relax(temperature=0.5)
    def decorated():
        program()

    def in_context():
        with relax(temperature=0.5):
            program()

    pyro.set_rng_seed(0)
    traces = []
    for form in (relax(program, temperature=0.5), decorated, in_context):
        pyro.set_rng_seed(0)
        traces.append(pyro.poutine.trace(form).get_trace())
    for trace in traces[1:]:
        assert torch.equal(trace.nodes["z"]["value"], traces[0].nodes["z"]["value"])


def test_a_context_manager_may_be_entered_twice():
    context = discretize()
    with context, context:
        z = pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(1.0), logits=torch.zeros(3)))
    assert z.max() == 1


def test_svi_trains_a_relaxed_user_program():
    user = User("one-hot")

    def model():
        pyro.module("user", user)
        user.model()

    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(
        relax(model, temperature=0.5), relax(user.guide, temperature=0.5), pyro.optim.Adam({"lr": 0.05}), loss=elbo
    )
    before = brute_force(user)[0].item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            svi.step()
    assert brute_force(user)[0].item() > before + 1


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_a_relaxed_guide(parallel):
    user = User("one-hot")
    model, guide = relax(user.model, temperature=0.5), relax(user.guide, temperature=0.5)
    samples = Predictive(model, guide=guide, num_samples=3, parallel=parallel)()
    assert samples["x"].shape == (3, B, D)
    prior = Predictive(model, num_samples=3, parallel=parallel)()
    torch.testing.assert_close(prior["z"].flatten(), prior["z_log"].exp().flatten())


def test_autoguides_move_on_the_log_simplex():
    """Stock AutoNormal on a relaxed program gives a proper bound, with z on the simplex."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
        pyro.sample("x", dist.Normal(z @ torch.tensor([-2.0, 0.0, 2.0]), 1.0), obs=torch.tensor(1.0))

    relaxed = relax(model, temperature=0.7)
    guide = pyro.infer.autoguide.AutoNormal(relaxed)
    svi = SVI(relaxed, guide, pyro.optim.Adam({"lr": 0.02}), loss=Trace_ELBO())
    losses = [svi.step() for _ in range(600)]
    assert sum(losses[-200:]) / 200 > 0.5 * math.log(2 * math.pi)  # the least that -log p(x) can be
    assert guide()["z_log"].exp().sum().item() == pytest.approx(1.0, abs=1e-4)


# ------------------------------------------------------------------------- other programs of users


def test_mixture_model():
    """A latent with K clusters for each datum, event shape (K,): both exact sums against brute force."""
    x = torch.tensor([-1.0, 0.2, 3.0, 2.5]).double()
    means = torch.tensor([-1.0, 0.0, 3.0]).double().requires_grad_()
    weights = torch.tensor([0.5, -0.2, 0.1]).double().requires_grad_()

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.OneHotCategorical(logits=weights))
            pyro.sample("x", dist.Normal((z * means).sum(-1), 1.0), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(model), lambda: None)
    table = dist.Normal(means, 1.0).log_prob(x.unsqueeze(-1)) + weights.log_softmax(-1)
    expected = -table.logsumexp(-1).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for found, reference in zip(
        torch.autograd.grad(loss, (means, weights)), torch.autograd.grad(expected, (means, weights)), strict=True
    ):
        torch.testing.assert_close(found, reference)
    z = relax(model, temperature=0.3)
    trace = pyro.poutine.trace(z).get_trace()
    assert trace.nodes["z"]["value"].shape == (4, 3)


def test_two_layers_of_one_hots():
    """z1 -> z2 -> x: sites of different sizes, enumerated in the guide and in the model, and relaxed."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(2, 3, generator=generator).double()
    down = torch.randn(6, 2 * 2, generator=generator).double()
    out = torch.randn(4, generator=generator).double()
    q1, q2 = torch.randn(2, 3, generator=generator).double(), torch.randn(2, 2, generator=generator).double()
    x = torch.tensor(0.7).double()

    def second(z1):
        return (z1.flatten(-2) @ down).unflatten(-1, (2, 2))

    def model():
        z1 = pyro.sample("z1", dist.OneHotCategorical(logits=first).to_event(1))
        z2 = pyro.sample("z2", dist.OneHotCategorical(logits=second(z1)).to_event(1))
        pyro.sample("x", dist.Normal(z2.flatten(-2) @ out, 1.0), obs=x)

    def guide():
        pyro.sample("z1", dist.OneHotCategorical(logits=q1).to_event(1))
        pyro.sample("z2", dist.OneHotCategorical(logits=q2).to_event(1))

    evidence, elbo = [], torch.zeros(()).double()
    for c1 in itertools.product(range(3), repeat=2):
        z1 = one_hot(torch.tensor(c1), 3).double()
        for c2 in itertools.product(range(2), repeat=2):
            z2 = one_hot(torch.tensor(c2), 2).double()
            log_joint = (first.log_softmax(-1) * z1).sum() + (second(z1).log_softmax(-1) * z2).sum()
            log_joint = log_joint + dist.Normal(z2.flatten() @ out, 1.0).log_prob(x)
            log_q = (q1.log_softmax(-1) * z1).sum() + (q2.log_softmax(-1) * z2).sum()
            evidence.append(log_joint)
            elbo += log_q.exp() * (log_joint - log_q)
    exact = TraceEnum_ELBO(max_plate_nesting=0)
    assert -exact.loss(enumerated(model), enumerated(guide)) == pytest.approx(elbo.item(), rel=1e-9)
    expected = torch.stack(evidence).logsumexp(0).item()
    assert -exact.loss(enumerated(model), lambda: None) == pytest.approx(expected, rel=1e-9)
    for program in (model, guide):
        nodes = pyro.poutine.trace(relax(program, temperature=0.4)).get_trace().nodes
        assert all(nodes[name]["value"].max() < 1 for name in ("z1", "z2"))  # neither is still one-hot


class SemiSupervised:
    """A small M2 (Kingma et al.): a one-hot label y, observed or not, and a Gaussian h; the guide has both."""

    x = torch.tensor([-1.0, 0.5, 2.0])

    def model(self, y=None):
        with pyro.plate("data", 3):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.tensor([0.1, -0.2, 0.3])), obs=y)
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(y @ torch.tensor([-1.0, 0.0, 1.0]) + h, 1.0), obs=self.x)

    def guide(self, y=None):
        with pyro.plate("data", 3):
            if y is None:
                pyro.sample("y", dist.OneHotCategorical(logits=self.x.unsqueeze(-1) * torch.tensor([-1.0, 0.0, 1.0])))
            pyro.sample("h", dist.Normal(0.5 * self.x, 0.7))


@pytest.mark.parametrize("label", [None, one_hot(torch.tensor([0, 1, 2]), 3).float()])
def test_semi_supervised_programs(label):
    """With labels only h is latent, which is allowed; without labels y is summed, as in stock Pyro."""
    m2 = SemiSupervised()
    stock = (
        (m2.model, m2.guide)
        if label is not None
        else tuple(config_enumerate(program, default="parallel") for program in (m2.model, m2.guide))
    )
    losses = []
    for model, guide in ((enumerated(m2.model), enumerated(m2.guide)), stock):
        pyro.set_rng_seed(0)
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        losses.append(elbo.loss(model, guide, label))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    if label is not None:  # there is no one-hot left to relax
        found = []
        for model, guide in ((m2.model, m2.guide), [relax(p, temperature=0.5) for p in (m2.model, m2.guide)]):
            pyro.set_rng_seed(0)
            found.append(Trace_ELBO().loss(model, guide, label))
        assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_conditioning_outside_of_enumerated_is_observing():
    label = one_hot(torch.tensor([0, 1, 2]), 3).float()
    m2 = SemiSupervised()
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    pyro.set_rng_seed(0)
    found = elbo.loss(pyro.condition(enumerated(m2.model), {"y": label}), lambda: m2.guide(label))
    pyro.set_rng_seed(0)
    assert found == pytest.approx(elbo.loss(m2.model, m2.guide, label), rel=1e-6)


def test_masked_data_count_as_the_mask_says():
    """Site and likelihood are masked for some data: these add nothing, and the others add what they add alone."""
    keep = torch.tensor([True, False, True, True, False])
    user = User("one-hot")

    def masked(program):
        def run():
            with pyro.poutine.mask(mask=keep):
                program()

        return run

    def model():
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.OneHotCategorical(logits=user.prior).to_event(1).mask(keep))
            likelihood = dist.Bernoulli(logits=user.decode(z)).to_event(1)
            pyro.sample("x", likelihood.mask(keep), obs=user.x)

    def guide():
        with pyro.plate("data", B):
            pyro.sample("z", dist.OneHotCategorical(logits=user.logits).to_event(1).mask(keep))

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    by_handler = elbo.loss(enumerated(masked(user.model)), enumerated(masked(user.guide)))
    by_distribution = elbo.loss(enumerated(model), enumerated(guide))
    full_x, full_logits = user.x, user.logits
    user.x, user.logits = full_x[keep], nn.Parameter(full_logits[keep].detach())
    expected = -brute_force(user)[0].item()
    assert by_handler == pytest.approx(expected, rel=1e-6)
    assert by_distribution == pytest.approx(expected, rel=1e-6)


def test_sites_outside_of_the_plate_that_do_not_depend_on_it_are_fine():
    user = User("one-hot")

    def model():
        user.model()
        pyro.deterministic("double", torch.tensor(2.0))
        pyro.sample("other", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))

    plain = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(user.model), enumerated(user.guide))
    with pytest.warns(RuntimeWarning, match="possibly invalid dependency"):  # Pyro cannot know, and warns
        found = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), enumerated(user.guide))
    assert found == pytest.approx(plain - dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.3)).item(), rel=1e-6)


def test_a_sequential_plate_is_no_batch_dimension():
    logits = torch.tensor([[0.3, -0.2, 0.0], [1.0, 0.0, -1.0]])
    means = torch.tensor([-1.0, 0.0, 2.0])

    def model():
        total = 0.0
        for n in pyro.plate("latents", 2):
            total = total + pyro.sample(f"z_{n}", dist.OneHotCategorical(logits=logits[n])) @ means
        pyro.sample("x", dist.Normal(total, 1.0), obs=torch.tensor(0.4))

    found = -TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated(model), lambda: None)
    table = logits.log_softmax(-1)
    joint = table[0].unsqueeze(-1) + table[1]
    joint = joint + dist.Normal(means.unsqueeze(-1) + means, 1.0).log_prob(torch.tensor(0.4))
    assert found == pytest.approx(joint.logsumexp((0, 1)).item(), rel=1e-6)


def test_settings_that_mean_sampling_give_way():
    user = User("one-hot")

    def guide():
        with pyro.plate("data", B):
            q = dist.OneHotCategorical(logits=user.logits).to_event(1)
            pyro.sample("z", q, infer={"enumerate": "parallel", "num_samples": 2})

    found = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(user.model), enumerated(guide))
    assert found == pytest.approx(-brute_force(user)[0].item(), rel=1e-6)


@pytest.mark.parametrize("kind", [dist.OneHotCategoricalStraightThrough, dist.RelaxedOneHotCategoricalStraightThrough])
@pytest.mark.parametrize("handler", [lambda f: relax(f, temperature=0.5), straight_through, discretize, enumerated])
def test_straight_through_sites_are_refused(kind, handler):
    arguments = {"logits": torch.zeros(3)} | ({"temperature": torch.tensor(0.5)} if "Relaxed" in kind.__name__ else {})
    with pytest.raises(ValueError, match=r"but found a .*StraightThrough, which is both"):
        handler(lambda: pyro.sample("z", kind(**arguments)))()


def test_a_mask_over_latents_is_refused():
    def model():
        q = dist.OneHotCategorical(logits=torch.zeros(3, 2)).mask(torch.tensor([True, True, False]))
        pyro.sample("z", q.to_event(1))

    with pytest.raises(ValueError, match=r"found one over the latents .* Try .mask\(\) after .to_event\(1\)"):
        discretize(model)()


def test_observed_one_hots_stay_as_they_are():
    label = one_hot(torch.tensor(1), 3).float()

    def model():
        y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)), obs=label)
        pyro.sample("z", dist.OneHotCategorical(logits=y))

    trace = pyro.poutine.trace(relax(model, temperature=0.5)).get_trace()
    assert isinstance(trace.nodes["y"]["fn"], dist.OneHotCategorical) and "y_log" not in trace.nodes
    conditioned = pyro.condition(model, {"z": label})
    assert torch.equal(pyro.poutine.trace(relax(conditioned, temperature=0.5)).get_trace().nodes["z"]["value"], label)


# ----------------------------------------------------------------------------------- what is refused


def test_a_plate_of_latents_with_a_mixing_decoder_is_refused():
    weight = torch.randn(N, 1, K)

    def model():
        with pyro.plate("data", B, dim=-1):
            with pyro.plate("latents", N, dim=-2):
                z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(K)))  # (N, B, K)
            mixed = (z * weight).sum(-1).sum(-2, keepdim=True)  # (1, B)
            pyro.sample("x", dist.Normal(mixed, 1.0), obs=torch.ones(B))

    def guide():
        with pyro.plate("data", B, dim=-1), pyro.plate("latents", N, dim=-2):
            pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(N, B, K)))

    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    with pytest.raises(ValueError, match=r"inside its plate\(s\) \['latents'\], but found 'x' outside"):
        elbo.loss(enumerated(model), enumerated(guide))


def test_mixing_that_shapes_do_not_tell_is_refused():
    """With K data and K categories, the sum over latents moves the enumerated dimension to the place of the data."""

    def model():
        with pyro.plate("latents", N):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(K)))
        mixed = (z * torch.randn(N, K)).sum((-1, -2))
        with pyro.plate("data", K):
            pyro.sample("x", dist.Normal(mixed, 1.0), obs=torch.zeros(K))

    with pytest.raises(ValueError, match=r"inside its plate\(s\) \['latents'\], but found 'x' outside"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), lambda: None)


def test_two_plates_that_have_nothing_to_do_with_each_other_are_enumerated():
    def model():
        for name, size in (("first", 3), ("second", 4)):
            with pyro.plate(name, size):
                z = pyro.sample(f"z_{name}", dist.OneHotCategorical(logits=torch.zeros(2)))
                pyro.sample(f"x_{name}", dist.Normal(z @ torch.tensor([0.0, 1.0]), 1.0), obs=torch.zeros(size))

    found = -TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), lambda: None)
    table = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(0.0)) - math.log(2)
    assert found == pytest.approx(7 * table.logsumexp(-1).item(), rel=1e-6)


def test_a_plate_of_latents_that_do_not_mix_is_enumerated():
    x = torch.tensor([0.1, -0.3, 2.0]).double()
    means = torch.tensor([-1.0, 0.5, 1.0, 2.0]).double()

    def model():
        with pyro.plate("latents", N):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(K).double()))
            pyro.sample("x", dist.Normal((z * means).sum(-1), 1.0), obs=x)

    found = -TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), lambda: None)
    table = dist.Normal(means, 1.0).log_prob(x.unsqueeze(-1)) - math.log(K)
    assert found == pytest.approx(table.logsumexp(-1).sum().item(), rel=1e-9)


def test_too_many_codes_are_refused_before_anything_is_allocated():
    def model():
        pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(20, 10)).to_event(1))

    with pytest.raises(ValueError, match=r"S = K\^N = 10\^20 = 100,000,000,000,000,000,000 codes, at least .* TB"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated(model), lambda: None)


def test_the_callers_memory_is_what_counts():
    user = User("one-hot")
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    needed = K**N * (N * K + B) * 8
    loss = elbo.loss(enumerated(user.model, max_memory=needed), enumerated(user.guide))
    assert loss == pytest.approx(-brute_force(user)[0].item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"fit into .* kB, but found S = K\^N = 4\^3 = 64 codes"):
        elbo.loss(enumerated(user.model), enumerated(user.guide, max_memory=needed - 1))


def test_nothing_to_enumerate_is_refused():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="to have a discrete site, latent or observed, but found none"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated(model), lambda: None)


def test_enumerated_programs_are_never_sampled():
    user = User("one-hot")
    with pytest.raises(ValueError, match="Expected site 'z' to be enumerated, but it was sampled"):
        Trace_ELBO().loss(enumerated(user.model), enumerated(user.guide))


def test_guessing_the_plate_nesting_is_no_sampling():
    user = User("one-hot")
    assert TraceEnum_ELBO().loss(enumerated(user.model), enumerated(user.guide)) == pytest.approx(
        -brute_force(user)[0].item()
    )


@pytest.mark.parametrize(
    "run",
    [
        lambda user: Trace_ELBO().loss(pyro.poutine.block(enumerated(user.model)), enumerated(user.guide)),
        lambda user: Trace_ELBO().loss(
            enumerated(pyro.poutine.block(user.model, hide=["a"])), enumerated(pyro.poutine.block(user.guide))
        ),
    ],
)
def test_enumerated_programs_are_not_sampled_behind_other_handlers(run):
    with pytest.raises(ValueError, match=r"was sampled|found none"):
        run(User("one-hot"))


def test_where_no_loss_asks_for_a_sum_they_are_drawn():
    """As with stock Pyro's config_enumerate: traces, Predictive and prototypes of autoguides run a program once."""
    user = User("one-hot")
    enumerated(user.model)()
    traced = pyro.poutine.trace(enumerated(user.guide)).get_trace()
    assert traced.nodes["z"]["value"].shape == (B, N, K)
    assert Predictive(enumerated(user.model), num_samples=2)()["z"].shape == (2, B, N, K)


def test_a_recycled_axis_belongs_to_its_last_site():
    """There are chains in a plate, and then a global site that stock Pyro enumerates on one of their axes."""
    transition, x = torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([[0.1, 1.0, -1.0], [0.3, 0.2, -2.0]])

    def model(one_hot):
        z = torch.eye(2)[0]
        with pyro.plate("units", 2):
            for t in pyro.markov(range(3)):
                probs = z @ transition
                if one_hot:
                    z = pyro.sample(f"z_{t}", dist.OneHotCategorical(probs=probs))
                else:
                    z = torch.eye(2)[pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})]
                pyro.sample(f"x_{t}", dist.Normal(z[..., 0], 1.0), obs=x[:, t])
        s = pyro.sample("s", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(s.float(), 1.0), obs=torch.tensor(0.3))

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    found, right = elbo.loss(enumerated(model), lambda _: None, True), elbo.loss(model, lambda _: None, False)
    assert found == pytest.approx(right, rel=1e-5)


def test_a_labelled_batch_has_nothing_to_enumerate():
    """The guide then has only a `pyro.factor`; an empty guide leaves its one-hot to the model."""
    x, labels = torch.tensor([0.5, -0.2, 1.0]), torch.eye(2)[torch.tensor([0, 1, 1])]

    def model(x, y=None):
        with pyro.plate("batch", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(2)), obs=y)
            pyro.sample("x", dist.Normal(y[..., 0], 1.0), obs=x)

    def guide(x, y=None):
        q = dist.OneHotCategorical(logits=torch.stack([x, -x], -1))
        with pyro.plate("batch", len(x)):
            if y is None:
                pyro.sample("y", q)
            else:
                pyro.factor("classification", -0.1 * q.log_prob(y), has_rsample=False)

    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    score = dist.Normal(labels[:, 0], 1.0).log_prob(x) - math.log(2)
    cost = 0.1 * dist.OneHotCategorical(logits=torch.stack([x, -x], -1)).log_prob(labels)
    assert elbo.loss(enumerated(model), enumerated(guide), x, labels) == pytest.approx(-(score + cost).sum().item())
    joint = dist.Normal(torch.tensor([[1.0], [0.0]]), 1.0).log_prob(x) - math.log(2)
    empty = elbo.loss(enumerated(model), enumerated(lambda x, y=None: None), x)
    assert empty == pytest.approx(-joint.logsumexp(0).sum().item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [4, 5])
def test_codes_that_are_paired_with_data_are_refused(batch_size):
    """With 4 codes and 4 data all sizes agree; with 5 data they do not, and Pyro reports it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 2)).to_event(1))
            pyro.sample("x", dist.Normal(z.reshape(-1, 4), 1.0).to_event(1), obs=x)

    sentence = "the program pairs code number s with datum number s" if batch_size == 4 else "Shape mismatch"
    with pytest.raises(ValueError, match=sentence):
        TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), lambda x: None, torch.zeros(batch_size, 4))


def test_a_discrete_site_needs_a_temperature():
    with pytest.raises(ValueError, match="Expected a temperature for the discrete site 'z'"):
        relax(User("one-hot").guide)()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_wrong_temperature_is_refused_before_the_program_runs(temperature):
    for value in (temperature, torch.tensor(temperature)):
        with pytest.raises(ValueError, match="positive temperature"):
            relax(User("one-hot").guide, temperature=value)


def test_conditioning_a_relaxed_site_from_outside_is_refused():
    value = one_hot(torch.zeros(B, N, dtype=torch.long), K).double()
    conditioned = pyro.condition(relax(User("one-hot").guide, temperature=0.5), {"z": value})
    with pytest.raises(ValueError, match="a handler outside of relax"):
        conditioned()


def test_more_than_one_event_dimension_of_latents_is_refused():
    def model():
        pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 3, 4)).to_event(2))

    with pytest.raises(ValueError, match=r"event shape \(K,\) or \(N, K\), but found \(2, 3, 4\)"):
        discretize(model)()


@pytest.mark.parametrize("handler", [relax(temperature=0.5), straight_through(temperature=0.5)])
def test_integers_have_no_relaxation(handler):
    """They would be sampled and scored silently; observed ones, and those that stock Pyro sums, are allowed."""

    def model(obs=None, infer=None):
        with pyro.plate("data", 3):
            return pyro.sample("z", dist.Categorical(logits=torch.zeros(3)).mask(True), obs=obs, infer=infer)

    with pytest.raises(ValueError, match=r"found 'z', a Categorical: an integer has no relaxation\. Try OneHotCategor"):
        handler(model)()
    assert handler(model)(torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert handler(model)(infer={"enumerate": "parallel"}).shape == (3,)


def test_a_weighed_kl_keeps_the_scale_of_the_program():
    program = weigh_kl(pyro.poutine.scale(User("one-hot").model, scale=3.0), beta=0.5)
    nodes = pyro.poutine.trace(program).get_trace().nodes
    assert (nodes["z"]["scale"], nodes["x"]["scale"]) == (1.5, 3.0)
