"""Evaluate a trained model as a discrete model, whichever estimator trained it."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, final, get_args

import pyro
import torch

from .. import exact
from ..config.checks import MOST_OPERATIONS
from ..data.labels import judged
from ..data.parts import fixed_part
from ..data.sliced import AnyDataset
from ..exact import HasPair
from ..exact.plan import PerLatent, per_latent
from ..handlers.parameters import OwnParameters
from ..programs.batches import Batch, arguments, num_data
from ..programs.look import look
from ..programs.modes import judging
from ..programs.rows import in_parts
from ..programs.runs import bind_pair
from .bounds import Evidence, Row, is_summable, per_datum, sampled_bounds, summed_bounds
from .code_rows import LatentRow, class_rows, code_rows, latent_rows, probe_rows, term_rows
from .guided import Guided, joined
from .guides import read_guide
from .importance import is_shared

if TYPE_CHECKING:
    import pandas as pd

    from ..estimators import Estimator

#: Number of data points in one exact sum.
DATA_AT_A_TIME = 10_000


class DiscreteScores(NamedTuple):
    """Exact `elbo` and `log_evidence` of the discrete model: means over data, in nats per datum."""

    elbo: float
    log_evidence: float


@judging
@torch.no_grad()
def discrete_scores(pair: HasPair, x: Batch, *, max_memory: float | None = None) -> DiscreteScores:
    """Compute the exact ELBO and log-evidence of the discrete model, both summed over all K^N codes.

    ELBO = E_q[log p(x, z) - log q(z|x)] <= log p(x) = log sum_z p(x, z).

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        max_memory: bytes that the sum may use.

    Returns:
        Means over the B data, in nats per datum; if data share a latent, 1 / B of their joint numbers.

    Raises:
        ValueError: if there are too many codes, or a latent is continuous.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> scores = discrete_scores(vae, x)
        >>> scores.elbo < scores.log_evidence < 0
        True
    """
    found = exact.bounds(pair, x, max_memory=max_memory)  # each (B,), or fewer where data share a latent
    return DiscreteScores(*(own.sum().item() / num_data(x) for own in found))


@judging
@torch.no_grad()
def own_objective(pair: HasPair, estimator: "Estimator", x: Batch) -> float:
    """Compute an estimator's own objective, the negative of its loss, in nats per datum.

    For a relaxed estimator this is a bound for the *relaxed* model (with the categorical KL, it is not a bound at all),
    estimated with one new sample per datum. It is not the ELBO of the discrete model.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs.
        estimator: the estimator.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.

    Returns:
        The mean over the B data.

    Example:
        >>> from pyro_gvae import CategoricalVAE, estimator
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> abs(own_objective(vae, estimator("exact"), x) - discrete_scores(vae, x).elbo) < 1e-5
        True
    """
    model, guide, elbo = estimator.bind(pair)
    given, store = arguments(x), pyro.get_param_store()
    with store.scope(store.get_state()), OwnParameters():
        return -float(elbo.loss(model, guide, *given.args, **given.kwargs)) / num_data(x)


@judging
@torch.no_grad()
def code_usage(pair: HasPair, x: Batch, *, max_memory: float | None = None) -> PerLatent:
    """Compute the aggregated exact posterior: the mean of p(z_n = k | x) over data.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs whose latents are all discrete.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        max_memory: bytes that the sum may use; 4 GB if None.

    Returns:
        Probabilities (N, K); for several latents, by name.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> code_usage(vae, x).sum(-1)
        tensor([1.0000, 1.0000])
    """
    marginals = exact.posterior(pair, x, max_memory=max_memory).marginals
    named = marginals if isinstance(marginals, dict) else {"": marginals}
    return per_latent({name: own.reshape(-1, *own.shape[-2:]).mean(0) for name, own in named.items()})


class MetricRow(TypedDict):
    """One number of a part of the data; see :class:`Evaluation`."""

    part: str
    metric: str
    value: float
    standard_error: float | None
    unit: str
    method: str


@final
@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model as a discrete model.

    Attributes:
        rows: a row for each number: part, metric, value, standard_error (over data, None if there is none), unit, and
            method ("exact", or how it was sampled).
        latent_rows: a row for each part and latent: variance, active, perplexity, mutual_information, entropy; see
            :func:`~pyro_gvae.evaluate.code_statistics.latent_statistics`.
        warnings: sentences that name unreliable numbers.
    """

    rows: list[MetricRow]
    latent_rows: list[LatentRow]
    warnings: list[str]

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """The numbers as a table, in which a missing standard error is NaN."""
        import pandas as pd  # imported here, since neither encoding nor the command line needs it

        return pd.DataFrame(self.rows).astype({"standard_error": float})

    @cached_property
    def latents(self) -> "pd.DataFrame":
        """The numbers of the latents as a table."""
        import pandas as pd

        return pd.DataFrame(self.latent_rows)

    def value(self, part: str, metric: str) -> float:
        """Return the value of one metric."""
        found = [row["value"] for row in self.rows if (row["part"], row["metric"]) == (part, metric)]
        if len(found) != 1:
            known = ", ".join(dict.fromkeys(row["metric"] for row in self.rows))
            raise ValueError(f"Expected a metric among {known}, but found '{metric}' of '{part}'.")
        return found[0]

    def as_json(self) -> dict[str, Any]:
        """Convert to nested dictionaries: part -> metric -> value, standard_error, unit, method."""
        parts: dict[str, Any] = {}
        for row in self.rows:
            rest: dict[str, Any] = {name: value for name, value in row.items() if name not in ("part", "metric")}
            parts.setdefault(row["part"], {})[row["metric"]] = rest
        return parts | {"latents": self.latent_rows, "warnings": self.warnings}


@judging
def evaluate(
    pair: HasPair,
    data: AnyDataset,
    *,
    num_data: int | None = None,
    num_particles: int = 1000,
    evidence: Evidence = "auto",
    max_operations: float = MOST_OPERATIONS,
    max_memory: float | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate the discrete model on train and test data; no number refers to a relaxed model.

    - elbo: E_q[log p(x|z)] - KL, summed over all codes, or the mean over P samples if there are too many codes or
      continuous latents.
    - log_evidence: log p(x), summed over all codes. If there is no such sum, iwae_bound (at most log p(x) in
      expectation) and effective_sample_size replace it: see
      :func:`~pyro_gvae.evaluate.importance.importance_weighted`. For continuous latents with at most 1024 codes,
      collapsed_iwae_bound is tighter: see
      :func:`~pyro_gvae.evaluate.collapsed.collapsed_importance_weighted`. If all latents are discrete, lower_bound and
      upper_bound always hold: see :func:`~pyro_gvae.evaluate.certified.certified_bounds`.
    - reconstruction = elbo + kl, where kl = KL(q(z|x) || p(z)) is in closed form, or summed, or sampled, as the
      dependence of latents allows: see :class:`~pyro_gvae.evaluate.guided.Guided`.
    - posterior_entropy: H(q(z|x)); mutual_information: I(x; z) of the whole code, if K^N is small enough;
      latent_information: the sum of I(x; z_n); code_perplexity: the effective number of categories in use, averaged
      over latents; active_units: see :func:`~pyro_gvae.evaluate.code_statistics.latent_statistics`.
    - accuracy, for a semi-supervised program and labelled data: how often the most probable class under q(y | x) is
      the label.
    - linear_probe_accuracy, for labelled data: the accuracy on test data of a linear classifier of the guide's most
      probable codes, fitted on train data; not computed for a program that is given the labels.

    With several latents, `kl` is the number of all together, and `kl[NAME]` that of each; other metrics are named in
    the same way. A latent that the guide lacks is summed, as if the guide had its exact posterior given the latents
    that it has: its numbers describe this posterior.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs that accept any number of data.
        data: a data set.
        num_data: how many data of each part to use, starting with the first; all if None. They are held in memory, even
            if the data are read from files.
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
        >>> from pyro_gvae import CategoricalVAE, load
        >>> vae = CategoricalVAE(data_dim=64, num_latents=2, num_categories=3, hidden=(5,))
        >>> found = evaluate(vae, load("digits", binarize="threshold"), num_data=100)
        >>> found.value("test", "elbo") < found.value("test", "log_evidence")
        True
    """
    _check(data, evidence)
    parts = {name: fixed_part(data, name, num_data) for name in data.parts}
    given: dict[str, Any] = {name: judged(pair, *part) for name, part in parts.items()}
    seen = look(bind_pair(pair, next(in_parts(pair, given["train"], 2))))
    apart = not is_shared(pair, given["train"])
    samples = f"{num_particles} samples"
    guided: dict[str, Guided] = {}
    metrics: list[MetricRow] = []
    latents: list[LatentRow] = []
    warnings: list[str] = []
    for name, x in given.items():
        mean = partial(per_datum, num_data=len(parts[name].x), apart=apart)
        chunks = list(in_parts(pair, x, DATA_AT_A_TIME)) if apart else [x]
        by_sum = evidence == "exact" or (
            evidence == "auto" and is_summable(pair, chunks, seen, max_operations, max_memory)
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if by_sum:
                bounds = summed_bounds(pair, chunks, mean, max_memory)
            else:
                bounds = sampled_bounds(pair, x, seen, mean, num_particles, max_memory)
            options = {"is_summed": by_sum, "num_particles": num_particles, "max_memory": max_memory}
            guided[name] = joined([read_guide(pair, rows, **options) for rows in chunks])
        method = "exact" if guided[name].is_exact else samples
        rows = [*bounds.rows, *term_rows(bounds, guided[name], mean, method)]
        rows += code_rows(guided[name], mean, method, apart=apart)
        rows += class_rows(pair, parts[name], guided[name])
        if name == "test":
            rows += probe_rows(pair, parts, guided)
        metrics += [_of_part(name, row) for row in rows]
        latents += latent_rows(name, guided[name])
        warnings += [f"{name}: {warning}" for warning in bounds.warnings]
    return Evaluation(metrics, latents, warnings)


def _check(data: Any, evidence: str) -> None:
    if evidence not in get_args(Evidence):
        raise ValueError(f"Expected evidence to be one of {', '.join(get_args(Evidence))}, but found '{evidence}'.")
    if not isinstance(data, AnyDataset):
        raise ValueError(
            f"Expected a Dataset with train and test images, but found {type(data).__name__}. Try Dataset(name, train, "
            "test, image_shape), or discrete_scores(pair, x) for some data."
        )


def _of_part(name: str, row: Row) -> MetricRow:
    return MetricRow(
        part=name,
        metric=row.metric,
        value=row.measured.value,
        standard_error=row.measured.standard_error,
        unit=row.unit,
        method=row.method,
    )
