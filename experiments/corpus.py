"""Measure how near each estimator comes to the model that generated a corpus.

Question: documents are drawn from a known program with two latents, whose log p(x) is a sum over 64 codes. So the loss
of a trained program is known exactly: the mean of log p(x) under the truth minus log p(x) under the program, over test
documents, estimates the KL divergence between them. How small does it become with relaxed samples, score functions,
exact sums and a plan of stages?

Command: `python experiments/corpus.py` (`--smoke` for a tiny size, in seconds); `--plans`, `--seeds` and `--epochs`
change its length, and finished cells are not run again. It writes `experiments/results/corpus.csv`, and
`docs/figures/corpus.png` and `.svg`.

Cost: one core, all plans and three seeds: about five minutes.

The truth: N = 2 latents of K = 8 categories with a prior drawn from a Dirichlet distribution; the logits of 300 words
are a bias plus a vector for the category of each latent, all normal; 4,000 training documents and 1,000 test documents
of 40 words. The trained program has the same form, random initial weights, a learned prior, and a guide with one hidden
layer of 128 units. Each seed has its own truth and documents. "One distribution" gives the same words to every
document. "From the truth" starts with the true decoder and prior, which no one knows: it loses only what 4,000
documents do not tell.

Found: see `docs/results/corpus.md`.
"""

from functools import partial
from itertools import product
from typing import Annotated

import pandas as pd
import torch
import tyro
from common import Places, Row, check_names, command, in_words, mean_and_error, print_paired, run_cells, scores_on_test
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, exact, fit
from pyro_gvae.report.style import PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "corpus"
LATENTS, CATEGORIES, WORDS, LENGTH = 2, 8, 300, 40
NUM_TRAIN, NUM_TEST = 4000, 1000
SOFT, EXACT, NOTHING, INFORMED = "gumbel-softmax", "exact", "one distribution", "exact, from the truth"
#: Row -> stages, in epochs; E is the total.
PLANS = {
    EXACT: "exact:{E}",
    "exact-evidence": "exact-evidence:{E}",
    "exact-wake": "exact-wake:{E}",
    SOFT: "gumbel-softmax:{E}",
    "half soft, half exact": "gumbel-softmax:{E/2},exact:{E/2}",
    "straight-through": "straight-through:{E}",
    "reinmax": "reinmax:{E}",
    "reinforce-loo": "reinforce-loo:{E}",
    "local-expectation": "local-expectation:{E}",
    "vimco": "vimco:{E}",
    "reweighted-wake-sleep": "reweighted-wake-sleep:{E}",
    INFORMED: "exact:{E}",
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    plans: tuple[str, ...] = tuple(PLANS),
    epochs: int = 40,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:
    """Train by each plan, and print how far each program is from the truth.

    Args:
        places: where to read and write.
        plans: rows to train.
        epochs: epochs of each run.
        seeds: seeds of the truth, the documents, the initial weights and the samples.
    """
    if places.smoke:
        places, plans, epochs, seeds = places.apart(NAME), (EXACT, SOFT), 2, (0,)
    check_names(plans, PLANS)
    cells: list[Row] = [
        {"estimator": plan, "epochs": epochs, "seed": seed} for seed, plan in product(seeds, (NOTHING, *plans))
    ]
    table = run_cells(NAME, cells, partial(measure, smoke=places.smoke), places)
    table = table[table["epochs"] == epochs]
    values = ["divergence", "divergence_of_elbo", "seconds"]
    found = mean_and_error(table, ["estimator"], values)
    print(found[["estimator", "seeds"]].join(with_errors(found, values)).to_string(index=False))
    print_paired(table[table["estimator"] != NOTHING], ["epochs"], ["divergence"])
    places.save(NAME, draw(table))
    return table


def measure(cell: Row, *, smoke: bool) -> list[Row]:
    """Train one program, and compare log p(x) of test documents with the truth's."""
    data = documents(cell["seed"], smoke=smoke)
    assert data.teacher is not None
    truth = exact.log_evidence(data.teacher, data.test).mean().item()
    if cell["estimator"] == NOTHING:
        score = one_distribution(data.train, data.test)
        return [{"divergence": truth - score, "divergence_of_elbo": truth - score, "seconds": 0.0}]
    epochs = cell["epochs"]
    stages = PLANS[cell["estimator"]].replace("{E}", str(epochs)).replace("{E/2}", str(epochs // 2))
    torch.manual_seed(cell["seed"])
    vae = program()
    if cell["estimator"] == INFORMED:
        vae.load_state_dict(data.teacher.state_dict())
    config = TrainConfig(stages=stages, batch_size=100, learning_rate=3e-3, judge="none", seed=cell["seed"])
    done = fit(vae, data, config, progress=False)
    scores = scores_on_test(vae, data)
    return [
        scores
        | {"divergence": truth - scores["test_log_evidence"], "divergence_of_elbo": truth - scores["test_elbo"]}
        | {"seconds": done.seconds}
    ]


def documents(seed: int, *, smoke: bool) -> Dataset:
    """Draw a truth and its documents, as counts of words; the data set's teacher is the truth."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        truth = program().requires_grad_(False)
        for weight in truth.decoder.parameters():
            weight.normal_()
        truth.prior_logits.copy_(torch.distributions.Dirichlet(torch.full((LATENTS, CATEGORIES), 5.0)).sample().log())
        number = 200 if smoke else NUM_TRAIN + NUM_TEST
        codes = torch.distributions.OneHotCategorical(logits=truth.prior_logits).sample((number,))
        drawn = torch.distributions.Multinomial(LENGTH, logits=truth.decoder(codes)).sample()
    test = number // 5
    return Dataset(
        NAME, drawn[test:], drawn[:test], (1, WORDS), teacher=truth, value_range=(0.0, float(LENGTH)), binarize="none"
    )


def program() -> CategoricalVAE:
    """Build a program of the truth's form."""
    decoder = nn.Sequential(nn.Flatten(-2), nn.Linear(LATENTS * CATEGORIES, WORDS))
    sizes = {"data_dim": WORDS, "num_latents": LATENTS, "num_categories": CATEGORIES}
    return CategoricalVAE(**sizes, hidden=(128,), decoder=decoder, observation="multinomial", learn_prior=True)


def one_distribution(train: Tensor, test: Tensor) -> float:
    """Compute the mean log p(x) of test documents if all documents have the words of the training documents."""
    shares = (train.sum(0) + 1) / (train.sum(0) + 1).sum()
    return torch.distributions.Multinomial(LENGTH, probs=shares, validate_args=False).log_prob(test).mean().item()


@in_house_style
def draw(table: pd.DataFrame) -> Figure:
    """Draw the divergence of each row from the truth, and the distance of its ELBO."""
    values = {"divergence": "log p(x)", "divergence_of_elbo": "ELBO"}
    found = mean_and_error(table[table["estimator"] != NOTHING], ["estimator"], list(values))
    found = found.sort_values("divergence", ascending=False, ignore_index=True)
    figure = Figure(figsize=(7.5, 1.3 + 0.36 * len(found)))
    axes = figure.subplots()
    for (value, label), color, marker in zip(values.items(), PALETTE, "os", strict=False):
        errors = found[f"{value}_se"].fillna(0)
        axes.errorbar(found[value], found.index, xerr=errors, fmt=marker, color=color, label=f"truth − {label}")
    most = 1.6 * found["divergence"].max()
    for place, loss in found["divergence_of_elbo"].items():
        if loss > most:  # the ELBO of a guide that was never trained
            where = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            axes.annotate(f"truth − ELBO: {loss:.0f} →", (1, place), **where, **SMALL_PRINT)
    axes.set_yticks(found.index, found["estimator"])
    axes.set(xlabel="nats per test document", xlim=(0, most))
    axes.legend(loc="upper right")
    figure.supxlabel(f"{in_words(found['seeds'])}; bars: standard error", x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
