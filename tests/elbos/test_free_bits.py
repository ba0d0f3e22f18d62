"""Free bits of programs with several latents, against a loop over all joint codes in stock Pyro."""

from collections.abc import Mapping
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute import Said, every_code, expected, kls, sharp
from pairs import (
    DATA,
    PROGRAMS,
    B,
    D,
    chain_guide,
    chain_model,
    no_guide,
    one_hot,
    weights,
    with_gradients,
    without_markov,
)
from torch import Tensor

from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.estimators import estimator, with_free_bits
from pyro_gvae.estimators.claims import FreeNats
from pyro_gvae.exact import Pair
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.programs import kls as kls_module
from pyro_gvae.programs.draws import lay_out_draws
from pyro_gvae.programs.kls import drawn_kls, summed_kls
from pyro_gvae.programs.layout import lay_out
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.train.step import make_step

KEPT = int((DATA[:, 0] > 0).sum())
#: How often each latent counts, through plates, scales and masks.
COUNTS = {
    "a mixture with Dirichlet weights": {"portions": 1, "centres": 1, "k": B},
    "a mixture with a plate of components": {"portions": 1, "centres": 3, "k": B},
    "a global code": {"style": 1, "y": B},
    "a subsampled plate with scale and mask": {"centre": 1, "y": 4 * KEPT, "bit": 2 * KEPT},
    "nested plates": {"topic": B, "on": B * D},
}


def formula(name: str, said: list[Said], nats: float | Mapping[str, float]) -> Tensor:
    """Compute -E_q[log p(x | z)] + the sum over latents of their count times max(nats, KL per count)."""
    loss = -expected(said, [one.log_p["x"] for one in said]).sum()
    for latent, kl in kls(said).items():
        numel = said[0].log_q[latent].numel()
        total = kl.sum() * numel / kl.numel()  # data that share the latent count it once
        count = COUNTS.get(name, {}).get(latent, B)
        loss = loss + count * (total / count).clamp_min(nats if isinstance(nats, float) else nats.get(latent, 0.0))
    return loss


def gradients(loss: Tensor) -> dict[str, Tensor]:
    leaves = {name: value.unconstrained() for name, value in pyro.get_param_store().items()}
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_loss_is_its_formula(name):
    pair = sharp(name, 1.0)
    said = every_code(pair, DATA)
    for nats in (0.02, 0.4, 3.0):
        expected_loss = formula(name, said, nats)
        loss = FreeBits(ExactELBO(), nats).differentiable_loss(pair.model, pair.guide, DATA)
        torch.testing.assert_close(loss, expected_loss)
        wanted = gradients(expected_loss)
        for parameter, found in gradients(loss).items():
            torch.testing.assert_close(found, wanted[parameter])


@pytest.mark.parametrize("name", ["two layers, bottom-up", "bits and an integer", "a global code"])
def test_the_table_has_latents_above_and_below_their_thresholds(name):
    """The control for the test above."""
    said = every_code(sharp(name, 1.0), DATA)
    losses = [formula(name, said, nats).item() for nats in (0.0, 0.02, 0.4, 3.0)]
    assert losses == sorted(losses) and losses[0] < losses[2] - 0.1 < losses[3] - 1


def test_each_latent_has_its_own_threshold():
    pair = sharp("bits and an integer")
    said = every_code(pair, DATA)
    nats = {"a": 0.7, "k": 0.1}
    chosen = with_free_bits(estimator("exact"), nats)
    model, guide, elbo = chosen.bind(pair)
    assert elbo.loss(model, guide, DATA) == pytest.approx(formula("bits and an integer", said, nats).item())
    assert elbo.loss(model, guide, DATA) != pytest.approx(formula("bits and an integer", said, 0.7).item())
    assert chosen.details == (FreeNats((("a", 0.7), ("k", 0.1))),)
    assert chosen.approximates.endswith("with 0.7 free nats for 'a' and 0.1 free nats for 'k'")
    with pytest.raises(ValueError, match="Expected free nats of the latents b, a, k, but found 'c'"):
        FreeBits(ExactELBO(), {"c": 0.1}).loss(pair.model, pair.guide, DATA)
    with pytest.raises(ValueError, match="Expected a finite number of free nats of at least 0, but found -1"):
        FreeBits(ExactELBO(), {"a": -1.0})


@pytest.mark.parametrize("name", ["two layers, bottom-up", "bits and an integer", "a global code", "nested plates"])
def test_draws_have_the_mean_and_the_gradient_of_the_sum(name):
    pyro.set_rng_seed(0)
    pair = sharp(name, 1.0)
    runs = bind_pair(pair, DATA)
    summed = summed_kls(runs, lay_out(runs))
    layout, rows = lay_out_draws(runs), []

    def flat(kls):
        value = sum(kl.value.sum() for kl in kls.values())
        return torch.cat([value.detach().reshape(1), *(own.flatten() for own in gradients(value).values())])

    for _ in range(25):
        drawn = drawn_kls(runs, layout, 80)
        assert {name: kl.weight.item() for name, kl in drawn.items()} == {
            name: kl.weight.item() for name, kl in summed.items()
        }
        rows.append(flat(drawn))
    found, wanted = torch.stack(rows), flat(summed)
    error = found.std(0) / 5
    assert ((found.mean(0) - wanted).abs() < 5 * error + 1e-9).all()
    assert (wanted.abs() > 10 * error).any()  # the control: a gradient of 0 would fail


def test_drawn_kls_have_a_baseline(monkeypatch):
    """Without a baseline the guide's gradients have a larger variance, since the KL is far from 0 here."""
    runs = bind_pair(sharp("two layers, bottom-up", 4.0), DATA)
    layout = lay_out_draws(runs)

    def variance():
        pyro.set_rng_seed(0)
        rows = []
        for _ in range(30):
            kls = drawn_kls(runs, layout, 8)
            rows.append(gradients(sum(kl.value.sum() for kl in kls.values()))["w4x4"])
        return torch.stack(rows).var(0).sum()

    found = variance()
    monkeypatch.setattr(kls_module, "above_others", lambda costs: costs)
    assert variance() > 2 * found


def test_too_many_codes_for_a_slice_are_drawn():
    torch.manual_seed(0)
    vae = HierarchicalCategoricalVAE(6, num_latents=20, num_categories=4, hidden=(5,))
    model, guide, elbo = with_free_bits(estimator("reinforce-loo"), 0.5).bind(vae)
    x = torch.ones(4, 6)
    assert elbo.loss_and_grads(model, guide, x) > estimator("reinforce-loo").bind(vae).elbo.loss(model, guide, x)
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters() if parameter.grad is not None)


@pytest.mark.usefixtures("recorded")
def test_steps_of_a_mixture_are_recorded(recwarn):
    torch.manual_seed(0)
    vae, x = GaussianMixtureVAE(6, num_components=3, latent_dim=2, hidden=(5,)), torch.rand(8, 6).round()
    step = make_step(vae, with_free_bits(estimator("reinforce-loo"), 0.3), lr=0.02)
    losses = torch.stack([step(x) for _ in range(30)])
    assert losses.isfinite().all() and losses[-5:].mean() < losses[:5].mean() and not recwarn


def test_a_recording_is_the_loss():
    pair = sharp("two layers, bottom-up")
    loss = FreeBits(ExactELBO(), 0.4)
    wanted = loss.loss(pair.model, pair.guide, DATA)
    traced = TracedELBO(loss)
    assert [traced.loss(pair.model, pair.guide, DATA) for _ in range(2)] == pytest.approx([wanted] * 2)


def test_a_chain_has_the_free_bits_of_its_joint_codes():
    def penalized(model, guide):
        loss = FreeBits(ExactELBO(), {"z0": 0.2, "z1": 0.01, "z3": 5.0})
        assert loss.loss(model, guide, DATA) > ExactELBO().loss(model, guide, DATA) + 1.0
        return with_gradients(lambda: loss.loss_and_grads(model, guide, DATA))

    found = penalized(chain_model, chain_guide)
    torch.testing.assert_close(found, penalized(*map(without_markov, (chain_model, chain_guide))), rtol=1e-9, atol=1e-9)


def test_a_latent_that_the_guide_lacks_has_the_kl_of_its_exact_posterior():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", one_hot(weights(3)))
            pyro.sample("x", dist.Normal(z @ weights(3), 1.0), obs=x[:, 0])

    def by_hand():
        prior = weights(3).log_softmax(-1)
        joint = prior + dist.Normal(weights(3), 1.0).log_prob(DATA[:, :1])
        posterior = joint.log_softmax(-1)
        kl = (posterior.exp() * (posterior - prior)).sum(-1).mean()
        loss = -joint.logsumexp(-1).sum() + B * (2.0 - kl)
        loss.backward()
        return loss.detach()

    loss = FreeBits(ExactELBO(), 2.0)
    found = with_gradients(lambda: loss.loss_and_grads(model, no_guide, DATA))
    torch.testing.assert_close(found, with_gradients(by_hand), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["exact", "reinforce-loo", "reinmax"])
def test_what_an_autoguide_computes_has_one_kl_with_its_auxiliary_draw(name):
    """The oracle is the same distribution as one statement, with the same random numbers."""

    def model(x):
        width = pyro.sample("width", dist.Gamma(torch.tensor(200.0).double(), 200.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([0.1, 0.4]).double()))
            pyro.sample("x", dist.Normal(z[..., 0], 1 + width), obs=x[:, 0])

    def guide(x, in_one):
        loc = pyro.param("loc", torch.tensor(0.1).double())
        if in_one:
            pyro.sample("width", dist.LogNormal(loc, 0.02))
        else:
            log = pyro.sample("width_unconstrained", dist.Normal(loc, 0.02), infer={"is_auxiliary": True})
            pyro.sample("width", dist.Delta(log.exp(), log_density=-log))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2).double()))

    found = []
    for in_one in (True, False):
        bound = with_free_bits(estimator(name), {"width": 5.0, "z": 0.1}).bind(
            Pair(model, partial(guide, in_one=in_one))
        )
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = bound.elbo.loss_and_grads(bound.model, bound.guide, DATA)
        found.append(torch.stack([torch.tensor(loss).double(), pyro.param("loc").grad]))
    torch.testing.assert_close(found[1], found[0])
