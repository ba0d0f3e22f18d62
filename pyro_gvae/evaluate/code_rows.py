"""Compute the rows of an evaluation that describe the latents: KL, entropy, information and use of each."""

from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..config.models import Labels
from ..data.labels import use_of_labels
from ..data.rows import Part
from ..programs.choices import most_probable
from ..programs.factors import add
from .bounds import BoundRows, Row
from .code_statistics import (
    LatentStatistics,
    Measured,
    joint_mutual_information,
    latent_statistics,
    mean_over_data,
    mean_perplexity,
    table_mutual_information,
)
from .guided import Guided
from .probe import linear_probe

#: A function that computes the mean over data of one number per datum.
Mean = Callable[[Tensor], Measured]


def term_rows(bounds: BoundRows, guided: Guided, mean: Mean, method: str) -> Iterator[Row]:
    """Yield the ELBO's two terms and, if there are several latents, the KL of each.

    Args:
        bounds: the bounds of these data.
        guided: the guide's probabilities, entropies and KLs for these data.
        mean: the mean over data.
        method: how expectations under the guide were computed.
    """
    kl = add(guided.kls.values())  # (B,)
    elbo = bounds.elbo if bounds.elbo.numel() == kl.numel() else bounds.elbo.sum() / kl.numel()
    yield Row("reconstruction", mean(elbo + kl), "nats", bounds.method)
    yield Row("kl", mean(kl), "nats", method)
    if len(guided.kls) > 1:
        for name, own in guided.kls.items():
            yield Row(f"kl[{name}]", mean(own), "nats", "exact" if name in guided.closed else method)


def code_rows(guided: Guided, mean: Mean, method: str, *, apart: bool) -> Iterator[Row]:
    """Yield entropies, information and use of the discrete latents: of all together and, if several, of each.

    Args:
        guided: the guide's probabilities and entropies for some data.
        mean: the mean over data.
        method: how expectations under the guide were computed.
        apart: whether data share no latent, so that each datum has its own joint code.
    """
    method = "exact" if guided.is_factorized else method
    statistics = {name: latent_statistics(log_q) for name, log_q in guided.log_probs.items()}
    entropies = guided.entropies
    total = add(entropies.values())
    yield from _with_parts(
        "posterior_entropy", {name: mean(own) for name, own in entropies.items()}, mean(total), "nats", method
    )
    information = _joint_information(guided) if apart else None
    if information is not None:
        yield Row("mutual_information", information, "nats", method)
    yield from _summed("latent_information", statistics, lambda one: one.mutual_information, "nats", method)
    if len(statistics) == 1:
        yield Row("code_perplexity", mean_perplexity(next(iter(guided.log_probs.values()))), "categories", method)
    else:
        for name, log_q in guided.log_probs.items():
            yield Row(f"code_perplexity[{name}]", mean_perplexity(log_q), "categories", method)
    yield from _summed("active_units", statistics, lambda one: one.active.double(), "latents", method)


def _joint_information(guided: Guided) -> Measured | None:
    if guided.is_factorized:
        return joint_mutual_information(guided.log_probs)
    return None if guided.table is None else table_mutual_information(guided.table)


def _summed(
    metric: str,
    statistics: dict[str, LatentStatistics],
    of_digits: Callable[[LatentStatistics], Tensor],
    unit: str,
    method: str,
) -> Iterator[Row]:
    parts = {name: Measured(of_digits(one).sum().item()) for name, one in statistics.items()}
    return _with_parts(metric, parts, Measured(sum(part.value for part in parts.values())), unit, method)


def _with_parts(metric: str, parts: dict[str, Measured], total: Measured, unit: str, method: str) -> Iterator[Row]:
    """Yield the number of all latents and, if there are several, the number of each by its name."""
    yield Row(metric, total, unit, method)
    if len(parts) > 1:
        yield from (Row(f"{metric}[{name}]", part, unit, method) for name, part in parts.items())


def class_rows(program: Any, part: Part, guided: Guided) -> Iterator[Row]:
    """Yield the accuracy of the guide's class on data with known labels, if the program learns from labels."""
    if use_of_labels(program) is not Labels.LEARNED or part.labels is None or not (part.labels >= 0).any():
        return
    known = part.labels >= 0
    right = guided.log_probs["y"].flatten(1)[known].argmax(-1) == part.labels[known]
    yield Row("accuracy", mean_over_data(right.double()), "", "most probable class")


def probe_rows(program: Any, parts: dict[str, Part], guided: dict[str, Guided]) -> Iterator[Row]:
    """Yield the accuracy of a linear classifier of codes, if there are labels and the guide was not given them."""
    if use_of_labels(program) is Labels.GIVEN:
        return
    train, test = (_with_labels(parts[name], guided[name]) for name in ("train", "test"))
    accuracy = None if train is None or test is None else linear_probe(*train, *test)
    if accuracy is not None:
        yield Row("linear_probe_accuracy", accuracy, "", "logistic regression")


def _with_labels(part: Part, guided: Guided) -> tuple[Tensor, Tensor] | None:
    """Return the codes and labels of data with known labels; None if there are none, or a datum has no own code."""
    codes = None if part.labels is None else _digits(guided, len(part.x))
    if codes is None or part.labels is None:
        return None
    known = part.labels >= 0
    return (codes[known], part.labels[known]) if known.any() else None


def _digits(guided: Guided, num_data: int) -> Tensor | None:
    """Return the most probable category of each digit: numbers (M, N), or for several latents one-hots (M, F, 1)."""
    own = [log_q for log_q in guided.log_probs.values() if len(log_q) == num_data]
    if len(guided.log_probs) == 1:
        return own[0].argmax(-1) if own else None
    return torch.cat([most_probable(log_q).flatten(1) for log_q in own], 1).unsqueeze(-1) if own else None


class LatentRow(TypedDict):
    """The numbers of one digit: its number, or its latent's name and number if there are several latents."""

    part: str
    latent: int | str
    variance: float
    perplexity: float
    mutual_information: float
    entropy: float
    active: bool


def latent_rows(part: str, guided: Guided) -> Iterator[LatentRow]:
    """Yield a row for each digit."""
    for name, log_q in guided.log_probs.items():
        statistics = latent_statistics(log_q)
        columns = [getattr(statistics, column).tolist() for column in (*statistics._fields, "active")]
        for number, row in enumerate(zip(*columns, strict=True)):
            of_site = name if len(statistics.entropy) == 1 else f"{name}[{number}]"
            values = dict(zip((*statistics._fields, "active"), row, strict=True))
            yield LatentRow(part=part, latent=number if len(guided.log_probs) == 1 else of_site, **values)  # type: ignore[typeddict-item]
