"""Uses of enumerated sites in stock Pyro other than losses: posteriors, their samples, graphs, potentials."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, infer_discrete
from pyro.infer.discrete import TraceEnumSample_ELBO
from pyro.infer.inspect import get_model_relations
from pyro.infer.mcmc.util import initialize_model
from torch.nn.functional import one_hot

from pyro_gvae.handlers import enumerated, relax

B, N, K = 5, 2, 3
KEEP = torch.tensor([True, False, True, True, True])


class Mixing:
    """A pair with (N, K) one-hots that the model mixes; the prior may be masked for some data."""

    def __init__(self, mask=None):
        generator = torch.Generator().manual_seed(0)
        self.mask = mask
        self.logits = torch.randn(N, K, generator=generator).double()
        self.weight = 2 * torch.randn(N, K, generator=generator).double()
        self.x = 2 * torch.randn(B, generator=generator).double()

    def repeated(self, times):
        """Repeat the data."""
        self.x = self.x.repeat(times)
        self.mask = None if self.mask is None else self.mask.repeat(times)

    def mean(self, z):
        return (z * self.weight).sum((-2, -1)).sin()

    def model(self):
        prior = dist.OneHotCategorical(logits=self.logits).to_event(1)
        with pyro.plate("data", len(self.x)):
            z = pyro.sample("z", prior if self.mask is None else prior.mask(self.mask))
            pyro.sample("x", dist.Normal(self.mean(z), 0.5), obs=self.x)
        return z

    def guide(self):
        with pyro.plate("data", B):
            pyro.sample("z", dist.OneHotCategorical(logits=self.logits.cumsum(-1).expand(B, N, K)).to_event(1))

    def posterior(self):
        """Compute p(z | x) (B, S) by a loop over the codes (S, N, K)."""
        codes = torch.stack([one_hot(torch.tensor(code), K).double() for code in itertools.product(range(K), repeat=N)])
        log_joint = []
        for z in codes:
            prior = (self.logits.log_softmax(-1) * z).sum()
            prior = prior if self.mask is None else torch.where(self.mask, prior, 0.0)
            log_joint.append(prior + dist.Normal(self.mean(z), 0.5).log_prob(self.x))
        return torch.stack(log_joint, -1).softmax(-1), codes


def exact_elbo():
    return TraceEnum_ELBO(max_plate_nesting=1)


@pytest.mark.parametrize("mask", [None, KEEP])
@pytest.mark.parametrize("handled", [enumerated, lambda model: enumerated(relax(model, temperature=0.5))])
def test_marginals_are_posteriors_of_joint_codes(mask, handled):
    """A posterior over joint codes is not the product of the marginals of its digits."""
    program = Mixing(mask)
    found = exact_elbo().compute_marginals(handled(program.model), lambda: None)["z"]
    probs, codes = program.posterior()
    assert found.batch_shape == (B,) and found.event_shape == (N, K)
    torch.testing.assert_close(found.log_prob(codes.unsqueeze(1)).exp().T, probs)
    torch.testing.assert_close(found.mean, torch.einsum("bs,snk->bnk", probs, codes))
    of_each = torch.einsum("bnk,snk->bsn", found.mean, codes).prod(-1)
    assert (of_each - probs).abs().max() > 0.05


@pytest.mark.parametrize("mask", [None, KEEP])
def test_most_probable_and_drawn_codes_of_a_posterior(mask):
    program, draws = Mixing(mask), 1000
    probs, codes = program.posterior()
    best = infer_discrete(enumerated(program.model), first_available_dim=-2, temperature=0)()
    assert torch.equal(best, codes[probs.argmax(-1)])
    program.repeated(draws)
    for sample in (
        infer_discrete(enumerated(program.model), first_available_dim=-2),
        lambda: exact_elbo().sample_posterior(enumerated(program.model), lambda: None),
    ):
        drawn = sample().unflatten(0, (draws, B))  # (draws, B, N, K)
        frequency = (drawn.unsqueeze(2) == codes).all(-1).all(-1).double().mean(0)  # (B, S)
        standard_error = (probs * (1 - probs) / draws).sqrt() + 1 / draws  # for codes that are rarely drawn
        assert ((frequency - probs).abs() < 5 * standard_error).all()


def test_whoever_records_a_sample_of_the_posterior_sees_codes():
    program = Mixing()
    model = enumerated(program.model)
    by_sampling = exact_elbo().sample_posterior
    for run in (
        infer_discrete(model, first_available_dim=-2),
        infer_discrete(enumerated(poutine.trace(program.model)), first_available_dim=-2),
        lambda: by_sampling(model, lambda: None),
    ):
        trace = poutine.trace(run).get_trace()
        trace.compute_log_prob()
        z = trace.nodes["z"]
        assert z["value"].shape == (B, N, K) and (z["value"].sum(-1) == 1).all()
        expected = (program.logits.log_softmax(-1) * z["value"]).sum((-2, -1))
        torch.testing.assert_close(z["log_prob"], expected)


def test_samples_that_are_kept_do_not_change_the_loss():
    program = Mixing()
    for guide in (lambda: None, enumerated(program.guide)):
        kept = TraceEnumSample_ELBO(max_plate_nesting=1)
        loss = kept.loss(enumerated(program.model), guide)
        assert loss == pytest.approx(exact_elbo().loss(enumerated(program.model), guide), rel=1e-9)
    kept.loss(enumerated(program.model), lambda: None)
    assert kept.sample_saved().shape == (B, N, K)


def chain(is_one_hot):
    """Build a hidden Markov model, written with one-hots or with stock Pyro's integers."""
    generator = torch.Generator().manual_seed(1)
    transition, x = torch.randn(K, K, generator=generator).softmax(-1), 2 * torch.randn(6, generator=generator)

    def model():
        state, states = torch.eye(K)[0], []
        for t in pyro.markov(range(len(x))):
            if is_one_hot:
                state = pyro.sample(f"z_{t}", dist.OneHotCategorical(probs=state @ transition))
            else:
                number = pyro.sample(f"z_{t}", dist.Categorical(state @ transition), infer={"enumerate": "parallel"})
                state = torch.eye(K)[number]
            states.append(state)
            pyro.sample(f"x_{t}", dist.Normal(state @ torch.tensor([-1.0, 0.0, 2.0]), 1.0), obs=x[t])
        return states

    return model


def test_chains_have_the_posterior_of_stock_integers():
    one_hots, integers = enumerated(chain(True)), chain(False)
    paths = [infer_discrete(model, first_available_dim=-1, temperature=0)() for model in (one_hots, integers)]
    assert torch.equal(*map(torch.stack, paths))
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    found, right = (elbo.compute_marginals(model, lambda: None) for model in (one_hots, integers))
    for name, marginal in right.items():
        torch.testing.assert_close(found[name].probs, marginal.probs)


@pytest.mark.parametrize("validate", [False, True])
def test_layers_in_the_inner_of_two_plates(validate):
    """For a site in fewer plates than there are, stock Pyro compares shapes from the middle of (N, K) on."""
    weight, x = torch.randn(K, N, K).double(), torch.randn(4, 2).double()

    def model():
        with pyro.plate("documents", 2, dim=-1):
            a = pyro.sample("a", dist.OneHotCategorical(logits=torch.zeros(N, K).double()).to_event(1))
            logits = torch.einsum("...i,ink->...nk", a.sum(-2), weight)
            b = pyro.sample("b", dist.OneHotCategorical(logits=logits).to_event(1))
            with pyro.plate("words", 4, dim=-2):
                pyro.sample("x", dist.Normal(b.sum(-2)[..., 0], 1.0), obs=x)

    def guide():
        with pyro.plate("documents", 2, dim=-1):
            for name in "ab":
                pyro.sample(name, dist.OneHotCategorical(logits=torch.zeros(2, N, K).double()).to_event(1))

    _, codes = Mixing().posterior()
    elbo = torch.zeros(()).double()
    for a, b in itertools.product(codes, codes):
        prior = (torch.einsum("i,ink->nk", a.sum(-2), weight).log_softmax(-1) * b).sum()
        likelihood = dist.Normal(b.sum(-2)[0], 1.0).log_prob(x).sum()
        elbo += (2 * (prior + N * math.log(K)) + likelihood) / len(codes) ** 2
    with pyro.validation_enabled(validate):
        found = -TraceEnum_ELBO(max_plate_nesting=2).loss(enumerated(model), enumerated(guide))
    assert found == pytest.approx(elbo.item(), rel=1e-9)


def test_a_graph_of_the_program_names_its_sites():
    assert get_model_relations(enumerated(Mixing().model))["sample_sample"] == {"z": [], "x": ["z"]}


def test_mcmc_sums_over_joint_codes():
    """Compare the potential of a global latent with that of stock Pyro with one integer per latent."""
    x = torch.tensor([-1.0, 0.2, 3.0, 2.5])

    def model(is_joint):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(N, K), 2.0).to_event(2))
        with pyro.plate("data", len(x)):
            if is_joint:
                z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(N, K)).to_event(1))
            else:
                integer = dist.Categorical(logits=torch.zeros(K))
                numbers = [pyro.sample(f"z_{n}", integer, infer={"enumerate": "parallel"}) for n in range(N)]
                z = one_hot(torch.stack(torch.broadcast_tensors(*numbers), -1), K)
            pyro.sample("x", dist.Normal((z * loc).sum((-2, -1)), 1.0), obs=x)

    at = {"loc": torch.arange(6.0).reshape(N, K) / 3}
    joint, separate = (
        initialize_model(program, model_args=(is_joint,), max_plate_nesting=1)[1](at)
        for program, is_joint in ((enumerated(model), True), (model, False))
    )
    assert joint.item() == pytest.approx(separate.item(), rel=1e-6)
