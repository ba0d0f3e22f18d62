"""Compare estimators with stock Pyro on programs that are not VAEs, by seconds to the same likelihood.

Question: a mixture of 100,000 points, a hidden Markov model of letters and a topic model (LDA) are trained with relaxed
samples, a score function and exact sums, and with stock Pyro's `TraceEnum_ELBO` and `TraceGraph_ELBO` on the same
programs. Take the lower of the two final levels of the summed rows: which method reaches it first, and which methods
never reach it?

Command: `python experiments/programs.py --seeds 0 1 2` (`--smoke` for a tiny size, in seconds); `--problems`, `--rows`
and `--seconds` make it shorter, and finished cells are not run again. It writes `experiments/results/programs.csv` and
`docs/figures/programs.png` and `.svg`.

Cost: one core, a minute for each problem, row and seed, plus the time of recordings.

All programs are plain Pyro. The mixture: ten Gaussians in eight dimensions with learned weights, means and scales; the
data come from such a mixture; where a guide is needed, a network predicts the component. Letters: sequences of 50
characters, out of 27, of the language reference that ships with Python (`pydoc_data.topics`), eight states, and a guide
that reads a sequence from its end. Topics: the same text as documents of 48 words, out of the 400 most frequent ones,
eight topics, Dirichlet proportions with a network as their guide; the topic of each word is summed in the model, or
drawn from a guide with a table of words. All are trained with Adam 1e-2 on batches, and scored on held-out data by the
exact log p(x), or, for topics, by the ELBO in which topics are summed and proportions drawn: nats per point, sequence
and word. Seconds are those of the steps alone.

Found: see `docs/results/programs.md`.
"""

import re
import time
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Annotated, Any, NamedTuple, final

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from common import Places, Row, check_names, command, draw_curve, log_axis, mean_and_error, run_cells
from matplotlib.figure import Figure
from pyro.infer import SVI, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn.functional import one_hot
from typing_extensions import override

from pyro_gvae import estimator, exact, make_step
from pyro_gvae.models.hidden_markov_model import HiddenMarkovModel
from pyro_gvae.report.style import MARKERS, PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors
from pyro_gvae.runtime.rng import own_randomness

NAME = "programs"
LEARNING_RATE = 1e-2
NUM_MOMENTS = 12
LETTERS = " abcdefghijklmnopqrstuvwxyz"
Step = Callable[[Tensor], Any]


class Sizes(NamedTuple):
    """Numbers of training data and held-out data, and the batch size."""

    data: int
    held_out: int
    batch: int


class Problem(nn.Module):
    """Abstract base: a program with its data.

    Attributes:
        train_data: training data, (M, ...).
        test_data: held-out data.
        nesting: the maximum nesting of its plates.
        unit: the unit to which levels (nats) refer.
    """

    train_data: Tensor
    test_data: Tensor
    nesting = 1
    unit = "point"

    @abstractmethod
    def model(self, x: Tensor) -> None:
        """The model, in which the discrete latents may be summed."""

    @abstractmethod
    def guide(self, x: Tensor) -> None:
        """The guide for all latents, for relaxed samples and score functions."""

    @abstractmethod
    def summed_guide(self, x: Tensor) -> None:
        """The guide for the latents that are not summed in the model."""

    def level(self) -> float:
        """Compute log p(x) of held-out data, or the ELBO in which all discrete latents are summed, nats per `unit`."""
        with own_randomness(0), torch.no_grad(), pyro.get_param_store().scope():
            found = exact.elbo(exact.Pair(self.model, self.summed_guide), self.test_data)
        return found.mean().item()


@final
class Mixture(Problem):
    """A mixture of Gaussians, with data from another such mixture.

    Args:
        sizes: the sizes of the data.
        num_components: K.
        dim: D.
    """

    def __init__(self, sizes: Sizes, num_components: int, dim: int) -> None:
        super().__init__()
        with own_randomness(17):  # the same data for all seeds
            centres, scales = 2.0 * torch.randn(num_components, dim), torch.rand(num_components, dim) + 0.5
            chosen = torch.randint(num_components, (sizes.data + sizes.held_out,))
            points = centres[chosen] + scales[chosen] * torch.randn(len(chosen), dim)
        self.train_data, self.test_data = points[: sizes.data], points[sizes.data :]
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.centres = nn.Parameter(torch.randn(num_components, dim))
        self.log_scales = nn.Parameter(torch.zeros(num_components, dim))
        self.network = nn.Sequential(nn.Linear(dim, 64), nn.ReLU(), nn.Linear(64, num_components))

    @override
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.logits))
            pyro.sample("x", dist.Normal(z @ self.centres, (z @ self.log_scales).exp()).to_event(1), obs=x)

    @override
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.network(x)))

    @override
    def summed_guide(self, x: Tensor) -> None:
        pass


@final
class Letters(Problem):
    """A hidden Markov model of letters."""

    unit = "sequence"

    def __init__(self, sizes: Sizes, num_states: int, length: int) -> None:
        super().__init__()
        text = re.sub("[^a-z]+", " ", reference_text().lower())
        numbers = torch.tensor([LETTERS.index(letter) for letter in text])
        rows = one_hot(numbers[: len(numbers) // length * length].reshape(-1, length), len(LETTERS)).float()
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(17))]
        self.train_data, self.test_data = rows[: sizes.data], rows[-sizes.held_out :]
        self.program = HiddenMarkovModel(len(LETTERS), num_states, 32, observation="multinomial")

    @override
    def model(self, x: Tensor) -> None:
        self.program.model(x)

    @override
    def guide(self, x: Tensor) -> None:
        self.program.guide(x)

    @override
    def summed_guide(self, x: Tensor) -> None:
        pass


@final
class Topics(Problem):
    """Latent Dirichlet allocation."""

    nesting = 2
    unit = "word"

    def __init__(self, sizes: Sizes, num_topics: int, num_words: int) -> None:
        super().__init__()
        words = re.findall("[a-z]+", reference_text().lower())
        known = {word: i for i, (word, _) in enumerate(Counter(words).most_common(num_words))}
        numbers = torch.tensor([known[word] for word in words if word in known])
        rows = numbers[: len(numbers) // 48 * 48].reshape(-1, 48)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(17))]
        self.train_data, self.test_data = rows[: sizes.data], rows[-sizes.held_out :]
        self.num_words = num_words
        self.topics = nn.Parameter(0.5 * torch.randn(num_topics, num_words))
        self.register_buffer("concentration", torch.full((num_topics,), 0.5))
        self.network = nn.Sequential(nn.Linear(num_words, 64), nn.ReLU(), nn.Linear(64, num_topics))
        self.of_words = nn.Parameter(torch.zeros(num_words, num_topics))

    @override
    def model(self, x: Tensor) -> None:
        with pyro.plate("documents", len(x), dim=-2):
            portions = pyro.sample("portions", dist.Dirichlet(self.concentration))  # (B, 1, T)
            with pyro.plate("words", x.shape[1], dim=-1):
                z = pyro.sample("z", dist.OneHotCategorical(probs=portions))  # (B, L, T)
                pyro.sample("x", dist.Categorical(logits=z @ self.topics), obs=x)

    @override
    def guide(self, x: Tensor) -> None:
        with pyro.plate("documents", len(x), dim=-2):
            self.sample_portions(x)
            with pyro.plate("words", x.shape[1], dim=-1):
                pyro.sample("z", dist.OneHotCategorical(logits=self.of_words[x]))

    @override
    def summed_guide(self, x: Tensor) -> None:
        with pyro.plate("documents", len(x), dim=-2):
            self.sample_portions(x)

    def sample_portions(self, x: Tensor) -> None:
        """Sample the topic proportions, whose distribution depends on the word counts."""
        counts = one_hot(x, self.num_words).sum(-2, keepdim=True).float()  # (B, 1, V)
        pyro.sample("portions", dist.Dirichlet(self.network(counts).exp() + 0.1))


@cache
def reference_text() -> str:
    """Return Python's language reference, about 460,000 letters."""
    from pydoc_data.topics import topics

    return " ".join(topics[name] for name in sorted(topics))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mixture": partial(Mixture, Sizes(100_000, 2_000, 500), 10, 8),
    "letters": partial(Letters, Sizes(4_000, 500, 20), 8, 50),
    "topics": partial(Topics, Sizes(1_000, 100, 50), 8, 400),
}
TINY: dict[str, Callable[[], Problem]] = {
    "mixture": partial(Mixture, Sizes(40, 10, 8), 3, 2),
    "letters": partial(Letters, Sizes(40, 10, 4), 2, 3),
    "topics": partial(Topics, Sizes(20, 5, 4), 2, 10),
}
UNITS = {"mixture": Mixture.unit, "letters": Letters.unit, "topics": Topics.unit}
BATCHES = {"mixture": 500, "letters": 20, "topics": 50}


@final
class Seen(nn.Module):
    """A problem with one of its guides, in the form that `make_step` takes."""

    def __init__(self, problem: Problem, guide: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.problem, self.chosen = problem, guide

    def model(self, x: Tensor) -> None:
        pyro.module("problem", self.problem)
        self.problem.model(x)

    def guide(self, x: Tensor) -> None:
        pyro.module("problem", self.problem)
        self.chosen(x)


def ours(name: str, problem: Problem, *, summed: bool) -> Step:
    """Make a training step of this package."""
    seen = Seen(problem, problem.summed_guide if summed else problem.guide)
    return make_step(seen, estimator(name), lr=LEARNING_RATE)


def stock(problem: Problem, elbo: Any, *, summed: bool) -> Step:
    """Make a training step of stock Pyro."""
    seen = Seen(problem, problem.summed_guide if summed else problem.guide)
    model = config_enumerate(seen.model, "parallel") if summed else seen.model
    step: Step = SVI(model, seen.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), elbo).step
    return step


SUMMED, STOCK_SUMMED = "exact", "stock TraceEnum_ELBO"
ROWS: dict[str, Callable[[Problem], Step]] = {
    SUMMED: partial(ours, "exact", summed=True),
    "gumbel-softmax": partial(ours, "gumbel-softmax[kl=relaxed]", summed=False),
    "reinforce-loo": partial(ours, "reinforce-loo", summed=False),
    STOCK_SUMMED: lambda problem: stock(problem, TraceEnum_ELBO(max_plate_nesting=problem.nesting), summed=True),
    "stock TraceGraph_ELBO": lambda problem: stock(problem, TraceGraph_ELBO(), summed=False),
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    problems: tuple[str, ...] = tuple(PROBLEMS),
    rows: tuple[str, ...] = tuple(ROWS),
    seconds: float = 60.0,
    seeds: tuple[int, ...] = (0,),
) -> pd.DataFrame:
    """Train each row on each problem; print its final level, and the seconds until it reaches the common level.

    Args:
        places: where to read and write.
        problems: keys of `PROBLEMS`.
        rows: keys of `ROWS`.
        seconds: seconds of training.
        seeds: seeds of the initial weights, the order of the data and the samples.
    """
    if places.smoke:
        places, problems, rows, seconds, seeds = places.apart(NAME), ("mixture", "topics"), tuple(ROWS), 0.02, (0,)
    check_names(problems, PROBLEMS)
    check_names(rows, ROWS)
    cells: list[Row] = [
        {"problem": problem, "estimator": row, "seed": seed, "budget": seconds}
        for problem, seed, row in product(problems, seeds, rows)
    ]
    table = run_cells(NAME, cells, partial(measure, problems=TINY if places.smoke else PROBLEMS), places)
    table = table[table["budget"] == seconds]
    ends = table.groupby(["problem", "estimator", "seed"], sort=False).tail(1)
    ends = ends.assign(seconds_to_level=[reached(table, row) for row in ends.itertuples()])
    values = ["level", "steps", "seconds_to_level"]
    found = mean_and_error(ends, ["problem", "estimator"], values)
    print(found[["problem", "estimator", "seeds"]].join(with_errors(found, values)).to_string(index=False))
    places.save(NAME, draw(table))
    return table


def measure(cell: Row, *, problems: dict[str, Callable[[], Problem]]) -> list[Row]:
    """Train a cell for its seconds, and score it at geometrically spaced moments."""
    torch.manual_seed(cell["seed"])
    pyro.clear_param_store()
    problem = problems[cell["problem"]]()
    step = ROWS[cell["estimator"]](problem)
    size = min(BATCHES[cell["problem"]], len(problem.train_data))
    moments = list(cell["budget"] * np.geomspace(0.02, 1.0, NUM_MOMENTS))
    found: list[Row] = [{"seconds": 0.0, "steps": 0, "level": problem.level()}]
    taken, steps = 0.0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stock Pyro warns of sites that a score function draws
        while moments:
            x = problem.train_data[torch.randint(len(problem.train_data), (size,))]
            start = time.perf_counter()
            step(x)
            lasted = time.perf_counter() - start
            steps += 1
            taken += lasted if steps > 2 else 0.0  # the first steps record
            if taken >= moments[0]:
                found.append({"seconds": taken, "steps": steps, "level": problem.level()})
                moments = [moment for moment in moments if moment > taken]
    pyro.clear_param_store()
    return found


def reached(table: pd.DataFrame, end: Any) -> float:
    """Return the seconds until the lower final level of the two summed rows (same problem, same seed); NaN if never."""
    same = table[(table["problem"] == end.problem) & (table["seed"] == end.seed)]
    summed = same[same["estimator"].isin([SUMMED, STOCK_SUMMED])]
    common = summed.groupby("estimator")["level"].last().min()
    curve = same[same["estimator"] == end.estimator]
    there = curve[curve["level"] >= common]
    return float(there["seconds"].iloc[0]) if len(there) else float("nan")


@in_house_style
def draw(table: pd.DataFrame) -> Figure:
    """Draw the level against seconds, one panel per problem: means over seeds with standard errors."""
    problems: Sequence[str] = list(dict.fromkeys(table["problem"]))
    figure = Figure(figsize=(max(6.0, 4.4 * len(problems)), 4.4))
    for axes, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        of_problem = table[(table["problem"] == problem) & (table["seconds"] > 0)]
        for name, color, marker in zip(ROWS, PALETTE, MARKERS, strict=False):
            rows = of_problem[of_problem["estimator"] == name]
            rows = rows.assign(moment=rows.groupby("seed").cumcount())
            mean = mean_and_error(rows, ["moment"], ["level", "seconds"])
            look = {"color": color, "marker": marker, "ms": 4, "lw": 1.5, "label": name}
            draw_curve(axes, mean["seconds"], mean["level"], mean["level_se"], **look)
        title = f"{problem}, nats per {UNITS[problem]} ({of_problem['seed'].nunique()})"
        axes.set(title=title, xscale="log", xlabel="seconds of training")
        log_axis(axes.xaxis)
        levels = of_problem["level"]
        axes.set_ylim(levels.quantile(0.1), levels.max() + 0.05 * (levels.max() - levels.quantile(0.1)))
    figure.axes[0].set_ylabel("held-out log p(x), of topics ELBO")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    note = "in brackets: seeds; bands: standard error over seeds"
    figure.suptitle(note, x=0.01, ha="left", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
