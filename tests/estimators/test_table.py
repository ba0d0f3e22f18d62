"""Every estimator on every program of `table`: each cell keeps its claim. Stock Pyro is the oracle.

The mean of 16 calls must be within LIMIT standard errors, which Student's t with 15 degrees of freedom exceeds as
rarely as a normal variable exceeds 5: once in 1.7 million, for each coordinate.
"""

import itertools
import math
import re
from functools import cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, FixedDirichlet, FixedNormal, in_copies, standard_errors, validated_once, with_gradients
from published import FORMULAS, M
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from table import (
    COLUMNS,
    CONTROLLED,
    DIFFERENT,
    PER_SITE,
    PROGRAMS,
    WAKES,
    WEIGHING,
    facts,
    reasons_of,
    refusal,
    site_is_random,
)

from pyro_gvae import estimator
from pyro_gvae.estimators.claims import Bias
from pyro_gvae.exact import Pair

CALLS, PARTICLES, COPIES, WARM_UP = 16, 250, 50, 2
#: Estimators that need fewer samples: top-c draws some of the remaining codes for each sample of what data share, and
#: local expectation evaluates every category of each latent; its standard errors are those of `reinforce` all the same.
FEWER = {"top-c": 60, "local-expectation": 100}
LIMIT = 8.3
TEMPERATURE = 0.6
CELLS = [(column, program) for column in COLUMNS for program in PROGRAMS]
REFUSED = [names for names in CELLS if reasons_of(*names)]
RUNNING = [names for names in CELLS if not reasons_of(*names)]


def those(names, *columns):
    return [(column, program) for column, program in names if column in columns]


def standard_errors_apart(found, other):
    """Return how many standard errors two means are apart."""
    worst = 0.0
    for name, rows in found.items():
        error = ((rows.var(0) + other[name].var(0)) / len(rows)).sqrt()
        off = (rows.mean(0) - other[name].mean(0)).abs()
        worst = max(worst, (off / (error + 1e-9 * (1 + rows.mean(0).abs()))).max().item())
    return worst


def repeated(elbo, model, guide, calls=CALLS, scale=1.0):
    """Return rows of the loss and all gradients, one per call, after calls in which a loss learns its state, if any."""
    pyro.set_rng_seed(0)
    warm_up = WARM_UP if hasattr(elbo, "own") else 0
    rows = validated_once(lambda: with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)), warm_up + calls)
    return {name: torch.stack([row[name] for row in rows[warm_up:]]) / scale for name in rows[0]}


def estimates(column, program):
    num_particles = FEWER.get(column, PARTICLES)
    model, guide, elbo = COLUMNS[column].make(num_particles=num_particles).bind(PROGRAMS[program].pair)
    return repeated(elbo, model, guide)


@cache
def stock(name):
    """Compute the exact loss and gradients with stock Pyro."""
    program = PROGRAMS[name]
    elbo = TraceEnum_ELBO(max_plate_nesting=program.nesting)
    model, guide = program.enumerable
    return with_gradients(lambda: elbo.loss_and_grads(model, config_enumerate(guide), DATA))


# ------------------------------------------------------------------------- refused


@pytest.mark.parametrize(("column", "program"), REFUSED)
def test_a_refusal_has_a_mathematical_reason(column, program):
    sentence = refusal(column, program)
    assert sentence is not None
    assert any(re.search(reason.pattern, sentence) for reason in reasons_of(column, program)), sentence


# ------------------------------------------------------------------------- exact


@pytest.mark.parametrize(("column", "program"), those(RUNNING, "exact"))
def test_sums_are_those_of_stock_pyro(column, program):
    model, guide, elbo = COLUMNS[column].make().bind(PROGRAMS[program].pair)
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
    torch.testing.assert_close(found, stock(program), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("column", "program"), those(RUNNING, "exact-evidence"))
def test_the_evidence_is_that_of_stock_pyro(column, program):
    row = PROGRAMS[program]
    model, guide, elbo = COLUMNS[column].make().bind(row.pair)
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
    stock_elbo = TraceEnum_ELBO(max_plate_nesting=row.nesting)
    summed = config_enumerate(row.enumerable.model)
    expected = with_gradients(lambda: stock_elbo.loss_and_grads(summed, lambda x: None, DATA))
    torch.testing.assert_close({name: found[name] for name in expected}, expected, rtol=1e-8, atol=1e-8)
    assert found["loss"] < stock(program)["loss"] - 1e-3


# ------------------------------------------------------------------------- all joint codes, with stock Pyro alone


def codes_of(program):
    """List the values of the discrete latents for all joint codes of a datum, or of all data if they share latents.

    Returns:
        The values by name, shape (S, *plates, ..), and the dimension whose data have their own codes, or None.
    """
    nodes = filter(site_is_random, poutine.trace(program.enumerable.guide).get_trace(DATA).nodes.values())
    apart = None if program.is_shared else -program.nesting
    digits, shapes = [], {}
    for node in nodes:
        kind = type(node["fn"])
        if kind in (dist.OneHotCategorical, dist.Categorical, dist.Bernoulli):
            shape = [1] * (program.nesting - len(node["fn"].batch_shape)) + list(node["fn"].batch_shape)
            own = [1 if dim == apart else size for dim, size in enumerate(shape, -program.nesting)]
            num_categories = 2 if kind is dist.Bernoulli else node["fn"].logits.shape[-1]
            shapes[node["name"]] = (kind, own, shape, num_categories)
            digits += [range(num_categories)] * math.prod(own)
    table = torch.tensor(list(itertools.product(*digits)))  # (S, digits of all latents)
    values = {}
    for name, (kind, own, shape, num_categories) in shapes.items():
        chosen, table = table.split([math.prod(own), table.shape[-1] - math.prod(own)], -1)
        chosen = chosen.reshape(-1, *own).expand(-1, *shape)
        one_hots = torch.nn.functional.one_hot(chosen, num_categories).double()
        values[name] = {dist.OneHotCategorical: one_hots, dist.Categorical: chosen}.get(kind, chosen.double())
    return values, apart


def tables(name, is_pathwise):
    """Compute log-probabilities of each joint code, (S, data).

    Returns:
        log p(x, z) and log q(z | x); the latter without scales and masks; and what masks leave out of log p(z).
    """
    program = PROGRAMS[name]
    model, guide = program.enumerable
    codes, apart = codes_of(program)

    kept = {0} if apart is None else {0, program.nesting + 1 + apart}

    def trace_of(run, given):
        trace = poutine.trace(poutine.condition(run, given)).get_trace(DATA)
        trace.compute_log_prob()
        return [node for node in trace.nodes.values() if site_is_random(node)]

    def summed(parts):
        """Sum each term over its plates; a term without the axis of codes counts once for each code."""
        padded = [part.reshape((1,) * (program.nesting + 1 - part.ndim) + part.shape) for part in parts]
        return sum(part.sum_to_size([size if i in kept else 1 for i, size in enumerate(part.shape)]) for part in padded)

    values = {node["name"]: node["value"] for node in trace_of(guide, codes)}
    if not is_pathwise:
        values = {name: value.detach() for name, value in values.items()}
    q, p = trace_of(guide, values), trace_of(model, values)
    own = [node["fn"].log_prob(node["value"]) for node in q if node["name"] in codes]
    masked = [node for node in p if node["name"] in codes and node["mask"] is not None]
    left_out = [node["fn"].log_prob(node["value"]) - node["log_prob"] for node in masked]
    parts = [node["log_prob"] for node in p], [node["log_prob"] for node in q], own, left_out
    return tuple(map(summed, parts))


def elbo_of_tables(name, *, with_scores):
    """Compute the ELBO and its gradient; without scores, as in a loss that samples codes and omits their scores."""

    def loss():
        joint, log_q, own, _ = tables(name, is_pathwise=True)
        weights = own.exp() if with_scores else own.exp().detach()
        elbo = (weights * (joint - log_q)).sum()
        (-elbo).backward()
        return -elbo.detach()

    return with_gradients(loss)


@pytest.mark.parametrize("program", PROGRAMS)
def test_tables_of_all_codes_are_those_of_stock_pyro(program):
    torch.testing.assert_close(elbo_of_tables(program, with_scores=True), stock(program), rtol=1e-8, atol=1e-8)


def wakes(column, name):
    """Compute -log p(x), and the gradients of the model and of the guide, each with the other held constant."""

    def loss():
        joint, log_q, own, left_out = tables(name, is_pathwise=True)
        # A masked latent has no value: the sum over its codes is 1, not their number.
        log_evidence, posterior = torch.logsumexp(joint + left_out, 0), torch.softmax(joint + left_out, 0).detach()
        exclusive = own.exp() * (joint.detach() - log_q)
        for_guide = posterior * log_q if COLUMNS[column].options else exclusive
        (-log_evidence.sum() - for_guide.sum()).backward()
        return -log_evidence.detach().sum()

    return with_gradients(loss)


@pytest.mark.parametrize(("column", "program"), those(RUNNING, *WAKES))
def test_model_and_guide_wake_by_gradients_of_their_own(column, program):
    model, guide, elbo = COLUMNS[column].make().bind(PROGRAMS[program].pair)
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
    torch.testing.assert_close(found, wakes(column, program), rtol=1e-8, atol=1e-8)


without_scores = cache(partial(elbo_of_tables, with_scores=False))


# ------------------------------------------------------------------------- unbiased, of the ELBO

UNBIASED = [
    name
    for name, column in COLUMNS.items()
    if (made := column.make()).is_unbiased
    and not made.is_exact
    and name not in (*WEIGHING, *DIFFERENT, PER_SITE, CONTROLLED)
]


@pytest.mark.parametrize(("column", "program"), those(RUNNING, *UNBIASED))
@pytest.mark.filterwarnings("ignore:Expected programs that accept codes:UserWarning")
def test_the_mean_is_the_exact_elbo_and_its_gradient(column, program):
    found = estimates(column, program)
    assert standard_errors(found, stock(program)) < LIMIT
    assert standard_errors(found, without_scores(program)) > LIMIT  # the negative control


@pytest.mark.parametrize(("column", "program"), those(RUNNING, *DIFFERENT))
def test_the_mean_of_few_different_codes_is_the_exact_elbo_and_its_gradient(column, program):
    """The data are copied, because as many different codes as particles elsewhere would be all codes."""
    row = PROGRAMS[program]
    copied = Pair(*(in_copies(run, COPIES, row.nesting) for run in row.pair))
    found = repeated(COLUMNS[column].make(num_particles=DIFFERENT[column]).elbo(), *copied, scale=COPIES)
    assert standard_errors(found, stock(program)) < LIMIT
    assert standard_errors(found, without_scores(program)) > LIMIT


# ------------------------------------------------------------------------- unbiased, of the bound of two samples


def bound_of_two(name):
    """Compute the mean of the bound over all pairs of codes, and its gradient."""

    def loss():
        joint, log_q, own, _ = tables(name, is_pathwise=True)
        log_w = joint - log_q
        of_two = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)  # (S, S, data)
        bound = ((own.unsqueeze(0) + own.unsqueeze(1)).exp() * of_two).sum()
        (-bound).backward()
        assert bound < torch.logsumexp(own + log_w, 0).sum()  # log E w, the bound of infinitely many samples
        return -bound.detach()

    return with_gradients(loss)


def wake_phases(name):
    """Compute the same bound, and the mean gradient of reweighted wake-sleep."""

    def loss():
        joint, log_q, own, _ = tables(name, is_pathwise=False)
        log_w, pair = (joint - log_q).detach(), (own.unsqueeze(0) + own.unsqueeze(1)).exp().detach()
        bound = (pair * (torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2))).sum()
        share = torch.sigmoid(log_w.unsqueeze(1) - log_w.unsqueeze(0))  # of the first
        climbed = (2 * pair * share).sum(1) * (joint + log_q)
        (-climbed.sum()).backward()
        return -bound

    return with_gradients(loss)


def thermodynamic(name, first=0.05):
    """Compute the means of the bound that two samples estimate, and of its covariance gradient."""

    def loss():
        joint, log_q, own, _ = tables(name, is_pathwise=False)
        log_w, pair = (joint - log_q).detach(), (own.unsqueeze(0) + own.unsqueeze(1)).exp().detach()
        bound, climbed = torch.zeros(()).double(), torch.zeros(()).double()
        for beta, width in ((0.0, first), (first, 1 - first)):
            share = torch.sigmoid(beta * (log_w.unsqueeze(1) - log_w.unsqueeze(0)))  # of the first
            mean = share * log_w.unsqueeze(1) + (1 - share) * log_w.unsqueeze(0)
            # Twice the first sample of the pair, which has the same mean as the sum of both.
            covariance = 2 * share * (log_w.unsqueeze(1) - mean)
            score = beta * joint + (1 - beta) * log_q
            log_ratio = joint - log_q if beta else joint  # the gradient of log q has mean zero under q
            of_first = (2 * pair * covariance).sum(1) * score + (2 * pair * share).sum(1) * log_ratio
            bound, climbed = bound + width * (pair * mean).sum(), climbed + width * of_first.sum()
        (-climbed).backward()
        return -bound

    return with_gradients(loss)


OF_TWO = {
    "vimco": bound_of_two,
    "ovis": bound_of_two,
    "tvo": thermodynamic,
    "reweighted-wake-sleep": wake_phases,
}


#: Columns that draw one latent and sum the others -> number of copies of a program.
DRAWN = {PER_SITE: PARTICLES, CONTROLLED: COPIES}


@pytest.mark.parametrize(("column", "program"), those(RUNNING, *DRAWN))
def test_a_drawn_latent_beside_summed_ones_has_the_exact_mean(column, program):
    row, elbo, number = PROGRAMS[program], COLUMNS[column].make(facts(program).first), DRAWN[column]
    copied = Pair(*(in_copies(run, number, row.nesting) for run in row.pair))
    model, guide, loss = elbo.bind(copied)
    found = repeated(loss, model, guide, scale=number)
    assert standard_errors(found, stock(program)) < LIMIT
    assert standard_errors(found, without_scores(program)) > LIMIT  # the negative control


@pytest.mark.parametrize(("column", "program"), those(RUNNING, *WEIGHING))
def test_bounds_of_two_samples_are_what_they_are_on_average(column, program):
    row, expected = PROGRAMS[program], OF_TWO[column](program)
    copied = Pair(*(in_copies(run, PARTICLES, row.nesting) for run in row.pair))
    found = repeated(COLUMNS[column].make(num_particles=2).elbo(), *copied, scale=PARTICLES)
    assert standard_errors(found, expected) < LIMIT
    assert expected["loss"] < stock(program)["loss"]  # tighter than the ELBO


def weighted_likelihoods(name, temperature=2.0):
    """Compute the ELBO and its gradient of the model; for the guide, that of the weighted likelihood of two samples."""

    def loss():
        joint, log_q, own, _ = tables(name, is_pathwise=False)
        log_w, pair = (joint - log_q).detach(), (own.unsqueeze(0) + own.unsqueeze(1)).exp().detach()
        share = torch.sigmoid((log_w.unsqueeze(1) - log_w.unsqueeze(0)) / temperature)  # of the first
        probs = own.exp().detach()
        (-(probs * joint + (2 * pair * share).sum(1) * log_q).sum()).backward()
        return -(probs * log_w).sum()

    return with_gradients(loss)


@pytest.mark.parametrize(("column", "program"), those(RUNNING, "daps"))
def test_weighted_likelihoods_of_two_samples_are_what_they_are_on_average(column, program):
    copied = Pair(*(in_copies(run, COPIES, PROGRAMS[program].nesting) for run in PROGRAMS[program].pair))
    found = repeated(COLUMNS[column].make(num_particles=2, target=0.8).elbo(), *copied, scale=COPIES)
    assert standard_errors(found, weighted_likelihoods(program)) < LIMIT
    assert standard_errors(found, weighted_likelihoods(program, temperature=-2.0)) > LIMIT  # the negative control


# ------------------------------------------------------------------------- surrogates, and relaxations

SURROGATES = [name for name, column in COLUMNS.items() if column.make().bias is Bias.SURROGATE]


@pytest.fixture
def noise(monkeypatch):
    """Draw the continuous latents, because their KL in closed form is no function of one draw."""
    for fixed, drawn in ((FixedNormal, dist.Normal), (FixedDirichlet, dist.Dirichlet)):
        monkeypatch.setattr(fixed, "rsample", drawn.rsample)
        monkeypatch.setattr(fixed, "sample", drawn.sample)


@cache
def stock_of_noise(name):
    """Return rows of stock Pyro's losses, for programs whose continuous latents are drawn."""
    program = PROGRAMS[name]
    elbo = TraceEnum_ELBO(max_plate_nesting=program.nesting, num_particles=PARTICLES, vectorize_particles=True)
    model, guide = program.enumerable
    return torch.tensor(validated_once(lambda: elbo.loss(model, config_enumerate(guide), DATA), CALLS)).double()


@pytest.mark.usefixtures("noise")
@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")
@pytest.mark.parametrize(("column", "program"), those(RUNNING, *SURROGATES))
def test_the_mean_loss_of_surrogates_is_the_exact_elbo(column, program):
    model, guide, elbo = COLUMNS[column].make(num_particles=PARTICLES).bind(PROGRAMS[program].pair)
    pyro.set_rng_seed(0)
    found = {"loss": torch.tensor(validated_once(lambda: elbo.loss(model, guide, DATA), CALLS)).double()}
    if facts(program).has_continuous:
        assert standard_errors_apart(found, {"loss": stock_of_noise(program)}) < LIMIT
    else:
        assert standard_errors(found, {"loss": stock(program)["loss"]}) < LIMIT


class Written(Messenger):
    """Write the one-hots and bits of a program in another way."""

    def __init__(self, one_hot, bit):
        super().__init__()
        self.ways = {dist.OneHotCategorical: one_hot, dist.Bernoulli: bit}

    def _pyro_sample(self, msg):
        fn, event_dim = msg["fn"], 0
        if isinstance(fn, dist.Independent):
            fn, event_dim = fn.base_dist, fn.reinterpreted_batch_ndims
        if type(fn) in self.ways and not msg["is_observed"]:
            msg["fn"] = self.ways[type(fn)](fn.logits).to_event(event_dim)


def written(program, one_hot, bit=None):
    """Return the program with its one-hots and bits written in another way."""

    def run(x):
        with Written(one_hot, bit):
            program(x)

    return run


STOCK_ELBO = {"num_particles": PARTICLES, "vectorize_particles": True}


RELAXED = [name for name, column in COLUMNS.items() if column.make().bias is Bias.RELAXATION]


@pytest.mark.parametrize(("column", "program"), those(RUNNING, *RELAXED))
@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")
def test_relaxations_run(column, program):
    """Their values are tested on some programs below."""
    model, guide, elbo = COLUMNS[column].make().bind(PROGRAMS[program].pair)
    pyro.set_rng_seed(0)
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
    assert found.keys() == stock(program).keys()
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("program", ["bits", "two layers, bottom-up", "subsampled plate, scale, mask"])
def test_relaxed_losses_are_those_of_stock_relaxed_distributions(program):
    def one_hot(logits):
        return dist.RelaxedOneHotCategorical(torch.tensor(TEMPERATURE).double(), logits=logits)

    def bit(logits):
        return dist.RelaxedBernoulli(torch.tensor(TEMPERATURE).double(), logits=logits)

    pair = [written(run, one_hot, bit) for run in PROGRAMS[program].pair]
    found = estimates("gumbel-softmax[kl=relaxed]", program)
    expected = repeated(Trace_ELBO(**STOCK_ELBO), *pair)
    assert standard_errors_apart(found, expected) < LIMIT
    assert standard_errors(found, stock(program)) > LIMIT  # the negative control


class Soft(dist.OneHotCategorical):
    """Jang et al. 2017: soft samples, with the Kullback-Leibler divergence of the categoricals."""

    has_rsample = True

    def rsample(self, sample_shape=()):
        temperature = torch.tensor(TEMPERATURE).double()
        return dist.RelaxedOneHotCategorical(temperature, logits=self.logits).rsample(sample_shape)


@pytest.mark.parametrize("program", ["one-hots in one site", "two layers, top-down"])
@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")
def test_soft_samples_with_the_kl_of_categoricals(program):
    pair = [written(run, lambda logits: Soft(logits=logits, validate_args=False)) for run in PROGRAMS[program].pair]
    found = estimates("gumbel-softmax", program)
    expected = repeated(TraceMeanField_ELBO(**STOCK_ELBO), *pair)
    assert standard_errors_apart(found, expected) < LIMIT
    assert standard_errors(found, stock(program)) > LIMIT


def published(name):
    """Make one-hots with the gradient of the published formula, from their own noise."""
    formula = FORMULAS[name][1]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context, logits):
            context.noise = torch.rand_like(logits), torch.rand(*logits.shape, M, dtype=logits.dtype)
            context.save_for_backward(logits)
            with torch.enable_grad():
                return formula(logits.clone().requires_grad_(), TEMPERATURE, *context.noise, logits)[0]

        @staticmethod
        def backward(context, gradient):
            [logits] = context.saved_tensors
            with torch.enable_grad():
                return formula(logits.detach().requires_grad_(), TEMPERATURE, *context.noise, gradient)[1]

    class Published(dist.OneHotCategorical):
        has_rsample = True

        def rsample(self, sample_shape=()):
            return Function.apply(self.logits.expand(self._extended_shape(sample_shape)))

        def log_prob(self, value):
            return (value * self.logits).sum(-1)

    return Published


#: Options with which an estimator equals the formula.
AS_PUBLISHED = {"decoupled-st-gumbel-softmax": {"forward_temperature": 0.7}}
AS_PUBLISHED |= {"gumbel-rao": {"num_draws": M}, "reinmax-rao": {"num_draws": M}}


@pytest.mark.parametrize("program", ["one-hots in one site", "two layers, bottom-up"])
@pytest.mark.parametrize("name", FORMULAS)
def test_surrogate_gradients_are_those_of_the_published_formula(name, program):
    options = {"kl": "sampled", "temperature": TEMPERATURE, "num_particles": PARTICLES} | AS_PUBLISHED.get(name, {})
    model, guide, elbo = estimator(name, **options).bind(PROGRAMS[program].pair)
    found = repeated(elbo, model, guide)
    site = published(name)
    pair = [written(run, lambda logits: site(logits=logits, validate_args=False)) for run in PROGRAMS[program].pair]
    expected = repeated(Trace_ELBO(**STOCK_ELBO), *pair)
    assert standard_errors_apart(found, expected) < LIMIT
    assert standard_errors(found, stock(program)) > LIMIT
