"""Sums over latents with one axis each: chains in `pyro.markov`, and latents of the model alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    CHAINS,
    DATA,
    PARALLEL,
    B,
    Program,
    chain_guide,
    chain_model,
    no_guide,
    one_hot,
    stock,
    weights,
    with_gradients,
    without_markov,
)
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal

from pyro_gvae import ExactELBO, ExactEvidence, TracedELBO, exact
from pyro_gvae.exact import Pair
from pyro_gvae.exact.elimination import log_sum_exp

EACH_PROGRAM = pytest.mark.parametrize("name", CHAINS)
ALONE = pytest.mark.parametrize("name", [name for name, program in CHAINS.items() if program.guide is no_guide])


def sums(loss, program):
    return with_gradients(lambda: loss.loss_and_grads(program.model, program.guide, DATA))


@EACH_PROGRAM
def test_loss_and_gradients_are_those_of_stock_pyro(name):
    torch.testing.assert_close(sums(ExactELBO(), CHAINS[name]), stock(CHAINS[name]), rtol=1e-9, atol=1e-9)


def test_a_term_that_is_the_same_for_all_data_counts_for_each():
    """The KL of `y` lacks the axis of its data plate; a global chain next to it makes the sum one for all data."""

    def chain(x: torch.Tensor, more: torch.Tensor, of_y: torch.Tensor, last) -> None:
        style = weights(2) + more
        for i in pyro.markov(range(2)):
            style = pyro.sample(f"style{i}", one_hot(style @ weights(2, 2)))
            if i == 1:
                with pyro.plate("data", len(x)):
                    last(style, pyro.sample("y", one_hot(of_y)))

    def model(x: torch.Tensor) -> None:
        def observed(style: torch.Tensor, _: torch.Tensor) -> None:
            pyro.sample("x", dist.Normal(style @ weights(2, 4), 1.0).to_event(1), obs=x)

        chain(x, torch.zeros(2).double(), weights(3), observed)

    def guide(x: torch.Tensor) -> None:
        chain(x, torch.tensor([0.7, 0.0]).double(), weights(3).flip(-1), lambda *_: None)

    program = Program(model, guide)
    torch.testing.assert_close(sums(ExactELBO(), program), stock(program), rtol=1e-9, atol=1e-9)


@ALONE
def test_with_no_latents_in_the_guide_the_bound_is_the_evidence(name):
    torch.testing.assert_close(sums(ExactEvidence(), CHAINS[name]), stock(CHAINS[name]), rtol=1e-9, atol=1e-9)


@EACH_PROGRAM
def test_each_datum_has_its_share(name):
    model, guide, _ = CHAINS[name]
    found = exact.elbo(Pair(model, guide), DATA)
    assert found.shape == (() if name == "two chains and a global code" else (B,))
    assert -found.sum().item() == pytest.approx(stock(CHAINS[name])["loss"].item(), abs=1e-9)


def test_bounds_have_both():
    pair = Pair(chain_model, chain_guide)
    found = exact.bounds(pair, DATA)
    torch.testing.assert_close(found.elbo, exact.elbo(pair, DATA))
    torch.testing.assert_close(found.log_evidence, exact.log_evidence(pair, DATA))
    assert (found.elbo < found.log_evidence).all()


def test_a_chain_has_the_sum_over_its_joint_codes():
    """Compare with the other engine, which enumerates the joint codes of a loop without `pyro.markov`."""
    plain = map(without_markov, (chain_model, chain_guide))
    expected = with_gradients(lambda: ExactELBO().loss_and_grads(*plain, DATA))
    torch.testing.assert_close(sums(ExactELBO(), CHAINS["a chain"]), expected, rtol=1e-9, atol=1e-9)


def test_the_guide_need_not_reach_as_far_as_the_model():
    def model(x):
        z = [torch.zeros(3).double(), torch.zeros(3).double()]
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1]), history=2):
                z.append(pyro.sample(f"z{t}", one_hot(z[-1] @ weights(3, 3) - z[-2] @ weights(3, 3).T)))
                pyro.sample(f"x{t}", dist.Normal(z[-1] @ weights(3), 1.0), obs=x[:, t])

    found = with_gradients(lambda: ExactELBO().loss_and_grads(model, chain_guide, DATA))
    expected = with_gradients(
        lambda: ExactELBO().loss_and_grads(without_markov(model), without_markov(chain_guide), DATA)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def long_chain(steps, num_states, batch):
    """Return a chain without a guide, and its log p(x) by the forward algorithm."""
    x = torch.linspace(0.0, 40.0, batch * steps).double().sin().reshape(batch, steps)

    def parameters():
        transition = pyro.param("transition", lambda: torch.linspace(-2, 5, num_states**2).double().cos())
        means = pyro.param("means", lambda: torch.linspace(-2, 2, num_states).double())
        return transition.reshape(num_states, num_states), means

    def model(x):
        transition, means = parameters()
        z = torch.tensor(0)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(steps)):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=transition[z]))
                pyro.sample(f"x{t}", dist.Normal(means[z], 0.5), obs=x[:, t])

    def forward():
        transition, means = parameters()
        transition = transition.log_softmax(-1)
        message = transition[0].expand(batch, -1)
        for t in range(steps):
            if t:
                message = (message.unsqueeze(-1) + transition).logsumexp(1)
            message = message + dist.Normal(means, 0.5).log_prob(x[:, t : t + 1])
        loss = -message.logsumexp(-1).sum()
        loss.backward()
        return loss.item()

    return model, x, forward


@pytest.mark.parametrize(("steps", "num_states"), [(20, 3), pytest.param(1000, 16, marks=pytest.mark.slow)])
def test_a_chain_is_summed_by_the_forward_algorithm(steps, num_states):
    model, x, forward = long_chain(steps, num_states, batch=2)
    found = with_gradients(lambda: ExactELBO().loss_and_grads(model, no_guide, x))
    torch.testing.assert_close(found, with_gradients(forward), rtol=1e-9, atol=1e-8)


def test_impossible_states_add_nothing():
    """State k is followed only by k and k + 1: other paths have probability 0, and derivatives stay finite."""
    allowed = torch.ones(4, 4).triu().tril(1).bool()

    def model(x):
        transition = pyro.param("transition", torch.zeros(4, 4).double()).masked_fill(~allowed, -torch.inf)
        z = torch.tensor(0)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=transition[z], validate_args=False))
                pyro.sample(f"x{t}", dist.Normal(z.double(), 1.0), obs=x[:, t])

    found = with_gradients(lambda: ExactELBO().loss_and_grads(model, no_guide, DATA))
    expected = with_gradients(lambda: ExactEvidence().loss_and_grads(without_markov(model), no_guide, DATA))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    last = exact.log_evidence(Pair(poutine.condition(model, {"z0": torch.tensor(3)}), no_guide), DATA)
    assert torch.equal(last, torch.full((B,), -torch.inf).double())


def test_a_path_that_is_improbable_at_every_other_step():
    """Two states never change: stock Pyro subtracts the maximum of each factor, so its sum is 0 and its loss inf."""
    x = torch.tensor([[0.0, 50.0, 0.0, 50.0]]).double()

    def model(x):
        stays = torch.eye(2).double().log()
        z = None
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                logits = torch.zeros(2).double() if z is None else stays[z]
                z = pyro.sample(f"z{t}", dist.Categorical(logits=logits, validate_args=False))
                pyro.sample(f"x{t}", dist.Normal(50.0 * z, 1.0), obs=x[:, t])

    expected = dist.Normal(0.0, 1.0).log_prob(x).sum()  # under either state, each with probability 1/2
    torch.testing.assert_close(exact.log_evidence(Pair(model, no_guide), x).sum(), expected)


def test_the_log_sum_has_first_and_second_derivatives():
    values = torch.linspace(-3.0, 900.0, 24).double().sin().mul(5).reshape(2, 3, 4).requires_grad_()
    torch.testing.assert_close(log_sum_exp(values, 1), values.logsumexp(1))
    assert torch.autograd.gradcheck(lambda v: log_sum_exp(v, 1), values)
    assert torch.autograd.gradgradcheck(lambda v: log_sum_exp(v, 1), values)


def global_model(x):
    means = pyro.sample("means", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
    z = torch.tensor(0)
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(logits=weights(3, 3)[z]), infer=PARALLEL)
            pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, t])


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal])
def test_an_autoguide_has_the_continuous_latents(kind):
    guide = kind(poutine.block(global_model, expose=["means"]))
    losses = []
    for loss in (ExactELBO(), TraceEnum_ELBO(max_plate_nesting=1)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide(DATA)
        pyro.set_rng_seed(1)
        losses.append(loss.loss(global_model, guide, DATA))
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide:UserWarning")
def test_a_state_that_is_observed():
    """As in stock Pyro, the guide still draws it and its entropy counts; the model has the observed value."""
    state = torch.eye(3).double()[[0, 1, 2, 0, 1]]
    program = Program(poutine.condition(chain_model, {"z2": state}), chain_guide)
    torch.testing.assert_close(sums(ExactELBO(), program), stock(program), rtol=1e-9, atol=1e-9)


def test_a_scale_of_one_element():
    one = torch.tensor([2.0]).double()
    program = Program(poutine.scale(chain_model, scale=one), poutine.scale(chain_guide, scale=one))
    twice = {key: 2 * value for key, value in sums(ExactELBO(), CHAINS["a chain"]).items()}
    torch.testing.assert_close(sums(ExactELBO(), program), twice, rtol=1e-9, atol=1e-9)


def test_each_datum_may_have_a_scale_of_its_own():
    scale = torch.linspace(0.5, 2.0, B).double()
    model, guide = (poutine.scale(program, scale=scale) for program in (chain_model, chain_guide))
    found = exact.elbo(Pair(model, guide), DATA)
    torch.testing.assert_close(found, scale * exact.elbo(Pair(chain_model, chain_guide), DATA), rtol=1e-9, atol=1e-9)
    summed = exact.log_evidence(Pair(chain_model, no_guide), DATA)
    torch.testing.assert_close(exact.elbo(Pair(model, no_guide), DATA), scale * summed, rtol=1e-9, atol=1e-9)


def test_a_recording_gives_the_same():
    program = CHAINS["a chain"]
    recorded = with_gradients(lambda: TracedELBO(ExactELBO()).loss_and_grads(program.model, program.guide, DATA))
    torch.testing.assert_close(recorded, sums(ExactELBO(), program), rtol=1e-9, atol=1e-9)


def test_the_cost_of_a_chain_grows_with_its_length():
    costs = []
    for steps in (10, 20, 40):
        model, x, _ = long_chain(steps, 3, batch=2)
        pyro.clear_param_store()
        costs.append(exact.cost(Pair(model, no_guide), x))
        assert costs[-1].num_codes == 3**steps and costs[-1].num_slices == 1
        assert exact.elbo_cost(Pair(model, no_guide), x).operations >= costs[-1].operations
    for growth in ([cost.operations for cost in costs], [cost.bytes for cost in costs]):
        assert growth[2] - growth[1] == 2 * (growth[1] - growth[0]) > 0


def test_what_data_share_without_an_end_is_refused():
    """With a latent outside of a plate and one of the guide inside of it, the codes of all data are summed together."""

    def model(x):
        g = pyro.sample("g", dist.Bernoulli(logits=weights(2)[0]))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", one_hot(weights(3)))
            pyro.sample("x", dist.Normal(g + y[..., 0], 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", one_hot(x[:, :3]))

    with pytest.raises(ValueError, match=r"'g' outside of the plate\(s\) \['data'\] in one term with 'y' inside"):
        ExactELBO().loss(model, guide, DATA)


def test_scales_inside_of_a_logarithm_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", one_hot(weights(3)))
            with poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(y[..., 0], 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match="share one scale"):
        ExactELBO().loss(model, no_guide, DATA)


def test_a_state_that_both_programs_exclude_leaves_gradients_finite():
    """Its cost is the lowest number for each code before it, and the sum of these numbers is infinite."""
    excluded = torch.tensor([-torch.inf, 0.0, 0.0]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            for _ in pyro.markov(range(1)):
                a = pyro.sample("a", one_hot(weights(3)))
                b = pyro.sample("b", one_hot(a @ weights(3, 3) + excluded))
                pyro.sample("x", dist.Normal(a @ weights(3) + b @ weights(3, 3)[0], 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            for _ in pyro.markov(range(1)):
                pyro.sample("a", one_hot(x[:, :3]))
                pyro.sample("b", one_hot(weights(3, 2)[:, 0] + excluded))

    joint = Program(without_markov(model), without_markov(guide))
    found = sums(ExactELBO(), Program(model, guide))
    torch.testing.assert_close(found, sums(ExactELBO(), joint), rtol=1e-9, atol=1e-9)
