"""Sum over the codes of latents that data share, from the innermost plates to the outermost.

With a latent g of all data, p(x) = sum_g p(g) prod_b sum_z p(z | g) p(x_b | z, g), and so on for plates in plates.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions.parameters import impossible_as_infinite
from ..handlers.sites import Run
from ..programs.levels import level_scores
from ..programs.site import Codes
from .plan import Plan, computed

#: A function of codes and the model's scale that returns numbers (s, cells) by the names of latents; they are added to
#: the log-probabilities of the codes before scaling.
Added = Callable[[Codes, float | Tensor], Mapping[str, Tensor]]


def nothing(_: Codes, __: float | Tensor) -> Mapping[str, Tensor]:
    """Add nothing."""
    return {}


class Evidence(NamedTuple):
    """The log-evidence of nested plates."""

    log_evidence: Tensor  # (cells of the outermost latents,), before scaling
    scale: float | Tensor


class _Sums(NamedTuple):
    """Sums over the codes of the innermost latents; S' is the number of joint codes of the other latents."""

    log_sums: Tensor  # (S', cells)
    tables: list[Tensor]  # log-probabilities of the outer levels, from the outermost: (S', cells)
    scale: float | Tensor


def nested_evidence(model: Run, plan: Plan, added: Added = nothing) -> Evidence:
    """Compute log p(x); differentiable.

    Args:
        model: the model with its data bound.
        plan: how its codes are cut into slices.
        added: numbers to add to log-probabilities. The derivatives of log p(x) with respect to them are the posterior
            probabilities of codes.

    Raises:
        ValueError: if several processes divide the codes: log p(x) contains products over data of sums over codes, so
            it is not a sum over processes.
    """
    if plan.share.world_size > 1:
        raise ValueError(
            f"Expected one process that sums all codes, but found {plan.share.world_size} that divide them, and "
            "discrete latents that data share: log p(x) is then a sum of products of sums. Try ExactELBO."
        )
    found = _inner_sums(model, plan, added)
    outermost = plan.layout.levels[0]
    log_evidence = _log_sum(plan, _upwards(plan, found)[0], outermost.num_codes).squeeze(0)
    return Evidence(impossible_as_infinite(log_evidence), found.scale)


def nested_marginals(model: Run, plan: Plan) -> dict[str, Tensor]:
    """Compute p(z_n = k | x) of each latent given all data, (cells, N, K) by its name."""
    cells = {name: level.shape.numel() for level in plan.layout.levels for name in level.names}
    potentials = {
        latent.name: torch.zeros(
            cells[latent.name], latent.num_latents, latent.num_categories, dtype=plan.dtype, device=plan.device
        ).requires_grad_()
        for latent in plan.layout.space.latents
    }

    def added(codes: Codes, _: float | Tensor) -> Mapping[str, Tensor]:
        return {name: codes[name].flatten(1) @ own.flatten(1).T for name, own in potentials.items()}

    with torch.enable_grad():
        total = nested_evidence(model, plan, added).log_evidence.sum()
        found = torch.autograd.grad(total, list(potentials.values()))
    return dict(zip(potentials, found, strict=True))


def nested_samples(model: Run, plan: Plan, num_samples: int) -> Tensor:
    """Draw the numbers of joint codes from their posterior given all data, (P, cells of the innermost latents).

    Outer codes are drawn first, each given the codes outside it; then the innermost codes, slice by slice, given these.
    """
    found = _inner_sums(model, plan, nothing)
    levels = plan.layout.levels
    drawn = torch.zeros(num_samples, levels[0].shape.numel(), dtype=torch.long, device=plan.device)
    for i, values in enumerate(_upwards(plan, found)):
        drawn = levels[max(i - 1, 0)].spread(drawn, levels[i])
        rows = values.unflatten(0, (-1, levels[i].num_codes)).permute(2, 0, 1)  # (cells, codes further out, own)
        logits = rows[torch.arange(len(rows), device=plan.device).unsqueeze(-1), drawn.T]  # (cells, P, own)
        fresh = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).reshape(drawn.T.shape)
        drawn = drawn * levels[i].num_codes + fresh.T
    outer, inner = levels[-2].spread(drawn, levels[-1]), levels[-1].num_codes
    numbers_drawn = outer * inner
    so_far = torch.full((outer.shape[1],), -torch.inf, dtype=plan.dtype, device=plan.device)
    for i, numbers in enumerate(plan.numbers()):
        start = i * plan.slice_size
        table = _tables(model, plan, numbers, nothing)[0][-1]
        for group in range(start // inner, (start + len(numbers) - 1) // inner + 1):
            rows = slice(max(group * inner - start, 0), (group + 1) * inner - start)
            here, own = table[rows], numbers[rows]
            if group * inner >= start:  # the codes of this outer code begin in this slice
                so_far = torch.full_like(so_far, -torch.inf)
            log_sum = here.logsumexp(0)
            so_far = torch.logaddexp(so_far, log_sum)
            fresh = torch.multinomial(here.softmax(0).T, num_samples, replacement=True).T  # (P, cells)
            replaced = torch.rand(outer.shape, dtype=plan.dtype, device=plan.device) < (log_sum - so_far).exp()
            numbers_drawn = torch.where((outer == group) & replaced, own[fresh], numbers_drawn)
    return numbers_drawn


def _inner_sums(model: Run, plan: Plan, added: Added) -> _Sums:
    inner = plan.layout.levels[-1].num_codes
    done = 0  # outer codes that the slices so far have begun
    log_sums: list[Tensor] = []
    tables: list[list[Tensor]] = []
    scale: float | Tensor = 1.0
    for i, numbers in enumerate(plan.numbers()):
        start = i * plan.slice_size
        first = start // inner
        part: _Sums = computed(plan, partial(_slice, model, plan, numbers, start, added))
        here = part.log_sums
        if first < done:  # its first outer code began in the slice before
            together = torch.logaddexp(log_sums[-1][-1:], here[:1])
            log_sums[-1], here = log_sums[-1][:-1], torch.cat([together, here[1:]])
        log_sums.append(here)
        done = first + len(part.log_sums)
        tables.append(part.tables)
        scale = part.scale
    return _Sums(torch.cat(log_sums), [torch.cat(table) for table in zip(*tables, strict=True)], scale)


def _slice(model: Run, plan: Plan, numbers: Tensor, start: int, added: Added) -> _Sums:
    """Sum the codes numbered from `start` over their innermost latents.

    The tables returned are those of the outer codes that begin in this slice.
    """
    tables, scale = _tables(model, plan, numbers, added)
    inner = plan.layout.levels[-1].num_codes
    before, after = start % inner, -(start + len(numbers)) % inner
    padded = torch.nn.functional.pad(tables[-1], (0, 0, before, after), value=-torch.inf)
    return _Sums(_log_sum(plan, padded, inner), [table[-start % inner :: inner] for table in tables[:-1]], scale)


def _tables(model: Run, plan: Plan, numbers: Tensor, added: Added) -> tuple[list[Tensor], float | Tensor]:
    """Return the table (s, cells) of each level, and the scale of the model."""
    codes = plan.codes(numbers)
    found = level_scores(model, plan.layout, codes)
    more = added(codes, found.scale)
    tables = []
    for level, table in zip(plan.layout.levels, found.tables, strict=True):
        for name in level.names:
            if name in more:
                table = table + more[name]
        # An impossible code must not make its outer code's sum NaN; sums of the clamped numbers over data are finite.
        tables.append(table.clamp_min(torch.finfo(plan.dtype).min / (16 * plan.layout.batch_size)))
    return tables, found.scale


def _log_sum(plan: Plan, table: Tensor, count: int) -> Tensor:
    """Sum over the last `count` codes: (S, cells) -> (S / count, cells)."""
    return plan.log_sum(table.unflatten(0, (-1, count)).movedim(1, 0))


def _upwards(plan: Plan, found: _Sums) -> list[Tensor]:
    """Return log p of everything inside each outer level, from the outermost: (codes up to that level, its cells)."""
    levels = plan.layout.levels
    message, step = found.log_sums, 1
    values = []
    for i in range(len(levels) - 2, -1, -1):
        rows = message.reshape(-1, *levels[i + 1].shape)
        product = rows.sum_to_size(len(rows), *levels[i].shape).reshape(len(rows), -1)
        values.append(product + found.tables[i][::step])
        message = _log_sum(plan, values[-1], levels[i].num_codes)
        step *= levels[i].num_codes
    return values[::-1]
