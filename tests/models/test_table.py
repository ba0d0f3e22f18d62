"""Tables: scores in the units of the values, against torch's distributions cell by cell and stock Pyro."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from rows import COLUMNS, D, brute_force, cell, observation, rows

from pyro_gvae import CategoricalVAE, estimator, exact
from pyro_gvae.evaluate.predictive import moments
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.joint_vae import JointVAE
from pyro_gvae.models.observations import as_observation
from pyro_gvae.models.table import Column, TableObservation
from pyro_gvae.train.step import make_step


def test_rows_are_scored_as_their_values_are_cell_by_cell():
    built, x = observation(), rows(9)
    natural = torch.randn(5, 1, built.natural_dim(D), dtype=torch.float64)
    codes_by_rows = built(natural).log_prob(x)  # one product
    assert codes_by_rows.shape == (5, 9)
    torch.testing.assert_close(codes_by_rows, brute_force(built, natural, x), atol=1e-8, rtol=0)
    torch.testing.assert_close(built(natural.squeeze(1)).outer_log_prob(x), codes_by_rows, atol=1e-8, rtol=0)
    paired = torch.randn(9, built.natural_dim(D), dtype=torch.float64)
    torch.testing.assert_close(built(paired).log_prob(x), brute_force(built, paired, x), atol=1e-8, rtol=0)
    stacked = torch.randn(2, 5, 1, built.natural_dim(D), dtype=torch.float64)
    by_einsum = built(stacked).log_prob(x.expand(2, 1, 9, D))
    torch.testing.assert_close(by_einsum, brute_force(built, stacked, x.expand(2, 1, 9, D)), atol=1e-8, rtol=0)
    assert built(natural).log_prob(torch.full((9, D), math.nan)).abs().max() == 0


def test_single_precision_loses_nothing_that_counts():
    built, x = observation(torch.float32), rows(50)
    torch.nn.init.constant_(built.log_scale, math.log(0.02))  # so that terms of thousands are subtracted
    natural = torch.randn(5, 1, built.natural_dim(D))
    natural[..., 6:8] = x[0, [1, 4]].nan_to_num(0.5).float()
    found = built(natural).log_prob(x.float())
    expected = brute_force(built.double(), natural.double(), x.float().double())
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-6)


def test_the_exact_loss_and_its_gradients_are_those_of_stock_pyro():
    built, x = observation(), rows(7)
    vae = CategoricalVAE(D, 2, 3, (5,), built).double()

    def model(x):
        with pyro.plate("data", len(x)):
            codes = [pyro.sample(f"z{n}", dist.Categorical(logits=vae.prior_logits[n])) for n in range(2)]
            natural = vae.decoder(torch.stack(torch.broadcast_tensors(*map(_one_hot, codes)), -2))
            for place, column in enumerate(COLUMNS):
                family, value = cell(built, column, natural)
                values = x[:, place]
                with pyro.poutine.mask(mask=~values.isnan()):
                    pyro.sample(f"x{place}", family, obs=torch.where(values.isnan(), 1.0, value(values)))

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = vae.encoder(built.inputs(x))
            for n in range(2):
                pyro.sample(f"z{n}", dist.Categorical(logits=logits[:, n]))

    def _one_hot(code):
        return torch.nn.functional.one_hot(code, 3).double()

    stock = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        config_enumerate(model, "parallel"), config_enumerate(guide, "parallel"), x
    )
    ours = -exact.elbo(vae, x).sum()
    torch.testing.assert_close(ours, stock, atol=1e-8, rtol=0)
    parameters = [*vae.parameters()]
    for mine, theirs in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(stock, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=0)


def test_what_is_drawn_has_the_mean_that_is_said():
    built = observation()
    row = built(torch.randn(built.natural_dim(D), dtype=torch.float64))
    drawn = row.sample((40_000,))
    built.check(drawn)
    for place, column in enumerate(COLUMNS):
        cells = drawn[:, place]
        if column.kind == "categorical":
            assert cells.mode().values == row.mean[place]
        else:
            assert (cells.mean() - row.mean[place]).abs() < 5 * cells.std() / 200, column.name


@pytest.mark.parametrize(
    ("place", "value", "kind"),
    [
        (0, 3.0, "categorical"),
        (1, math.inf, "real"),
        (2, 0.5, "binary"),
        (3, -1.0, "count"),
        (4, -math.inf, "positive"),
    ],
)
def test_cells_of_another_kind_are_refused_by_row_and_column(place, value, kind):
    x = torch.zeros(3, D)
    built = TableObservation(COLUMNS)
    built.check(x)
    x[1, place] = value
    with pytest.raises(ValueError, match=f"with {kind} cells in column '{COLUMNS[place].name}', but found .* in row 2"):
        built.check(x)
    with pytest.raises(ValueError, match="Expected x whose cells are missing"):
        built(torch.zeros(built.natural_dim(D))).log_prob(x)


@pytest.mark.parametrize(
    "program",
    [
        lambda built: BernoulliVAE(D, 3, (5,), observation=built),
        lambda built: HierarchicalCategoricalVAE(D, 2, 2, 3, (5,), observation=built),
        lambda built: JointVAE(D, 1, 3, 2, (5,), observation=built),
        lambda built: GaussianMixtureVAE(D, 3, 2, (5,), observation=built),
    ],
)
def test_every_ready_program_takes_tables_with_missing_cells(program):
    vae = program(observation(torch.float32))
    assert exact.elbo(vae, rows(6).float()).isfinite().all()


@pytest.mark.usefixtures("recorded")
def test_steps_on_missing_cells_are_recorded_and_validated():
    """Recorded steps run without Pyro; a step whose data may exceed the previous range is checked first."""
    vae = CategoricalVAE(D, 2, 3, (5,), observation(torch.float32))
    step, x = make_step(vae, estimator("exact")), rows(8).float()
    losses = [step(x).item() for _ in range(60)]
    assert losses[-1] < losses[0]
    x = x.nan_to_num(0.0)
    step(x)
    x[0, 2] = 1000.0
    with pytest.raises(ValueError, match="binary cells in column 'sex'"):
        step(x)


WORDS = [Column("tea", "word", (), 2.0, 1.0), Column("sex", "binary", ("f", "m")), Column("visits", "count", (), 1.0)]
WORDS += [Column("rose", "word", (), 0.5, 1.0), Column("moon", "word", (), 0.0, 1.0)]


def test_words_are_multinomial_given_their_number_beside_other_columns():
    built = TableObservation(WORDS).double()
    torch.manual_seed(0)
    natural = torch.randn(4, 1, built.natural_dim(5), dtype=torch.float64)  # sex, visits, words
    row = built(natural)
    x = torch.tensor([[2.0, 1.0, 3.0, 0.0, 1.0], [0.0, 0.0, math.nan, 0.0, 0.0]]).double()
    means = torch.tensor([2.0, 0.5, 1e-6]).double().log()
    dispersion = built.log_dispersion.exp()[0]
    counts = dist.NegativeBinomial(dispersion, logits=1.0 + natural[:, 0, 1] - dispersion.log())
    expected = torch.stack(
        [
            dist.Bernoulli(logits=natural[:, 0, 0]).log_prob(x[0, 1])
            + counts.log_prob(x[0, 2])
            + dist.Multinomial(3, logits=natural[:, 0, 2:] + means).log_prob(x[0, [0, 3, 4]]),
            dist.Bernoulli(logits=natural[:, 0, 0]).log_prob(x[1, 1]),  # a row without words
        ],
        1,
    )
    torch.testing.assert_close(row.log_prob(x), expected, atol=1e-8, rtol=0)
    assert built.inputs(x).shape == (2, built.input_dim(5))
    assert built.inputs(x)[:, -2:].tolist() == [[0, 0], [0, 1]]  # sex and visits may be missing, words may not

    drawn = built(natural[0, 0]).sample((20_000,))
    built.check(drawn)
    assert set(drawn[:, [0, 3, 4]].sum(-1).tolist()) == {2.0}  # 2.5 words on average, rounded to the even number
    assert ((drawn.mean(0) - built(natural[0, 0]).mean).abs() < 5 * drawn.std(0) / 20_000**0.5 + 1e-5).all()
    found = moments(built(natural[0, 0]), tuple(WORDS))[:2]
    torch.testing.assert_close(found, torch.stack([drawn[:, 0].mean(), drawn[:, 0].square().mean()]), rtol=0.05, atol=0)
    x[0, 4] = math.nan
    with pytest.raises(ValueError, match="Expected data with word cells in column 'moon', but found nan in row 1"):
        built.check(x)


def test_a_table_of_words_alone_is_a_bag_of_words():
    built, natural = TableObservation(WORDS[-2:]).double(), torch.randn(4, 1, 2).double()
    x = torch.tensor([[2.0, 1.0], [0.0, 5.0], [0.0, 0.0]]).double()
    same = as_observation("multinomial")(natural + built.log_means())
    torch.testing.assert_close(built(natural).log_prob(x), same.log_prob(x), atol=1e-10, rtol=0)
