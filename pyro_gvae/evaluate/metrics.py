"""Evaluate a trained model as a discrete model, whichever estimator trained it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import pyro
import torch
from torch import Tensor

from .. import exact
from ..config.checks import MOST_OPERATIONS
from ..data.dataset import Dataset, Part, fixed_part
from ..distributions.codes import num_codes
from ..estimators import Estimator
from ..exact import HasPair
from ..exact.plan import MOST_CODES
from ..models.categorical_vae import CategoricalVAE
from ..programs.factors import Layout
from ..programs.layout import lay_out
from ..programs.modes import judging
from ..programs.reader import score
from ..programs.runs import bind_pair
from .bounds import Evidence, Row, bound_rows
from .code_statistics import (
    LatentStatistics,
    Measured,
    guide_log_probs,
    joint_mutual_information,
    latent_statistics,
    linear_probe,
    mean_over_data,
    mean_perplexity,
)
from .importance import importance_weighted, is_one_hot

if TYPE_CHECKING:
    import pandas as pd

#: Number of data points in one exact sum.
DATA_AT_A_TIME = 10_000


class DiscreteScores(NamedTuple):
    """Exact ELBO and log-evidence of the discrete model: means over data, in nats per datum."""

    elbo: float
    log_evidence: float


@judging
@torch.no_grad()
def discrete_scores(vae: CategoricalVAE, x: Tensor, *, max_memory: float | None = None) -> DiscreteScores:
    """Compute the exact ELBO and log-evidence of the discrete model, both summed over all K^N codes.

    ELBO = E_q[log p(x, z) - log q(z|x)] <= log p(x) = log sum_z p(x, z).

    Args:
        vae: the model.
        x: data (B, D).
        max_memory: bytes that the sum may use.

    Returns:
        Means over the B data, in nats per datum.

    Raises:
        ValueError: if there are too many codes.
    """
    found = exact.bounds(vae, x, max_memory=max_memory)  # each (B,)
    return DiscreteScores(found.elbo.mean().item(), found.log_evidence.mean().item())


@judging
@torch.no_grad()
def own_objective(vae: CategoricalVAE, estimator: Estimator, x: Tensor) -> float:
    """Compute the estimator's own objective for data x (B, D): minus its loss, in nats per datum.

    For a relaxed estimator this is a bound for the *relaxed* model (with the categorical KL, no bound at all),
    estimated with one new sample per datum. It is not the ELBO of the discrete model.
    """
    model, guide, elbo = estimator.bind(vae)
    with pyro.get_param_store().scope():
        return -float(elbo.loss(model, guide, x)) / len(x)


@judging
@torch.no_grad()
def code_usage(vae: CategoricalVAE, x: Tensor, *, max_memory: float | None = None) -> Tensor:
    """Compute the aggregated exact posterior: the mean of p(z_n = k | x) over data x (B, D); shape (N, K)."""
    return cast(Tensor, exact.posterior(vae, x, max_memory=max_memory).marginals).mean(0)  # of its one latent


class Evaluation(NamedTuple):
    """The evaluation of a model as a discrete model.

    Args:
        metrics: one row per number: part, metric, value, standard_error (over data, NaN if there is none), unit, method
            ("exact", or how it was sampled).
        latents: one row per part and latent: variance, active, perplexity, mutual_information, entropy.
        warnings: sentences that name unreliable numbers.
    """

    metrics: "pd.DataFrame"
    latents: "pd.DataFrame"
    warnings: list[str]

    def value(self, part: str, metric: str) -> float:
        """Return the value of one metric."""
        rows = self.metrics.query("part == @part and metric == @metric")
        if len(rows) != 1:
            found = ", ".join(self.metrics["metric"].unique())
            raise ValueError(f"Expected a metric among {found}, but found '{metric}' of '{part}'.")
        return float(rows["value"].item())

    def as_json(self) -> dict[str, Any]:
        """Convert to nested dictionaries: part -> metric -> value, standard_error, unit, method."""
        parts: dict[str, Any] = {}
        for row in self.metrics.to_dict("records"):
            parts.setdefault(row.pop("part"), {})[row.pop("metric")] = row
        return parts | {"latents": self.latents.to_dict("records"), "warnings": self.warnings}


@judging
def evaluate(
    pair: HasPair,
    data: Dataset,
    *,
    num_data: int | None = None,
    num_particles: int = 1000,
    evidence: Evidence = "auto",
    max_operations: float = MOST_OPERATIONS,
    max_memory: float | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate the discrete model on train and test data; no number is that of a relaxed model.

    - elbo: E_q[log p(x|z)] - KL, summed over all codes, or the mean over P samples if there are too many codes.
    - log_evidence: log p(x), summed over all codes. If there are too many, iwae_bound (at most log p(x) in
      expectation) and effective_sample_size replace it: see
      :func:`~pyro_gvae.evaluate.importance.importance_weighted`.
    - reconstruction = elbo + kl, where kl = KL(q(z|x) || p(z)) is always in closed form.
    - posterior_entropy: H(q(z|x)); mutual_information: I(x; z) of the whole code, if K^N is small enough;
      latent_information: the sum of I(x; z_n); code_perplexity: the effective number of categories in use, averaged
      over latents; active_units: see :func:`~pyro_gvae.evaluate.code_statistics.latent_statistics`.
    - linear_probe_accuracy, for labelled data: the accuracy on test data of a linear classifier of the guide's most
      probable codes, fitted on train data.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs that accept any number of data; if their latents are others
            than one one-hot site, bounds alone are reported, see :func:`~pyro_gvae.evaluate.bounds.bound_rows`.
        data: a data set.
        num_data: how many data of each part to use, starting with the first; all if None.
        num_particles: P, the number of samples per datum if there are too many codes.
        evidence: "exact", "importance-weighted", or "auto": the exact sum if it takes at most `max_operations`.
        max_operations: limit for one sum over all codes and a part's data, as :func:`pyro_gvae.exact.cost` counts; by
            default about a minute on two cores.
        max_memory: bytes that sums and samples may use.
        seed: seed of the samples; the random state of the caller is not changed.

    Returns:
        All numbers with their standard errors over data, in nats per datum unless the unit says otherwise.

    Raises:
        ValueError: if a setting is invalid, or there are too many codes for the requested sum.

    Example:
        >>> from pyro_gvae import load
        >>> vae = CategoricalVAE(data_dim=64, num_latents=2, num_categories=3, hidden=(5,))
        >>> found = evaluate(vae, load("digits", binarize="threshold"), num_data=100)
        >>> found.value("test", "elbo") < found.value("test", "log_evidence")
        True
    """
    if evidence not in get_args(Evidence):
        raise ValueError(f"Expected evidence to be one of {', '.join(get_args(Evidence))}, but found '{evidence}'.")
    if not isinstance(data, Dataset):
        raise ValueError(
            f"Expected a Dataset with train and test images, but found {type(data).__name__}. Try Dataset(name, train, "
            "test, image_shape), or discrete_scores(pair, x) for some data."
        )
    parts = {name: fixed_part(data, name, num_data) for name in ("train", "test")}
    layout = lay_out(bind_pair(pair, parts["train"].x[:2]))
    if not is_one_hot(layout):
        options = {"evidence": evidence, "num_particles": num_particles, "max_operations": max_operations}
        return _bounds_alone(pair, parts, layout, seed, max_memory=max_memory, **options)
    log_qs = {name: _on_chunks(lambda x: guide_log_probs(pair, x), part.x) for name, part in parts.items()}
    metrics, latents, warnings = [], [], []
    for name, part in parts.items():
        by_sum = evidence == "exact" or (evidence == "auto" and _summable(pair, part.x, max_operations, max_memory))
        if by_sum:
            rows = list(_summed(pair, part.x, log_qs[name], max_memory))
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                rows, found = _sampled(pair, part.x, log_qs[name], num_particles, max_memory)
            warnings += [f"{name}: {warning}" for warning in found]
        statistics = latent_statistics(log_qs[name])
        rows += _code_rows(log_qs[name], statistics)
        if name == "test":
            rows += _probe_rows(parts, log_qs)
        metrics += [(name, row.metric, *row.measured, row.unit, row.method) for row in rows]
        latents.append(_latent_frame(name, statistics))
    import pandas as pd  # imported here, since encoding and scoring do not need it

    return Evaluation(_metric_frame(metrics), pd.concat(latents, ignore_index=True), warnings)


def _bounds_alone(pair: HasPair, parts: dict[str, Part], layout: Layout, seed: int, **options: Any) -> Evaluation:
    metrics, warnings = [], []
    for name, part in parts.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rows, found = bound_rows(pair, part.x, layout, **options)
        metrics += [(name, row.metric, *row.measured, row.unit, row.method) for row in rows]
        warnings += [f"{name}: {warning}" for warning in found]
    return Evaluation(_metric_frame(metrics), _latent_frame("train", latent_statistics(torch.zeros(1, 0, 1))), warnings)


def _metric_frame(metrics: list[tuple[Any, ...]]) -> "pd.DataFrame":
    import pandas as pd

    columns = ["part", "metric", "value", "standard_error", "unit", "method"]
    return pd.DataFrame(metrics, columns=columns).astype({"standard_error": float})


def _on_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function to chunks of the data and concatenate the results."""
    with torch.no_grad():
        return torch.cat([function(rows) for rows in x.split(DATA_AT_A_TIME)])


def _summable(pair: HasPair, x: Tensor, max_operations: float, max_memory: float | None) -> bool:
    rows = x[:DATA_AT_A_TIME]
    shape = guide_log_probs(pair, rows[:1]).shape
    if num_codes(*shape[-2:]) > MOST_CODES:
        return False
    return exact.cost(pair, rows, max_memory=max_memory).operations * len(x) / len(rows) <= max_operations


def _summed(pair: HasPair, x: Tensor, log_q: Tensor, max_memory: float | None) -> Iterator[Row]:
    elbo, log_evidence = _on_chunks(lambda rows: torch.stack(exact.bounds(pair, rows, max_memory=max_memory), -1), x).T
    yield Row("elbo", mean_over_data(elbo), "nats")
    yield Row("log_evidence", mean_over_data(log_evidence), "nats")
    yield from _terms(pair, x, log_q, elbo, "exact")


def _sampled(
    pair: HasPair, x: Tensor, log_q: Tensor, num_particles: int, max_memory: float | None
) -> tuple[list[Row], list[str]]:
    found = importance_weighted(pair, x, num_particles, max_memory=max_memory)
    method = f"{num_particles} samples"
    size = found.effective_sample_size
    rows = [
        Row("elbo", mean_over_data(found.elbo), "nats", method),
        Row("iwae_bound", mean_over_data(found.bound), "nats", method),
        Row("effective_sample_size", mean_over_data(size), "samples", method),
        Row("least_effective_sample_size", Measured(size.min().item()), "samples", method),
        *_terms(pair, x, log_q, found.elbo, method),
    ]
    return rows, found.warnings()


def _terms(pair: HasPair, x: Tensor, log_q: Tensor, elbo: Tensor, method: str) -> Iterator[Row]:
    """Split the ELBO into its two terms; the KL is in closed form, however the ELBO was computed."""
    with torch.no_grad():
        prior = score(bind_pair(pair, x[:1]).model).prior
    if float(prior.scale) != 1:
        raise ValueError(f"Expected programs that are not scaled, but found a scale of {float(prior.scale):g}.")
    kl = (log_q.exp() * (log_q - prior.log_probs)).sum((-2, -1))  # (B,)
    yield Row("reconstruction", mean_over_data(elbo + kl), "nats", method)
    yield Row("kl", mean_over_data(kl), "nats")


def _code_rows(log_q: Tensor, statistics: LatentStatistics) -> Iterator[Row]:
    entropy = -(log_q.exp() * log_q).sum((-2, -1))  # (B,)
    yield Row("posterior_entropy", mean_over_data(entropy), "nats")
    information = joint_mutual_information(log_q)
    if information is not None:
        yield Row("mutual_information", information, "nats")
    yield Row("latent_information", Measured(statistics.mutual_information.sum().item()), "nats")
    yield Row("code_perplexity", mean_perplexity(log_q), "categories")
    yield Row("active_units", Measured(float(statistics.active.sum().item())), "latents")


def _probe_rows(parts: dict[str, Part], log_qs: dict[str, Tensor]) -> Iterator[Row]:
    train_labels, test_labels = parts["train"].labels, parts["test"].labels
    if train_labels is None or test_labels is None:
        return
    train, test = (log_qs[name].argmax(-1) for name in ("train", "test"))
    accuracy = linear_probe(train, train_labels, test, test_labels)
    if accuracy is not None:
        yield Row("linear_probe_accuracy", accuracy, "", "logistic regression")


def _latent_frame(part: str, statistics: LatentStatistics) -> "pd.DataFrame":
    columns = {name: getattr(statistics, name).tolist() for name in (*statistics._fields, "active")}
    import pandas as pd

    frame = pd.DataFrame(columns)
    frame.insert(0, "part", part)
    frame.insert(1, "latent", range(len(frame)))
    return frame
