"""A latent that another one masks counts as if it were not there, and no program may draw it only sometimes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from table import DATA, PROGRAMS, linear, weights

from pyro_gvae import estimator, exact
from pyro_gvae.programs.draws import lay_out_draws
from pyro_gvae.programs.kls import drawn_kls, summed_kls
from pyro_gvae.programs.layout import lay_out
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.programs.usage import drawn_usage, summed_usage

SENTENCE = r"same latents whatever their values, but found 'w' .* Try drawing it always"


@torch.no_grad()
def test_kls_and_the_use_of_categories_are_those_of_data_that_have_the_latent():
    pyro.set_rng_seed(0)
    runs = bind_pair(PROGRAMS["a code that a bit masks"].pair, DATA)
    there, log_q, log_p = DATA[:, 1].sigmoid(), linear(3, DATA).log_softmax(-1), weights(3).log_softmax(-1)
    kl = (there * (log_q.exp() * (log_q - log_p)).sum(-1)).sum()
    use = (there.unsqueeze(-1) * log_q.exp()).sum(0) / there.sum()
    layout, draws = lay_out(runs), lay_out_draws(runs)
    summed, use_of_b = summed_kls(runs, layout)["b"], summed_usage(runs, layout)[1]
    torch.testing.assert_close(torch.stack([summed.value.sum(), summed.weight]), torch.stack([kl, there.sum()]))
    torch.testing.assert_close(use_of_b.probs[0], use)
    torch.testing.assert_close(use_of_b.num_data, there.sum())
    drawn = [(drawn_kls(runs, draws, 50)["b"], drawn_usage(runs, draws, 50)[1]) for _ in range(50)]
    found = torch.stack([torch.stack([one.value.sum(), one.weight, used.num_data]) for one, used in drawn])
    error = found.std(0) / 50**0.5
    assert ((found.mean(0) - torch.stack([kl, there.sum(), there.sum()])).abs() < 5 * error).all()
    assert (kl > 10 * error[0]).all()  # the control: 0 would fail


@torch.no_grad()
def test_the_kl_of_a_continuous_latent_counts_where_it_is_there():
    pyro.set_rng_seed(0)
    runs = bind_pair(PROGRAMS["a normal that a bit masks"].pair, DATA)
    there = linear(1, DATA)[..., 0].sigmoid().sum()
    torch.testing.assert_close(summed_kls(runs, lay_out(runs))["z"].weight, there)
    weights_of_z = torch.stack([drawn_kls(runs, lay_out_draws(runs), 50)["z"].weight for _ in range(50)])
    assert (weights_of_z.mean() - there).abs() < 5 * weights_of_z.std() / 50**0.5


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes:UserWarning")
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("name", ["exact", "reinforce-loo", "reinforce-wor", "top-c"])
def test_a_program_that_draws_a_latent_only_sometimes_is_refused(name, value):
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
        if z == value:
            pyro.sample("w", dist.Bernoulli(x.new_tensor(0.8)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        if pyro.sample("z", dist.Bernoulli(x.new_tensor(0.4))) == value:
            pyro.sample("w", dist.Bernoulli(x.new_tensor(0.5)))

    pyro.set_rng_seed(0)
    pair, x = exact.Pair(model, guide), torch.tensor(0.7)
    bound_model, bound_guide, elbo = estimator(name).bind(pair)
    with pytest.raises(ValueError, match=SENTENCE):
        for _ in range(50):
            elbo.loss(bound_model, bound_guide, x)
    with pytest.raises(ValueError, match=SENTENCE):
        exact.log_evidence(pair, x)


def test_a_masked_datum_of_a_chain_adds_nothing():
    """Its guide's latents have an entropy, which must not count either."""
    x = torch.tensor([[0.3, -1.0], [1.0, 0.5]])

    def pair(mask):
        def program(x, has_data):
            with pyro.plate("data", len(x)), poutine.mask(mask=mask):
                z = torch.zeros(len(x))
                for t in pyro.markov(range(2)):
                    z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.5 * z + (0.1 if has_data else 0.0)))
                    if has_data:
                        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

        return exact.Pair(lambda x: program(x, True), lambda x: program(x, False))

    found = exact.elbo(pair(torch.tensor([True, False])), x)
    torch.testing.assert_close(found[0], exact.elbo(pair(True), x[:1])[0])
    assert found[1] == 0
