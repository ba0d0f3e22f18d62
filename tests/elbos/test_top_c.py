"""Top-C sums: exact with all codes, unbiased with fewer, and with no more variance than equally many samples."""

import draws
import problems
import pyro
import pyro.distributions as dist
import pytest
import torch
from draws import LeaveOneOut
from pairs import DATA, PROGRAMS, Program, linear, observe, one_hot, weights, with_gradients
from problems import PROBLEMS

from pyro_gvae import ExactELBO
from pyro_gvae.elbos import top_c
from pyro_gvae.elbos.top_c import TopC
from pyro_gvae.estimators import estimator
from pyro_gvae.jit.traced_elbo import TracedELBO

BERNOULLI = PROBLEMS[0]
ALL = 10_000

#: Programs whose data share no latent, so that all codes of each datum can be summed.
WITHOUT_SHARED = [name for name in PROGRAMS if name not in ("a global code", "nested plates")]


def of(elbo, program):
    return with_gradients(lambda: elbo.loss_and_grads(program.model, program.guide, DATA))


@pytest.mark.parametrize("name", WITHOUT_SHARED)
@pytest.mark.filterwarnings("ignore:Expected programs that accept codes:UserWarning")
def test_with_all_codes_it_is_the_exact_elbo(name):
    program = PROGRAMS[name]
    torch.testing.assert_close(of(TopC(num_codes=ALL), program), of(ExactELBO(), program), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_paths", [1, 100])
def test_the_mean_is_the_exact_elbo_and_its_gradient(num_paths):
    """Programs are scaled and masked here; plain ones are tested in `tests/estimators/test_unbiased.py`."""
    case = draws.case(2, 3, scaled=True)
    # With one path, a coordinate may vary in only one of 200 calls, so more calls are needed for its standard error.
    found = case.draws(TopC(num_codes=3, num_paths=num_paths), 300)
    assert draws.z_scores(found, case.exact()).abs().max() < 5
    error = found.std(0).norm() / len(found) ** 0.5
    assert error < 0.05 * case.exact().norm()


def test_the_check_finds_samples_without_their_weight(monkeypatch):
    """The negative control: the remaining codes are treated as if they had no probability."""
    case = draws.case(2, 3)
    choose = top_c._choose

    def without_samples(*args):
        chosen = choose(*args)
        return chosen._replace(weights=torch.where(chosen.is_summed, chosen.weights, 0.0))

    monkeypatch.setattr(top_c, "_choose", without_samples)
    assert draws.z_scores(case.draws(TopC(num_codes=3), 50), case.exact()).abs().max() > 10


# A code depends on a draw that depends on another code; another draw has no pathwise derivative.


def mixed_model(x):
    with pyro.plate("data", len(x)):
        count = pyro.sample("count", dist.Poisson(torch.ones(()).double()))
        y = pyro.sample("y", one_hot(weights(3)))
        c = pyro.sample("c", dist.Poisson(1 + y[..., 1]))
        k = pyro.sample("k", one_hot(linear(2, y)))
        observe(y, k, 0.3 * (c + count).unsqueeze(-1), obs=x)


def mixed_guide(x):
    with pyro.plate("data", len(x)):
        count = pyro.sample("count", dist.Poisson(1 + x[:, 0].exp() * weights(1)[0].exp()))
        y = pyro.sample("y", one_hot(linear(3, x, count.unsqueeze(-1) / 5)))
        c = pyro.sample("c", dist.Poisson(1 + y[..., 0]))
        pyro.sample("k", one_hot(linear(2, x, y) + 0.2 * c.unsqueeze(-1)))


def means_and_errors(elbo, program, calls=30):
    pyro.set_rng_seed(0)
    rows = [torch.cat([part.flatten() for part in of(elbo, program).values()]) for _ in range(calls)]
    return torch.stack(rows).mean(0), torch.stack(rows).std(0) / calls**0.5


def test_latents_before_and_after_codes_are_drawn_and_scored():
    program = Program(mixed_model, mixed_guide)
    found, error = means_and_errors(TopC(num_codes=2, num_particles=20, num_paths=20), program)
    expected, other = means_and_errors(estimator("reinforce-loo", num_particles=500).elbo(), program)
    assert ((found - expected).abs() / (error**2 + other**2).sqrt()).max() < 5


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("num_latents", "num_categories"), [(3, 3), (2, 8)])
def test_its_variance_is_not_above_that_of_as_many_samples(num_latents, num_categories, sharpness):
    """The variance is that of the gradient of q, for any q; with nothing to sum the two estimators are the same."""
    num_codes = 5
    found, samples = (
        draws.variance(elbo, num_latents, num_categories, sharpness=sharpness)
        for elbo in (TopC(num_codes=num_codes), LeaveOneOut(num_particles=num_codes + 2))
    )
    assert found < (0.9 if sharpness > 1 else 1.05) * samples


def test_codes_are_scored_without_a_graph_and_few_are_differentiated():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbo = TopC(num_codes=4, num_particles=2, num_paths=3)
    elbo.loss(vae.model, vae.guide, x)  # finds the nesting of plates
    shapes = []
    vae.decoder.register_forward_hook(lambda module, args, output: shapes.append((len(args[0]), output.requires_grad)))
    elbo.loss(vae.model, vae.guide, x)
    assert shapes == [(6, False), (3, True)]


def test_impossible_codes_add_nothing():
    logits = torch.tensor([[[0.3, 0.1, -torch.inf]]] * 2, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(1, 3).double()).to_event(1))
            scale = (z.squeeze(-2) * torch.tensor([1.0, 2.0, 0.5])).sum(-1)
            pyro.sample("x", dist.Uniform(0.0, scale, validate_args=False), obs=x)  # impossible in the third category

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))

    case = draws.Case(model, guide, torch.tensor([0.7, 0.9]).double(), [logits])
    for num_codes in (2, 3):  # all possible codes, and all
        torch.testing.assert_close(case.gradient(TopC(num_codes=num_codes)), case.exact())


def test_a_recording_gives_the_same():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    losses, gradients = [], []
    for elbo in (TopC(num_codes=3), TracedELBO(TopC(num_codes=3))):
        torch.manual_seed(5)
        vae.zero_grad()
        losses.append([elbo.loss_and_grads(vae.model, vae.guide, x) for _ in range(2)])
        gradients.append([parameter.grad for parameter in vae.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)


def test_what_the_registry_says():
    chosen = estimator("top-c", num_codes=ALL)
    assert chosen.is_unbiased and not chosen.is_exact
    for options in ({"num_codes": 0}, {"num_paths": 0}, {"num_particles": 1}):
        with pytest.raises(ValueError, match=r"Expected at least (one code|2 particles), but found"):
            estimator("top-c", **options)
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbos = chosen.elbo(), ExactELBO()
    found, exact = (problems.gradients(elbo.differentiable_loss(vae.model, vae.guide, x), vae) for elbo in elbos)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
