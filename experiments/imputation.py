"""Compare a discrete VAE with other methods at filling missing cells of tables, and by the likelihood of new rows.

Question: a fifth of the cells of three small tables are hidden at random. A discrete VAE is trained on the rest, and
fills the hidden cells of test rows by the exact posterior predictive. How large is its error compared with the column
mean, the five nearest neighbours (`KNNImputer`) and chained Bayesian ridge regressions (`IterativeImputer`) of
scikit-learn? And when it is trained on complete rows, how high is log p(x) of test rows compared with independent
columns, a tree of columns and latent classes?

Command: `python experiments/imputation.py` (`--smoke` for a tiny size, in seconds); `--tables` and `--seeds` make it
shorter, and finished cells are not run again. It writes `experiments/results/imputation.csv` and
`imputation_likelihood.csv`, and `docs/figures/imputation.png` and `.svg`.

Cost: one core, three tables and three seeds: about ten minutes on a busy machine.

The error is the root mean squared error of hidden test cells, each column in units of its standard deviation over the
known training cells. Every method sees the same training and test rows with the same hidden cells. The VAE guesses the
kinds of columns; training sums over all codes, stops when the ELBO of the validation rows (a tenth) no longer rises,
and keeps the best weights. The number of latents and the weight decay with the best validation ELBO are chosen for each
table and seed, so no test row is used for it. The other methods are given the validation rows, too.

log p(x) is in nats per row, of the values in their own units, so that all models are densities of the same numbers. All
use the same families of distributions for the columns. "Independent columns" has one distribution per column. In the
tree (Chow and Liu 1968, by the correlations of columns) the natural parameters of a column are linear in its parent.
"Latent classes" is a mixture of independent columns with as many parameters as the VAE's prior and decoder. All stop
early by the same validation rows.

Found: see `docs/howto/tables.md`.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, final

import numpy as np
import pandas as pd
import torch
import tyro
from common import Places, Row, check_names, command, mean_and_error, run_cells
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (IterativeImputer needs it)
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor, nn

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, exact, fit
from pyro_gvae.data.datasets import TABLES, table
from pyro_gvae.data.splits import dataset_of
from pyro_gvae.data.tables import decoded
from pyro_gvae.distributions.blocks import Block, CategoricalBlock
from pyro_gvae.evaluate.impute import impute
from pyro_gvae.models.table import TableObservation
from pyro_gvae.models.trees import maximum_spanning_tree
from pyro_gvae.report.style import PALETTE, in_house_style
from pyro_gvae.runs.checkpoint import load_tensors
from pyro_gvae.runs.tables import with_errors

NAME = "imputation"
HIDDEN = 0.2
OURS = "discrete VAE"
OTHERS = {
    "column means": SimpleImputer,
    "nearest neighbours": KNNImputer,
    "chained regressions": partial(IterativeImputer, max_iter=20, random_state=0),
}
CONFIG = TrainConfig(stages="exact:60", batch_size=32, learning_rate=1e-2, evaluate_every="2", patience=8)
#: Grid of N (with K = 8 categories) and weight decay, from which the validation rows choose.
LATENTS, DECAYS = (1, 2), (0.1, 1.0)
CATEGORIES, HIDDEN_UNITS = 8, 32
LIKELIHOOD = f"{NAME}_likelihood"
INDEPENDENT, TREE, CLASSES = "independent columns", "tree of columns", "latent classes"


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    tables: tuple[str, ...] = tuple(TABLES),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:
    """Fill the hidden cells of each table by each method, and compare likelihoods; print both.

    Args:
        places: where to read and write.
        tables: names of tables.
        seeds: seeds of the hidden cells, the splits, the initial weights and the order of the data.
    """
    if places.smoke:
        places, tables, seeds = places.apart(NAME), ("wine",), (0,)
    check_names(tables, TABLES)
    cells: list[Row] = [{"table": name, "seed": seed} for name, seed in product(tables, seeds)]
    errors = run_cells(NAME, cells, partial(measure, smoke=places.smoke), places)
    likelihoods = run_cells(LIKELIHOOD, cells, partial(measure_likelihood, smoke=places.smoke), places)
    for found, value in ((errors, "error"), (likelihoods, "log_likelihood")):
        means = mean_and_error(found, ["table", "method"], [value])
        print(means[["table", "method", "seeds"]].join(with_errors(means, [value])).to_string(index=False))
    places.save(NAME, draw(errors, likelihoods))
    return errors


def measure(cell: Row, *, smoke: bool) -> list[Row]:
    """Fill one table with one set of hidden cells by each method."""
    frame, _ = table(cell["table"])
    hidden = np.random.default_rng(cell["seed"]).random(frame.shape) < HIDDEN
    split = {"validation_share": 0.1, "seed": cell["seed"]}
    data, whole = dataset_of(frame.mask(hidden), **split), dataset_of(frame, **split)
    train, validation, test = (numbers(getattr(data, part), data) for part in data.parts)
    truth, is_hidden = numbers(whole.test, whole), test.isna().to_numpy()
    centre, unit = train.mean(), train.std()
    known = pd.concat([train, validation])

    def error(filled: pd.DataFrame) -> float:
        return float(np.sqrt(np.square(((filled - truth) / unit).to_numpy()[is_hidden]).mean()))

    rows = []
    for name, make in OTHERS.items():
        other = make().fit(((known - centre) / unit).to_numpy())
        filled = pd.DataFrame(other.transform(((test - centre) / unit).to_numpy()), columns=test.columns)
        rows.append({"method": name, "error": error(filled * unit + centre)})
    vae, chosen = trained(data, cell["seed"], smoke=smoke)
    filled = impute(vae, data.test).table.apply(pd.to_numeric)
    return [*rows, {"method": OURS, "error": error(filled)} | chosen]


def numbers(x: Tensor, data: Dataset) -> pd.DataFrame:
    """Convert rows to their own units, as numbers, which the levels of these tables are too."""
    assert data.columns is not None
    return decoded(x, data.columns).apply(pd.to_numeric)


def trained(data: Dataset, seed: int, *, smoke: bool) -> tuple[CategoricalVAE, Row]:
    """Train with each setting until the validation ELBO no longer rises; return the best model and its setting."""
    assert data.columns is not None
    found: list[tuple[float, CategoricalVAE, Row]] = []
    for latents, decay in ((1, 0.1),) if smoke else product(LATENTS, DECAYS):
        torch.manual_seed(seed)
        vae = CategoricalVAE(len(data.columns), latents, CATEGORIES, (HIDDEN_UNITS,), TableObservation(data.columns))
        optimizer = f"AdamW[weight_decay={decay}]"
        config = replace(CONFIG, optimizer=optimizer, seed=seed, steps=5 if smoke else None)
        with TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            done = fit(vae, data, config, output=run, progress=False)
            vae.load_state_dict(load_tensors(run / "best.safetensors"))
        best = max(line["validation_elbo"] for line in done.history)
        found.append((best, vae, {"latents": latents, "weight_decay": decay, "steps": done.steps}))
    _, vae, chosen = max(found, key=lambda one: one[0])
    return vae, chosen


def measure_likelihood(cell: Row, *, smoke: bool) -> list[Row]:
    """Compute log p(x) of test rows of one table under each model, in nats per row."""
    frame, _ = table(cell["table"])
    data = dataset_of(frame, validation_share=0.1, seed=cell["seed"])
    assert data.columns is not None and data.validation is not None
    vae, chosen = trained(data, cell["seed"], smoke=smoke)
    ours = exact.log_evidence(vae, data.test).mean().item()
    size = sum(weight.numel() for name, weight in vae.named_parameters() if not name.startswith("encoder."))
    rows: list[Row] = [{"method": OURS, "log_likelihood": ours, "parameters": size} | chosen]
    torch.manual_seed(cell["seed"])
    observation = TableObservation(data.columns)
    scales = sum(weight.numel() for weight in observation.parameters())
    per_class = observation.natural_dim(len(data.columns)) + 1
    models = {
        INDEPENDENT: OfParents(data, tree=False),
        TREE: OfParents(data, tree=True),
        CLASSES: LatentClasses(data, max(2, round((size - scales) / per_class))),
    }
    for name, model in models.items():
        value, parameters = fitted(model, data, most=5 if smoke else 3000)
        rows.append({"method": name, "log_likelihood": value, "parameters": parameters})
    return rows


@final
class OfParents(nn.Module):
    """A model of columns that are independent, or form a tree: natural parameters are linear in the parent column."""

    def __init__(self, data: Dataset, *, tree: bool) -> None:
        super().__init__()
        assert data.columns is not None
        self.observation = TableObservation(data.columns)
        number = len(data.columns)
        self.linear = nn.Linear(self.observation.input_dim(number), self.observation.natural_dim(number))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        columns_of = [place for block in self.observation.blocks() for place in _places(block)]  # (natural,)
        is_parent = torch.zeros(number, number, dtype=torch.bool)  # (column, its parent)
        if tree:
            correlation = torch.corrcoef(data.train.T).nan_to_num(0.0).clamp(-0.9999, 0.9999)
            for parent, child in maximum_spanning_tree(-0.5 * (1 - correlation.square()).log()):
                is_parent[child, parent] = True
        # The inputs are the columns in the order of the blocks, followed by the indicators of missing cells.
        of_input = [*columns_of, *[None] * number]
        self.is_read = torch.tensor([[q is not None and bool(is_parent[p, q]) for q in of_input] for p in columns_of])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight * self.is_read
        natural = nn.functional.linear(self.observation.inputs(x), weight, self.linear.bias)
        log_prob: Tensor = self.observation(natural).log_prob(x)
        return log_prob

    @property
    def num_parameters(self) -> int:
        return int(self.is_read.sum()) + sum(w.numel() for w in self.parameters()) - self.linear.weight.numel()


@final
class LatentClasses(nn.Module):
    """A mixture of independent columns."""

    def __init__(self, data: Dataset, number: int) -> None:
        super().__init__()
        assert data.columns is not None
        self.observation = TableObservation(data.columns)
        self.weights = nn.Parameter(torch.zeros(number))
        self.natural = nn.Parameter(0.5 * torch.randn(number, 1, self.observation.natural_dim(len(data.columns))))

    def forward(self, x: Tensor) -> Tensor:
        log_probs = self.observation(self.natural).log_prob(x)  # (classes, B)
        return (log_probs + self.weights.log_softmax(0).unsqueeze(1)).logsumexp(0)

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def _places(block: Block) -> list[int]:
    """Return the column of each natural parameter of a block."""
    places: list[int] = block.places.tolist()
    if isinstance(block, CategoricalBlock):
        return [place for place, levels in zip(places, block.is_level, strict=True) for _ in range(int(levels.sum()))]
    return places


def fitted(model: OfParents | LatentClasses, data: Dataset, most: int) -> tuple[float, int]:
    """Fit a model to training rows with early stopping; return log p(x) of test rows and the number of parameters."""
    assert data.validation is not None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    best, test, stale = -torch.inf, -torch.inf, 0
    for step in range(most + 1):
        if step % 10 == 0:
            with torch.no_grad():
                validation = model(data.validation).mean().item()
                if validation > best:
                    best, test, stale = validation, model(data.test).mean().item(), 0
                else:
                    stale += 1
            if stale > 20:
                break
        optimizer.zero_grad()
        (-model(data.train).mean()).backward()
        optimizer.step()
    return test, model.num_parameters


@in_house_style
def draw(errors: pd.DataFrame, likelihoods: pd.DataFrame) -> Figure:
    """Draw each method's error, and its gain in log p(x) over independent columns, by table; one point per seed."""
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    known = likelihoods[likelihoods["method"] == INDEPENDENT].set_index(["table", "seed"])["log_likelihood"]
    others = likelihoods[likelihoods["method"] != INDEPENDENT].copy()
    others["gain"] = (
        others["log_likelihood"] - known.loc[pd.MultiIndex.from_frame(others[["table", "seed"]])].to_numpy()
    )
    _draw_points(left, errors, "error", {name: PALETTE[i] for i, name in enumerate([OURS, *OTHERS])})
    _draw_points(right, others, "gain", {name: PALETTE[i] for i, name in ((0, OURS), (4, TREE), (5, CLASSES))})
    left.set_ylabel("error of hidden cells,\nstandard deviations of a column")
    right.set_ylabel("log p(x) of test rows minus that of\nindependent columns, nats a row")
    right.axhline(0, color="0.6", lw=0.8, zorder=1)
    labels: dict[str, Any] = {}
    for axes in (left, right):
        handles, names = axes.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=3)
    return figure


def _draw_points(axes: Axes, found: pd.DataFrame, value: str, colors: dict[str, str]) -> None:
    names = list(dict.fromkeys(found["table"]))
    for number, (method, color) in enumerate(colors.items()):
        rows = found[found["method"] == method]
        places = [names.index(name) + 0.15 * (number - (len(colors) - 1) / 2) for name in rows["table"]]
        axes.plot(places, rows[value], "o", color=color, label=method)
    axes.set_xticks(range(len(names)), names)


if __name__ == "__main__":
    command(main)
