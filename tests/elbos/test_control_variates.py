"""REBAR and RELAX: the published formulas with the same noise, unbiasedness, and the learning of control variates."""

import copy
import dataclasses
import math
import operator

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI
from scipy import stats
from torch import nn

from pyro_gvae.distributions.parameters import gumbel_like
from pyro_gvae.elbos.control_variates import REBAR, RELAX, relative_perturbed_logits
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.estimators import estimator, own_state
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.step import make_step

D = 5
SHAPES = [(1, 2), (1, 3), (3, 2), (3, 3)]  # (N, K)
LOSSES = {"rebar": REBAR, "relax": RELAX}
TYPES = {"dtype": torch.float64}


class Rows:
    """One datum, B times: the rows of `logits` get B independent estimates of the same gradient."""

    def __init__(self, num_latents, num_categories, batch_size):
        torch.manual_seed(3)
        size = num_latents * num_categories
        layers = [nn.Flatten(-2), nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, D)]
        self.decoder = nn.Sequential(*layers).double()
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.mul_(4.0)
        self.prior = torch.randn(num_latents, num_categories, **TYPES).requires_grad_()
        self.logits = torch.randn(num_latents, num_categories, **TYPES).expand(batch_size, -1, -1).clone()
        self.logits.requires_grad_()
        self.x = torch.rand(D, **TYPES).round().expand(batch_size, -1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.logits).to_event(1))

    def log_joint(self, codes):
        """Compute log p(x, z) with plain torch."""
        likelihood = -F.binary_cross_entropy_with_logits(
            self.decoder(codes), self.x.expand(*codes.shape[:-2], D), reduction="none"
        )
        return likelihood.sum(-1) + (codes * F.log_softmax(self.prior, -1)).sum((-2, -1))

    def parameters(self):
        return [self.logits, self.prior, *self.decoder.parameters()]

    def gradients(self, elbo, seed=0):
        """Return the gradients of the ELBO with respect to all parameters."""
        own = list(own_state(elbo).parameters())
        for parameter in [*self.parameters(), *own]:
            parameter.grad = None
        torch.manual_seed(seed)
        elbo.loss_and_grads(self.model, self.guide, self.x)
        return [-parameter.grad for parameter in self.parameters()]


def new_loss(name, rows, **options):
    """Return a loss with a nonzero network, and a scale and a temperature that differ from the initial ones."""
    elbo = LOSSES[name](**options)
    rows.gradients(elbo)  # its type and width
    with torch.no_grad():
        for parameter in elbo.own.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return elbo


def standard_errors(samples, expected):
    """Return how many standard errors the mean of samples (B, ...) is off, and their largest relative size."""
    error = samples.std(0) / len(samples) ** 0.5
    return ((samples.mean(0) - expected).abs() / error).max(), (error / expected.abs().max()).max()


# The published formulas, step by step.


def conditional_heights(log_pi, codes, exponentials):
    """Compute z~ given b (Tucker et al. 2017, appendix B; Grathwohl et al. 2018, appendix B) from E ~ Exp(1)^K."""
    total = log_pi.exp().sum(-1, keepdim=True)
    first = (exponentials * codes).sum(-1, keepdim=True)
    winner = -(first / total).log()
    others = -(exponentials / log_pi.exp() + first / total).log()
    return torch.where(codes > 0, winner, others)


def tied_exponentials(log_pi, codes, perturbed):
    """Return the E for which z~ equals z."""
    total = log_pi.exp().sum(-1, keepdim=True)
    top = (perturbed * codes).sum(-1, keepdim=True)
    others = ((-perturbed).exp() - (-top).exp()) * log_pi.exp()
    return torch.where(codes > 0, (-top).exp() * total, others)


def published(rows, noise, f, c, eta, *, tied=True, whole=True):
    """Compute g of Tucker et al. 2017, eq. 7, for logits (B, N, K) by autograd; noise (P, B, N, K)."""
    logits = rows.logits.detach().expand_as(noise).clone().requires_grad_()
    log_pi = torch.log_softmax(logits, -1)
    z = log_pi + noise
    codes = F.one_hot(z.argmax(-1), z.shape[-1]).to(z)
    free = torch.empty_like(z).exponential_()
    exponentials = tied_exponentials(log_pi, codes, z).detach() if tied else free
    z_tilde = conditional_heights(log_pi, codes, exponentials)
    if tied:
        torch.testing.assert_close(z_tilde, z, rtol=1e-6, atol=1e-6)
    log_q = (codes * log_pi).sum((-2, -1))
    c_z, c_tilde = c(z), c(z_tilde)

    def gradient(value):
        return torch.autograd.grad(value.sum(), logits, create_graph=True)[0]

    score = gradient(log_q)
    g = (f(codes).detach() - eta * c_tilde)[..., None, None] * score + eta * gradient(c_z)
    return g - eta * gradient(c_tilde) if whole else g


def control(rows, own):
    def c(z):
        soft = torch.softmax(z / own.log_temperature.exp(), -1)
        value = rows.log_joint(soft)
        if own.network is not None:
            network = own.network
            value = value + torch.tanh(soft.flatten(-2) @ network.weight.T + network.bias) @ network.output
        return value

    return c


def entropy_gradient(rows):
    logits = rows.logits.detach().requires_grad_()
    return torch.autograd.grad(dist.Categorical(logits=logits).entropy().sum(), logits)[0]


def noise_of(rows, num_particles, seed=0):
    torch.manual_seed(seed)
    return gumbel_like(rows.logits.detach(), torch.Size((num_particles, *rows.logits.shape)))


@torch.no_grad()
def reinforce(rows):
    """Compute f(b) grad log q(b) for one code, with respect to logits."""
    z = torch.log_softmax(rows.logits, -1) + noise_of(rows, 1)
    codes = F.one_hot(z.argmax(-1), z.shape[-1]).to(z)
    return (rows.log_joint(codes)[..., None, None] * (codes - rows.logits.softmax(-1)))[0]


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(("num_latents", "num_categories"), SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_published_formula(name, num_latents, num_categories, num_particles):
    rows = Rows(num_latents, num_categories, batch_size=4)
    elbo = new_loss(name, rows, num_particles=num_particles)
    own = elbo.own
    found = rows.gradients(elbo)
    g = published(rows, noise_of(rows, num_particles), rows.log_joint, control(rows, own), own.eta)
    torch.testing.assert_close(found[0], g.mean(0) + entropy_gradient(rows), rtol=1e-6, atol=1e-6)

    zero = published(rows, noise_of(rows, num_particles), rows.log_joint, control(rows, own), 0.0).detach()
    loss = (g.square() + zero.square()).mean(0).sum().log()
    for parameter, expected in zip(own.parameters(), torch.autograd.grad(loss, list(own.parameters())), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", LOSSES)
def test_own_gradients_are_finite_differences_of_the_squared_gradients_logarithm(name):
    rows = Rows(2, 3, batch_size=3)
    elbo = new_loss(name, rows)
    rows.gradients(elbo)
    entropy = entropy_gradient(rows)
    for parameter in own_state(elbo).parameters():
        flat, found = parameter.detach().view(-1), parameter.grad.view(-1)
        index = len(flat) // 2
        logarithms = []
        without = reinforce(rows)
        for step in (1e-5, -1e-5):
            flat[index] += step
            logarithms.append(((rows.gradients(elbo)[0] - entropy).square() + without.square()).sum().log().item())
            flat[index] -= step
        assert found[index].item() == pytest.approx((logarithms[0] - logarithms[1]) / 2e-5, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_model_gets_the_gradient_of_its_density_at_the_codes_alone(name):
    rows = Rows(3, 3, batch_size=4)
    elbo = new_loss(name, rows, num_particles=2)
    _, *found = rows.gradients(elbo)
    z = torch.log_softmax(rows.logits.detach(), -1) + noise_of(rows, 2)
    codes = F.one_hot(z.argmax(-1), z.shape[-1]).to(z)
    _, *parameters = rows.parameters()
    expected = torch.autograd.grad(rows.log_joint(codes).mean(0).sum(), parameters)
    torch.testing.assert_close(found, list(expected), rtol=1e-10, atol=1e-10)


def test_without_its_scale_it_is_reinforce():
    rows = Rows(3, 3, batch_size=4)
    elbo = new_loss("rebar", rows)
    with torch.no_grad():
        elbo.own.eta.zero_()
    expected = reinforce(rows) + entropy_gradient(rows)
    torch.testing.assert_close(rows.gradients(elbo)[0], expected, rtol=1e-10, atol=1e-10)


# The law of the noise. Each p-value is below 1e-6 by chance once in a million; there are fewer than 30 of them.


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "fresh"])
def test_the_noise_of_conditional_heights_has_its_law_given_every_code(tied):
    torch.manual_seed(5)
    log_pi = torch.log_softmax(torch.tensor([1.0, -0.5, 0.2], **TYPES), -1).expand(20_000, -1)
    z = log_pi + gumbel_like(log_pi, log_pi.shape)
    codes = F.one_hot(z.argmax(-1), 3).to(z)
    exponentials = tied_exponentials(log_pi, codes, z) if tied else torch.empty_like(z).exponential_()
    for winner in range(3):
        given = exponentials[codes[:, winner] > 0]
        assert all(stats.kstest(given[:, k].numpy(), "expon").pvalue > 1e-6 for k in range(3))
        assert torch.corrcoef(given.T).fill_diagonal_(0).abs().max() < 5 / len(given) ** 0.5
    z_tilde = conditional_heights(log_pi, codes, exponentials)
    assert torch.equal(z_tilde.argmax(-1), codes.argmax(-1))
    for k in range(3):
        assert stats.kstest(z_tilde[:, k].numpy(), "gumbel_r", (log_pi[0, k].item(),)).pvalue > 1e-6
    losers = z_tilde[codes[:, 0] == 0][:, 0]  # the negative control
    assert stats.kstest(losers.numpy(), "gumbel_r", (log_pi[0, 0].item(),)).pvalue < 1e-6


def test_perturbed_logits_choose_categories_as_often_as_they_should():
    torch.manual_seed(6)
    log_pi = torch.log_softmax(torch.tensor([[[1.0, -0.5, 0.2]]], **TYPES), -1)
    perturbed = relative_perturbed_logits(log_pi, gumbel_like(log_pi, torch.Size((20_000, *log_pi.shape))))
    assert torch.equal(perturbed.amax(-1), torch.zeros(20_000, 1, 1, **TYPES))
    counts = (perturbed == 0).sum(0).flatten()
    assert stats.chisquare(counts.numpy(), 20_000 * log_pi.exp().flatten().numpy()).pvalue > 1e-6


# Means of estimates.


@pytest.mark.parametrize("name", LOSSES)
def test_rows_are_unbiased_whatever_was_learned(name):
    """Losses in their initial state are tested at several N and K in `tests/estimators/test_unbiased.py`."""
    num_latents, num_categories = 3, 3
    rows = Rows(num_latents, num_categories, batch_size=40_000)
    found = rows.gradients(new_loss(name, rows))
    expected = rows.gradients(ExactELBO())
    distance, length = standard_errors(found[0], expected[0][0])
    assert distance < 5 and length < 0.05


@pytest.mark.parametrize("whole", [True, False], ids=["published", "without grad c(z~)"])
def test_the_test_of_the_mean_notices_a_missing_term(whole):
    rows = Rows(2, 3, batch_size=20_000)
    own = new_loss("rebar", rows).own
    g = published(rows, noise_of(rows, 1), rows.log_joint, control(rows, own), own.eta, tied=False, whole=whole)
    expected = rows.gradients(ExactELBO())[0] - entropy_gradient(rows)
    distance, _ = standard_errors(g.detach()[0], expected[0])
    assert (distance < 5) == whole


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_all_parameters_are_unbiased(name):
    torch.manual_seed(1)
    vae = CategoricalVAE(D, 2, 3, (4,), learn_prior=True).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.7)
    x = torch.rand(3, D, **TYPES).round()
    parameters = list(vae.parameters())
    model, guide, elbo = estimator(name, num_particles=200).bind(vae)
    traced = TracedELBO(elbo)

    def gradients(loss):
        vae.zero_grad()
        loss.loss_and_grads(model, guide, x)
        return torch.cat([parameter.grad.flatten() for parameter in parameters])

    with pyro.get_param_store().scope():
        samples = torch.stack([gradients(traced) for _ in range(100)])
        expected = gradients(ExactELBO())
    assert traced.num_recordings == 1
    moves = samples.std(0) > 1e-9
    distance, length = standard_errors(samples[:, moves], expected[moves])
    assert distance < 5 and length < 0.05
    torch.testing.assert_close(samples[:, ~moves].mean(0), expected[~moves], rtol=1e-9, atol=1e-9)


# Learning of the control variates.


def total_variance(rows, elbo):
    return rows.gradients(elbo, seed=99)[0].var(0).sum().item()


@pytest.mark.parametrize("name", LOSSES)
def test_variance_falls_below_that_of_reinforce(name):
    few, many = Rows(3, 3, batch_size=50), Rows(3, 3, batch_size=2_000)
    elbo = LOSSES[name]()
    few.gradients(elbo)
    before = total_variance(many, elbo)
    optimizer = torch.optim.Adam(elbo.own.parameters(), lr=0.02)
    for seed in range(200):
        few.gradients(elbo, seed)
        optimizer.step()
    after = total_variance(many, elbo)
    with torch.no_grad():
        elbo.own.eta.zero_()
    reinforce = total_variance(many, elbo)
    assert after < 0.9 * before and after < 0.5 * reinforce


@pytest.mark.parametrize(("num_latents", "num_categories", "batch_size"), [(1, 2, 1), (3, 3, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_steps_that_an_optimizer_does_not_rescale_are_small(name, num_latents, num_categories, batch_size):
    """RAdam's first five steps are plain gradient descent, and log p of an image is hundreds of nats."""
    rows = Rows(num_latents, num_categories, batch_size=batch_size)
    rows.model = poutine.scale(rows.model, 1e4)
    elbo = LOSSES[name]()
    for seed in range(50):
        rows.gradients(elbo, seed)
        assert abs(elbo.own.eta.grad.item()) < 2.5
        assert all(parameter.grad.norm() < 10 for parameter in elbo.own.parameters())


@pytest.mark.parametrize("traced", [False, True], ids=["plain", "traced"])
@pytest.mark.parametrize("name", LOSSES)
def test_stock_svi_trains_what_a_loss_learns(name, traced):
    vae = CategoricalVAE(D, 2, 3, (4,))
    model, guide, elbo = estimator(name).bind(vae)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TracedELBO(elbo) if traced else elbo)
    x = torch.rand(4, D).round()
    svi.step(x)
    before = copy.deepcopy(elbo.own.state_dict())
    for _ in range(3):
        svi.step(x)
    assert all(not torch.equal(before[key], value) for key, value in elbo.own.state_dict().items())


@pytest.mark.parametrize("name", LOSSES)
def test_our_step_trains_what_a_loss_learns(name):
    """The loss learns in the type of the program, which differs from the type that it was created with."""
    dtype = torch.float64
    vae, elbo = CategoricalVAE(D, 2, 3, (4,)).to(dtype), LOSSES[name]()
    step = make_step(vae, dataclasses.replace(estimator(name), elbo=lambda: elbo), lr=1e-2)
    before = [parameter.detach().clone() for parameter in own_state(elbo).parameters()]
    for _ in range(3):
        step(torch.rand(4, D, dtype=dtype).round())
    for old, new in zip(before, own_state(elbo).parameters(), strict=True):
        assert new.dtype == dtype and not torch.equal(old.to(dtype), new)


@pytest.mark.parametrize("clip_norm", [None, 1e-12])
def test_what_a_loss_learns_is_not_clipped_with_the_gradient(clip_norm):
    torch.manual_seed(0)
    vae, elbo = CategoricalVAE(D, 2, 3, (4,)), REBAR()
    weight = vae.decoder[-1].bias
    start = weight.detach().clone()
    chosen = dataclasses.replace(estimator("rebar"), elbo=lambda: elbo)
    make_step(vae, chosen, lr=1e-3, optimizer="SGD", clip_norm=clip_norm)(torch.ones(4, D))
    assert torch.allclose(weight, start, rtol=0, atol=1e-6) == (clip_norm is not None)
    assert abs(elbo.own.eta.item() - 1) > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_a_recording_gives_the_same_gradients_of_everything(name):
    rows = Rows(2, 3, batch_size=4)
    elbo = new_loss(name, rows, num_particles=2)
    traced = TracedELBO(elbo)
    for seed in range(2):
        expected = [*rows.gradients(elbo, seed), *(parameter.grad.clone() for parameter in elbo.own.parameters())]
        for parameter in elbo.own.parameters():
            parameter.grad = None
        found = [*rows.gradients(traced, seed), *(parameter.grad for parameter in elbo.own.parameters())]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert traced.num_recordings == 1


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_frozen_stays(name):
    elbo = LOSSES[name]()
    elbo.own.requires_grad_(False)
    elbo.own.log_temperature.requires_grad_()
    vae = CategoricalVAE(D, 2, 3, (4,))
    step = make_step(vae, dataclasses.replace(estimator(name), elbo=lambda: elbo), lr=1e-2)
    for _ in range(2):
        step(torch.ones(4, D))
    assert elbo.own.eta.item() == 1 and elbo.own.log_temperature.item() != math.log(0.5)
    elbo.own.requires_grad_(False)
    step(torch.ones(4, D))


def test_relax_begins_as_rebar():
    rows = Rows(2, 3, batch_size=4)
    relax = RELAX()
    rows.gradients(relax)  # draws the network's weights
    torch.testing.assert_close(rows.gradients(relax), rows.gradients(REBAR()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_has_learned_is_kept(name):
    rows = Rows(2, 3, batch_size=4)
    elbo, other = new_loss(name, rows), LOSSES[name]()
    parameters = list(own_state(other).parameters())
    state = own_state(elbo).state_dict()
    assert {"eta", "log_temperature"} <= state.keys()
    own_state(other).load_state_dict(state)
    assert all(map(operator.is_, parameters, own_state(other).parameters())), "an optimizer may hold them"
    for key, value in own_state(other).state_dict().items():
        assert torch.equal(value, state[key]) and value.dtype == torch.float64
    torch.testing.assert_close(rows.gradients(other), rows.gradients(elbo), rtol=0, atol=0)


def test_a_network_of_another_width_is_refused():
    elbo = new_loss("relax", Rows(2, 3, batch_size=4))
    with pytest.raises(ValueError, match="Expected codes of 6 numbers N x K, as before, but found 9"):
        Rows(3, 3, batch_size=4).gradients(elbo)
    with pytest.raises(RuntimeError, match="size mismatch"):
        RELAX(hidden=5).own.load_state_dict(elbo.own.state_dict())


# Scales, masks and excluded categories.


@pytest.mark.parametrize("name", LOSSES)
def test_scales_and_masks_are_those_of_the_program(name):
    rows = Rows(2, 3, batch_size=4)
    elbo = new_loss(name, rows)
    plain, plainly_own = rows.gradients(elbo), [parameter.grad.clone() for parameter in elbo.own.parameters()]
    plain_model, plain_guide = rows.model, rows.guide
    rows.model, rows.guide = poutine.scale(plain_model, 3.0), poutine.scale(plain_guide, 3.0)
    torch.testing.assert_close(rows.gradients(elbo), [3 * gradient for gradient in plain])
    for parameter, gradient in zip(elbo.own.parameters(), plainly_own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)  # of a logarithm

    mask = torch.tensor([True, False, True, False])
    rows.model, rows.guide = poutine.mask(plain_model, mask), poutine.mask(plain_guide, mask)
    found = rows.gradients(elbo)[0]
    torch.testing.assert_close(found[mask], plain[0][mask])
    assert torch.equal(found[~mask], torch.zeros_like(found[~mask]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_excluded_categories_and_sharp_posteriors_leave_gradients_finite(name, dtype):
    vae = CategoricalVAE(D, 2, 3, (4,)).to(dtype)
    logits = torch.tensor([[0.0, -math.inf, 1.0], [300.0, 0.0, -300.0]], dtype=dtype).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits, validate_args=False).to_event(1))

    elbo = estimator(name, num_particles=20).elbo()
    elbo.own.log_temperature.data.fill_(math.log(0.05))
    with pyro.validation_enabled(False):
        loss = elbo.loss_and_grads(vae.model, guide, torch.ones(4, D, dtype=dtype))
    assert math.isfinite(loss)
    for parameter in (*vae.decoder.parameters(), *elbo.own.parameters(), logits):
        assert parameter.grad.isfinite().all()
    assert logits.grad[0, 1] == 0 and logits.grad[0, 0] != 0


def test_the_loss_itself_is_an_estimate_of_the_elbo():
    rows = Rows(2, 3, batch_size=20_000)
    torch.manual_seed(0)
    found = REBAR().loss(rows.model, rows.guide, rows.x) / len(rows.x)
    expected = ExactELBO().loss(rows.model, rows.guide, rows.x) / len(rows.x)
    log_pi = torch.log_softmax(rows.logits.detach(), -1)
    codes = F.one_hot((log_pi + noise_of(rows, 1)[0]).argmax(-1), 3).to(log_pi)
    assert abs(found - expected) < 5 * rows.log_joint(codes).std().item() / len(rows.x) ** 0.5
    assert found != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rebar", {"temperature": 0.0}, "positive temperature, but found 0.0"),
        ("relax", {"num_particles": 0}, "at least one particle, but found num_particles=0"),
        ("relax", {"hidden": 0}, "hidden of at least one unit, but found 0. Try 'rebar'"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        estimator(name, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_a_program_that_is_masked_out_costs_nothing(name):
    rows = Rows(2, 3, 4)
    model, guide = (poutine.mask(program, mask=False) for program in (rows.model, rows.guide))
    assert LOSSES[name]().loss_and_grads(model, guide, rows.x) == 0
    assert rows.logits.grad is None or not rows.logits.grad.any()
