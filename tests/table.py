"""The table of programs and estimators: the claim of each estimator for each program, or why it refuses.

`tests/estimators/test_table.py` compares every cell with stock Pyro, and `docs/table_page.py` shows the table in the
documents. The noise of continuous latents is fixed, as in `pairs`, so that oracles that sum over codes are exact.
"""

import re
import warnings
from collections.abc import Callable
from enum import Enum, unique
from functools import cache, partial
from typing import Any, NamedTuple

import pairs
import pyro
import pyro.distributions as dist
import torch
from pairs import DATA, D, FixedDirichlet, L, linear, normal, observe, one_hot, weights
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_gvae.distributions.coupled import CodePrior, coupled
from pyro_gvae.estimators import ESTIMATORS, Estimator, estimator
from pyro_gvae.estimators.claims import Bias
from pyro_gvae.exact import Pair
from pyro_gvae.handlers.sites import discrete

# ------------------------------------------------------------------------- programs


def joint_site(name: str, digit: Callable[[Tensor], Any], logits: Tensor) -> Tensor:
    """Sample N digits as one site with an event dimension, which stock Pyro cannot enumerate."""
    return pyro.sample(name, digit(logits).to_event(1))


def separate_sites(name: str, digit: Callable[[Tensor], Any], logits: Tensor) -> Tensor:
    """Sample the same N digits as N sites, which stock Pyro can enumerate."""
    event_dim = len(digit(logits).event_shape)
    digits = [
        pyro.sample(f"{name}{n}", digit(logits[(..., n) + (slice(None),) * event_dim]))
        for n in range(logits.shape[-1 - event_dim])
    ]
    return torch.stack([*torch.broadcast_tensors(*digits)], -1 - event_dim)


def one_hots_model(x, *, site=joint_site):
    with pyro.plate("data", len(x)):
        z = site("z", one_hot, weights(2, 3))
        observe(z.flatten(-2), z[..., 0, :] * z[..., 1, :], obs=x)


def one_hots_guide(x, *, site=joint_site):
    with pyro.plate("data", len(x)):
        site("z", one_hot, linear(6, x).unflatten(-1, (2, 3)))


class Chain(CodePrior):
    """Two digits; the second depends on the first, through tensors that the program owns."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__(2, len(first))
        self.double()
        self.logits = first, second

    def log_prob(self, codes: Tensor) -> Tensor:
        first, second = (logits.log_softmax(-1) for logits in self.logits)
        return codes[..., 0, :] @ first + ((codes[..., 0, :] @ second) * codes[..., 1, :]).sum(-1)

    def draw(self, count: int) -> Tensor:
        return self.all_codes()[torch.multinomial(self.log_prob(self.all_codes()).exp(), count, replacement=True)]


def coupled_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", coupled(Chain(weights(3), weights(3, 3))))
        observe(z.flatten(-2), z[..., 0, :] * z[..., 1, :], obs=x)


def coupled_apart(x):
    """The same model, digit by digit."""
    with pyro.plate("data", len(x)):
        first = pyro.sample("z0", one_hot(weights(3)))
        second = pyro.sample("z1", one_hot(linear(3, first)))
        z = torch.stack(torch.broadcast_tensors(first, second), -2)
        observe(z.flatten(-2), first * second, obs=x)


def bit(log_odds: Tensor) -> Any:
    return dist.Bernoulli(logits=log_odds)


def bits_model(x, *, site=joint_site):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bit(weights(1)[0]))
        b = site("b", bit, linear(2, a.unsqueeze(-1)))
        observe(a.unsqueeze(-1), b, a.unsqueeze(-1) * b, obs=x)


def bits_guide(x, *, site=joint_site):
    with pyro.plate("data", len(x)):
        b = site("b", bit, linear(2, x))
        pyro.sample("a", bit(x[:, 1] * b[..., 0]))


def masked_model(x):
    """A code that counts only where a bit is 1, as the objects of a scene of which there are few or many."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bit(weights(1)[0]))
        with poutine.mask(mask=a > 0.5):
            b = pyro.sample("b", one_hot(weights(3)))
        observe(a.unsqueeze(-1), 2 * a.unsqueeze(-1) * b, obs=x)


def masked_guide(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bit(x[:, 1]))
        with poutine.mask(mask=a > 0.5):
            pyro.sample("b", one_hot(linear(3, x)))


def half_masked_model(x):
    """A normal that counts only where a bit is 1."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bit(weights(1)[0]))
        with poutine.mask(mask=a > 0.5):
            z = pyro.sample("z", normal(weights(L)))
        observe(a.unsqueeze(-1), 2 * a.unsqueeze(-1) * z, obs=x)


def half_masked_guide(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bit(linear(1, x)[..., 0]))
        with poutine.mask(mask=a > 0.5):
            pyro.sample("z", normal(linear(L, x)))


def gmvae_model(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(3)))
        observe(pyro.sample("z", dist.Normal(linear(L, y), 1.0).to_event(1)), obs=x)


LABELS = torch.tensor([0, -1, 2, -1, -1])


def labelled_model(x):
    """M2 with known classes for some data: these are observed, and the drawn class is masked."""
    known, label = LABELS >= 0, torch.eye(3).double()[LABELS.clamp_min(0)]
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=~known):
            y = pyro.sample("y", one_hot(weights(3)))
        with poutine.mask(mask=known):
            pyro.sample("label", one_hot(weights(3)), obs=label)
        z = pyro.sample("z", normal(torch.zeros(L).double()))
        observe(torch.where(known.unsqueeze(-1), label, y), z, obs=x)


def labelled_guide(x):
    known, label = LABELS >= 0, torch.eye(3).double()[LABELS.clamp_min(0)]
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=~known):
            y = pyro.sample("y", one_hot(linear(3, x)))
        pyro.sample("z", normal(linear(L, x, torch.where(known.unsqueeze(-1), label, y))))


def mixture_model(x):
    portions = pyro.sample("portions", dist.Dirichlet(torch.ones(3).double()))
    centres = pyro.sample("centres", dist.Normal(torch.zeros(3, D).double(), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(portions))
        pyro.sample("x", dist.Normal(Vindex(centres)[..., k, :], 1.0).to_event(1), obs=x)


def crossed_model(x):
    """A code for each row and a code for each column, in crossed plates."""
    rows, columns = pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", D, dim=-1)
    with rows:
        row = pyro.sample("row", one_hot(weights(2)))
    with columns:
        column = pyro.sample("column", one_hot(weights(2) + 1))
    with rows, columns:
        pyro.sample("x", dist.Normal(linear(1, row * column).squeeze(-1), 1.0), obs=x)


def crossed_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("row", one_hot(linear(2, x).unsqueeze(-2)))
    with pyro.plate("columns", D, dim=-1):
        pyro.sample("column", one_hot(linear(2, x.T)))


DOCUMENTS, WORDS, TOPICS, VOCABULARY = 2, 3, 2, 3


def lda_model(x):
    words = (x[:DOCUMENTS, :WORDS] > 0).long() + (x[:DOCUMENTS, :WORDS] > 0.7)
    topics = pyro.sample("topics", dist.Dirichlet(torch.ones(TOPICS, VOCABULARY).double()).to_event(1))
    with pyro.plate("documents", DOCUMENTS, dim=-2):
        portions = pyro.sample("portions", dist.Dirichlet(weights(TOPICS).exp()))
        with pyro.plate("words", WORDS, dim=-1):
            topic = pyro.sample("topic", dist.OneHotCategorical(portions))
            pyro.sample("x", dist.Categorical((topic.unsqueeze(-2) @ topics).squeeze(-2)), obs=words)


def lda_guide(x):
    x = x[:DOCUMENTS, :WORDS]
    pyro.sample("topics", FixedDirichlet(weights(TOPICS, VOCABULARY).exp()).to_event(1))
    with pyro.plate("documents", DOCUMENTS, dim=-2):
        pyro.sample("portions", FixedDirichlet(linear(TOPICS, x).exp().unsqueeze(-2)))
        with pyro.plate("words", WORDS, dim=-1):
            pyro.sample("topic", one_hot(linear(TOPICS, x.unsqueeze(-1))))


STEPS = 3


def hmm_model(x):
    with pyro.plate("data", len(x)):
        state = torch.eye(2).double()[0]
        for step in pyro.markov(range(STEPS)):
            state = pyro.sample(f"state {step}", one_hot(linear(2, state)))
            mean = linear(1, state).squeeze(-1) + state[..., 0]
            pyro.sample(f"x {step}", dist.Normal(mean, 0.5), obs=x[:, step])


def hmm_guide(x):
    with pyro.plate("data", len(x)):
        state = torch.eye(2).double()[0]
        for step in pyro.markov(range(STEPS)):
            state = pyro.sample(f"state {step}", one_hot(linear(2, x[:, step, None], state)))


def switching_model(x):
    """A linear Gaussian state-space model whose regimes form a chain."""
    with pyro.plate("data", len(x)):
        regime, state = torch.eye(2).double()[0], torch.zeros(1).double()
        for step in pyro.markov(range(STEPS)):
            regime = pyro.sample(f"regime {step}", one_hot(linear(2, regime)))
            moved = state * linear(1, regime)
            state = pyro.sample(f"state {step}", dist.Normal(moved, 1.0).to_event(1))
            pyro.sample(f"x {step}", dist.Normal(state.squeeze(-1), 0.7), obs=x[:, step])


def switching_guide(x):
    with pyro.plate("data", len(x)):
        for step in pyro.markov(range(STEPS)):
            regime = pyro.sample(f"regime {step}", one_hot(linear(2, x)))
            pyro.sample(f"state {step}", normal(linear(1, x[:, step, None], regime)))


class Program(NamedTuple):
    """A row of the table: a pair, and facts about it for the tests.

    Attributes:
        separately: the same pair in a form that stock Pyro can enumerate, if it cannot enumerate the pair itself.
        is_shared: whether data share latents, so that all of them have one importance weight.
        nesting: the number of its plates.
        crosses: whether a prior depends on a latent that depends on its own in the guide.
        is_nested: whether one of two plates is inside of the other.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    separately: Pair | None = None
    is_shared: bool = False
    nesting: int = 1
    crosses: bool = False
    is_nested: bool = True

    @property
    def pair(self) -> Pair:
        return Pair(self.model, self.guide)

    @property
    def enumerable(self) -> Pair:
        return self.separately or self.pair


def of_digits(model: Callable[..., Any], guide: Callable[..., Any], *, crosses: bool = False) -> Program:
    apart = Pair(partial(model, site=separate_sites), partial(guide, site=separate_sites))
    return Program(model, guide, apart, crosses=crosses)


PROGRAMS = {
    "one-hots in one site": of_digits(one_hots_model, one_hots_guide),
    "one-hots that a prior couples": Program(
        coupled_model, one_hots_guide, Pair(coupled_apart, partial(one_hots_guide, site=separate_sites))
    ),
    "bits": of_digits(bits_model, bits_guide, crosses=True),
    "integers beside bits": Program(pairs.bits_model, pairs.bits_guide, crosses=True),
    "a code that a bit masks": Program(masked_model, masked_guide),
    "a normal that a bit masks": Program(half_masked_model, half_masked_guide),
    "two layers, bottom-up": Program(pairs.two_layers_model, pairs.bottom_up_guide, crosses=True),
    "two layers, top-down": Program(pairs.two_layers_model, pairs.top_down_guide),
    "GMVAE": Program(gmvae_model, pairs.m2_guide),
    "M2": Program(pairs.m2_model, pairs.m2_guide),
    "a normal before a code": Program(pairs.continuous_first_model, pairs.continuous_first_guide),
    "labelled and unlabelled data": Program(labelled_model, labelled_guide),
    "mixture with Dirichlet weights": Program(mixture_model, pairs.mixture_guide, is_shared=True),
    "global and local codes": Program(pairs.global_code_model, pairs.global_code_guide, is_shared=True),
    "nested plates": Program(pairs.nested_model, pairs.nested_guide, nesting=2),
    "crossed plates": Program(crossed_model, crossed_guide, is_shared=True, nesting=2, is_nested=False),
    "subsampled plate, scale, mask": Program(pairs.subsampled_model, pairs.subsampled_guide, is_shared=True),
    "LDA": Program(lda_model, lda_guide, is_shared=True, nesting=2),
    "HMM": Program(hmm_model, hmm_guide),
    "switching linear model": Program(switching_model, switching_guide),
}


def site_is_random(node: dict[str, Any]) -> bool:
    return node["type"] == "sample" and isinstance(node["fn"], torch.distributions.Distribution)


class Facts(NamedTuple):
    """Facts about a guide's statements, found with Pyro alone."""

    first: str  # the name of the first discrete latent
    first_is_integer: bool
    has_integers: bool
    has_continuous: bool
    most_categories: int
    scales: frozenset[float]


@cache
def facts(name: str) -> Facts:
    program = PROGRAMS[name].enumerable
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        guide = poutine.trace(program.guide).get_trace(DATA)
        own = poutine.trace(PROGRAMS[name].guide).get_trace(DATA)
        model = poutine.trace(poutine.replay(program.model, guide)).get_trace(DATA)
    sites = [node for trace in (guide, model) for node in trace.nodes.values() if site_is_random(node)]
    latents = [node["fn"] for node in guide.nodes.values() if site_is_random(node)]
    integers = [fn for fn in latents if isinstance(fn, dist.Categorical)]
    bits = [fn for fn in latents if isinstance(fn, dist.Bernoulli)]
    one_hots = [fn for fn in latents if isinstance(fn, dist.OneHotCategorical)]
    first = next(name for name, msg in own.nodes.items() if site_is_random(msg) and discrete(msg["fn"]) is not None)
    return Facts(
        first=first,
        first_is_integer=isinstance(own.nodes[first]["fn"], dist.Categorical),
        has_integers=bool(integers),
        has_continuous=len(integers) + len(bits) + len(one_hots) < len(latents),
        most_categories=max([2, *(fn.logits.shape[-1] for fn in integers + one_hots)]),
        scales=frozenset(float(site["scale"]) for site in sites),
    )


# ------------------------------------------------------------------------- estimators


class Column(NamedTuple):
    """A column of the table: an entry of the registry with options, for all latents or only one of them.

    Attributes:
        beside: the estimator of all latents except the guide's first one; None if all have the same.
    """

    name: str
    options: dict[str, Any]
    beside: str | None = None

    def make(self, first: str = "first", **options: Any) -> Estimator:
        """Return the estimator for a program whose first discrete latent has this name."""
        chosen = estimator(self.name, **self.options | options)
        return chosen if self.beside is None else estimator({first: chosen}, default=self.beside)


#: Options that give an entry a temperature, let it sample something, or make it cheap.
NEEDED = {"gumbel-softmax": {"temperature": 0.6}, "gumbel-rao": {"num_draws": 2}, "reinmax-rao": {"num_draws": 2}}
NEEDED |= {"top-c": {"num_codes": 2}}
COLUMNS = {name: Column(name, NEEDED.get(name, {})) for name in ESTIMATORS}
COLUMNS |= {
    "gumbel-softmax[kl=relaxed]": Column("gumbel-softmax", {"kl": "relaxed", "temperature": 0.6}),
    "st-gumbel-softmax[kl=sampled]": Column("st-gumbel-softmax", {"kl": "sampled"}),
    "exact-wake[encoder=inclusive]": Column("exact-wake", {"encoder": "inclusive"}),
}
#: The column that scores one latent and sums all others.
PER_SITE = "per-site[z=reinforce-loo,default=exact]"
COLUMNS[PER_SITE] = Column("reinforce-loo", {"num_particles": 2}, beside="exact")
#: The same column with a control variate.
CONTROLLED = "per-site[z=rebar,default=exact]"
COLUMNS[CONTROLLED] = Column("rebar", {}, beside="exact")
WEIGHING = ("vimco", "ovis", "tvo", "reweighted-wake-sleep")
#: Estimators that draw different codes -> the number that tests draw, so that some programs have more codes.
DIFFERENT = {"unordered-set": 2, "reinforce-wor": 8}
OF_EVIDENCE = ("exact-evidence", "exact-wake")
WAKES = ("exact-wake", "exact-wake[encoder=inclusive]")


# ------------------------------------------------------------------------- refusals


class Reason(NamedTuple):
    """A mathematical reason for which an estimator refuses a program.

    Attributes:
        pattern: a pattern of the message.
        because: the reason, as shown in the documents.
        applies: returns whether it applies to a column and a program.
    """

    pattern: str
    because: str
    applies: Callable[[Column, str], bool]


def _relaxes(column: Column) -> bool:
    return column.make().bias in (Bias.RELAXATION, Bias.SURROGATE) or column.name in ("rebar", "relax", "double-cv")


def _has_analytic_kl(column: Column) -> bool:
    kinds = (Bias.RELAXATION, Bias.SURROGATE)
    return column.make().bias in kinds and column.options.get("kl", "categorical") == "categorical"


REASONS = (
    Reason(
        "an integer has no relaxation",
        "An integer has no values between its categories, so it has neither a relaxation nor a surrogate gradient.",
        lambda column, name: (
            _relaxes(column) and (facts(name).has_integers if column.beside is None else facts(name).first_is_integer)
        ),
    ),
    Reason(
        "analytic KL of .* is then no term of the ELBO",
        "The prior of a latent depends on another latent that depends on it in the guide, so its KL in closed form "
        "is no term of the ELBO. The sampled KL is.",
        lambda column, name: _has_analytic_kl(column) and PROGRAMS[name].crosses,
    ),
    Reason(
        "over which no sum can be taken",
        "The values of a continuous latent cannot be summed over. The collapsed importance-weighted bound draws them.",
        lambda column, name: column.name in OF_EVIDENCE and facts(name).has_continuous,
    ),
    Reason(
        "plates of discrete latents to be nested",
        "With crossed plates, the codes of all rows and columns depend on each other, so no sum over some of them can "
        "be taken before the others.",
        lambda column, name: column.name in OF_EVIDENCE and not PROGRAMS[name].is_nested,
    ),
    Reason(
        "control variate of soft codes must not jump",
        "A mask or scale that depends on a code jumps somewhere between soft codes, where a control variate must be "
        "continuous: otherwise the derivative of its mean is not the mean of its derivative.",
        lambda column, name: column.name in ("rebar", "relax") and "masks" in name,
    ),
    Reason(
        "share one scale",
        "log p(x) and importance weights are not defined if factors of one datum are scaled differently.",
        lambda column, name: column.name in (*WEIGHING, "daps", *OF_EVIDENCE) and len(facts(name).scales) > 1,
    ),
    Reason(
        "K=2 categories",
        "Antithetic codes have two values, so latents need K = 2.",
        lambda column, name: column.name in ("disarm", "arms") and facts(name).most_categories > 2,
    ),
)


def reasons_of(column: str, program: str) -> list[Reason]:
    """Return the reasons that apply to a cell; without one, the cell must run."""
    return [reason for reason in REASONS if reason.applies(COLUMNS[column], program)]


# ------------------------------------------------------------------------- cells


@unique
class Cell(Enum):
    """The claim of an estimator for a program, in words."""

    EXACT = "exact, value and gradient"
    UNBIASED = "unbiased, value and gradient"
    SURROGATE = "value unbiased, gradient biased"
    BIASED = "biased"
    REFUSED = "refused for the reason with this letter"


def refusal(column: str, program: str) -> str | None:
    """Return the sentence with which an estimator refuses a program, or None if it runs."""
    chosen = COLUMNS[column].make(facts(program).first)
    with pyro.get_param_store().scope(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pyro.set_rng_seed(0)
        model, guide, elbo = chosen.bind(PROGRAMS[program].pair)
        try:
            elbo.loss_and_grads(model, guide, DATA)
        except (ValueError, NotImplementedError) as error:
            return str(error)
    return None


def cell(column: str, program: str) -> tuple[Cell, Reason | None]:
    """Return the content of a cell of the table, and the reason if it is refused; `test_table.py` tests both."""
    reasons = reasons_of(column, program)
    if len(reasons) > 1:  # the one that the estimator gives
        sentence = refusal(column, program)
        assert sentence is not None
        reasons = [reason for reason in reasons if re.search(reason.pattern, sentence)]
    if reasons:
        return Cell.REFUSED, reasons[0]
    chosen = COLUMNS[column].make()
    if chosen.bias is Bias.SURROGATE:
        return Cell.SURROGATE, None
    if not chosen.is_unbiased:
        return Cell.BIASED, None
    is_summed = chosen.is_exact and not facts(program).has_continuous
    return (Cell.EXACT if is_summed else Cell.UNBIASED), None
