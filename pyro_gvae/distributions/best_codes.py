"""The most probable joint codes of a factorized or autoregressive distribution, and samples of all others.

Codes are built digit by digit, so that the probabilities of later digits may depend on earlier ones. Probabilities are
in float64: what is left beside the most probable codes is a difference of numbers close to 1.
"""

from typing import NamedTuple, Self, final

import torch
from torch import Tensor


@final
class Best(NamedTuple):
    """C codes of each datum, as far as they are built, and log q of these first digits."""

    digits: Tensor  # (C, B, n), integers
    log_q: Tensor  # (C, B), float64

    def mass_left(self) -> Tensor:
        """Return the probability of all codes but the c most probable ones, for c = 0 .. C: (C + 1, B)."""
        probs = self.log_q.exp()
        sums = torch.cat([torch.zeros_like(probs[:1]), probs.cumsum(0)])
        return (1 - sums).clamp_min(0.0)

    def first(self, counts: Tensor) -> Self:
        """Return only the most probable codes, a number (B,) of each datum: the others get probability 0."""
        places = torch.arange(len(self.log_q), device=counts.device)
        return self._replace(log_q=torch.where(places.unsqueeze(-1) < counts, self.log_q, -torch.inf))


def no_digits(batch_size: int, device: torch.device) -> Best:
    """Return the code without digits, of each datum."""
    digits = torch.zeros(1, batch_size, 0, dtype=torch.long, device=device)
    return Best(digits, torch.zeros(1, batch_size, dtype=torch.float64, device=device))


def extend(best: Best, log_probs: Tensor, count: int) -> Best:
    r"""Append N digits to each code, and keep the C most probable results for each datum.

    The C best prefixes and the K categories of the next digit give C K candidates, of which the best C are kept. If
    digits are independent, no better code is lost, since each prefix of one of the C best codes is one of the C best
    prefixes. If they are not, this is a beam search: codes are distinct and probable, but perhaps not the very best.

    Args:
        best: the codes so far, (C, B, n) digits.
        log_probs: log q of the next digits given each code, (C or 1, B or 1, N, K).
        count: the number of codes to keep; all are kept where there are not more.

    Returns:
        The codes, in descending order of probability.

    Example:
        >>> one = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()  # q(z_1) and q(z_2) of one datum
        >>> best = extend(no_digits(1, one.device), one[None, None], 3)
        >>> best.digits[:, 0].tolist(), best.log_q[:, 0].exp()
        ([[1, 0], [0, 0], [1, 1]], tensor([0.5400, 0.3600, 0.0600], dtype=torch.float64))
    """
    _, batch_size, num_digits = best.digits.shape
    num_latents, num_categories = log_probs.shape[-2:]
    # The i-th best category of a digit can belong to the C best results only of the C / i best prefixes.
    ranked = log_probs.double().sort(-1, descending=True)
    rows = torch.arange(len(log_probs), device=log_probs.device).expand(batch_size, -1)  # of log_probs, (B, 1 or C)
    log_q, rows = best.log_q.T, rows.expand(-1, len(best.digits))  # (B, C)
    data = torch.arange(batch_size, device=log_probs.device).unsqueeze(-1)
    columns = data if log_probs.shape[1] > 1 else torch.zeros_like(data)
    steps = []
    for n in range(num_latents):
        prefix, rank = _few_pairs(log_q.shape[-1], num_categories, count, log_probs.device)
        candidates = log_q[:, prefix] + ranked.values[rows[:, prefix], columns, n, rank]
        log_q, chosen = candidates.topk(min(count, candidates.shape[-1]), -1)  # (B, C')
        parents = prefix[chosen]
        rows = rows.gather(-1, parents)
        steps.append((parents, ranked.indices[rows, columns, n, rank[chosen]]))
    found = []
    places = torch.arange(log_q.shape[-1], device=log_probs.device).expand(batch_size, -1)
    for parents, category in reversed(steps):  # which prefix was whose is known from the last digit to the first
        found.append(category.gather(-1, places))
        places = parents.gather(-1, places)
    first = best.digits.movedim(1, 0).gather(1, places.unsqueeze(-1).expand(-1, -1, num_digits))
    return Best(torch.cat([first, torch.stack(found[::-1], -1)], -1).movedim(1, 0), log_q.T)


def _few_pairs(num_prefixes: int, num_categories: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pairs of ranks of prefix and category that may be among the `count` best, two tensors (pairs,)."""
    pairs = [(i, j) for i in range(num_prefixes) for j in range(num_categories) if (i + 1) * (j + 1) <= count]
    prefix, rank = torch.tensor(pairs, device=device).T
    return prefix, rank


@final
class Others(NamedTuple):
    """P samples for each datum of codes that are not among the best, as far as they are drawn."""

    digits: Tensor  # (P, B, n), integers
    log_q: Tensor  # (P, B): of these digits under q itself, float64
    node: Tensor  # (P, B): the first of the best codes that begins with these digits; C if none does


def no_others(best: Best, num_particles: int) -> Others:
    """Return samples that have no digits yet."""
    _, batch_size, _ = best.digits.shape
    digits = best.digits.new_zeros(num_particles, batch_size, 0)
    return Others(digits, best.log_q.new_zeros(num_particles, batch_size), digits.new_zeros(num_particles, batch_size))


def draw_others(others: Others, best: Best, log_probs: Tensor) -> Others:
    r"""Draw N more digits of codes from q, given that the whole code is not among the best.

    A digit gets category k with a probability proportional to

    .. math:: q(z_1 .. z_{n-1}, k) - \sum_{c \in \mathrm{best},\; c_{1..n} = (z_1 .. z_{n-1}, k)} q(c)

    so nothing is drawn in vain. Where less is left than rounding, codes are arbitrary; they are to be given no weight.

    Args:
        others: the samples so far.
        best: the codes that are not drawn, with all their digits; those of probability 0 do not count.
        log_probs: log q of the next digits given each sample, (P or 1, B or 1, N, K).

    Example:
        >>> one = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()[None, None]
        >>> best = extend(no_digits(1, one.device), one, 3)
        >>> draw_others(no_others(best, 2), best, one).digits.squeeze(1)  # all that is left
        tensor([[0, 1],
                [0, 1]])
    """
    log_probs = log_probs.double()
    num_latents, num_categories = log_probs.shape[-2:]
    begun, num_digits = others.digits.shape[-1], best.digits.shape[-1]
    leaders = _leaders(best, begun)
    digits, log_q, node = [others.digits], others.log_q, others.node
    for n in range(num_latents):
        branches = _branch(best, leaders, begun + n, num_categories)
        leaders = branches.leaders
        own = log_q.unsqueeze(-1) + log_probs[:, :, n]  # (P, B, K)
        left = (own.exp() - _row(branches.taken, node)).clamp_min(0.0)
        after = _row(branches.node, node)  # (P, B, K)
        if begun + n == num_digits - 1:  # rounding must not let one of the best be drawn
            left = left.masked_fill(_row(branches.taken, node) > 0, 0.0)
        sums = left.cumsum(-1)
        threshold = torch.rand_like(sums[..., :1]) * sums[..., -1:]
        category = (sums <= threshold).sum(-1, keepdim=True).clamp_max(num_categories - 1)  # (P, B, 1)
        digits.append(category)
        log_q, node = own.gather(-1, category).squeeze(-1), after.gather(-1, category).squeeze(-1)
    return Others(torch.cat(digits, -1), log_q, node)


class _Branches(NamedTuple):
    """What follows the first digits of the best codes, of which the first code that has them is the leader."""

    taken: Tensor  # (B, C + 1, K): the probability of the best codes that go on with a category; none in the last row
    node: Tensor  # (B, C + 1, K): their leader; C if there are none
    leaders: Tensor  # (B, C): of each code, by one digit more


def _leaders(best: Best, num_digits: int) -> Tensor:
    """Return for each code the first of the best that has the same first digits, (B, C)."""
    first = best.digits[..., :num_digits].movedim(1, 0)  # (B, C, n)
    is_same = (first.unsqueeze(1) == first.unsqueeze(2)).all(-1)  # (B, C, C)
    return is_same.to(torch.uint8).argmax(-1)


def _branch(best: Best, leaders: Tensor, n: int, num_categories: int) -> _Branches:
    """Tell apart by their n-th digit the codes that have the same digits before it."""
    batch_size, count = leaders.shape
    places = leaders * num_categories + best.digits[..., n].T  # (B, C)
    weights = best.log_q.exp().T
    shape = batch_size, (count + 1) * num_categories
    taken = weights.new_zeros(shape).scatter_add(-1, places, weights)
    codes = torch.arange(count, device=leaders.device).expand(batch_size, -1)
    node = leaders.new_full(shape, count).scatter_reduce(-1, places, codes, "amin")
    rows = batch_size, count + 1, num_categories
    return _Branches(taken.reshape(rows), node.reshape(rows), node.gather(-1, places))


def _row(table: Tensor, node: Tensor) -> Tensor:
    """Take the row of each sample's node of a table (B, C + 1, K): (P, B, K)."""
    return table[torch.arange(len(table), device=table.device), node]
