"""The most probable joint codes of a factorized or autoregressive distribution, and samples of all others.

Codes are built digit by digit, so that the probabilities of later digits may depend on earlier ones. The best codes are
the leaves of a tree. To sample another code, draw first where it leaves the tree. Probabilities are in float64, because
the total probability of the other codes is a difference of numbers close to 1.
"""

from typing import NamedTuple, Self, final

import torch
from torch import Tensor


@final
class Best(NamedTuple):
    """The first n digits of C codes for each datum, and their log q.

    Before each digit, a code is at a node. Two codes of a datum are at the same node if all their earlier digits agree.
    """

    digits: Tensor  # (C, B, n), integers
    nodes: Tensor  # (C, B, n), integers below C
    log_q: Tensor  # (C, B), float64

    def mass_left(self) -> Tensor:
        """Return the total probability of all codes except the c most probable ones, for c = 0 .. C: (C + 1, B)."""
        probs = self.log_q.exp()
        sums = torch.cat([torch.zeros_like(probs[:1]), probs.cumsum(0)])
        return (1 - sums).clamp_min(0.0)

    def first(self, counts: Tensor) -> Self:
        """Keep the most probable codes, `counts` (B,) for each datum, and give the others probability 0."""
        places = torch.arange(len(self.log_q), device=counts.device)
        return self._replace(log_q=torch.where(places.unsqueeze(-1) < counts, self.log_q, -torch.inf))


def no_digits(batch_size: int, device: torch.device) -> Best:
    """Return the empty code for each datum."""
    digits = torch.zeros(1, batch_size, 0, dtype=torch.long, device=device)
    return Best(digits, digits, torch.zeros(1, batch_size, dtype=torch.float64, device=device))


def extend(best: Best, log_probs: Tensor, count: int) -> Best:
    r"""Append N digits to each code, and keep the C most probable results for each datum.

    The C best prefixes and the K categories of the next digit give C K candidates, of which the best C are kept. If
    digits are independent, no better code is lost, since each prefix of one of the C best codes is one of the C best
    prefixes. If not, this is a beam search: the codes are distinct and probable, but may not be the very best.

    Args:
        best: the codes so far, (C, B, n) digits.
        log_probs: log q of the next digits given each code, (C or 1, B or 1, N, K).
        count: the number of codes to keep; all are kept if there are fewer.

    Returns:
        The codes, in descending order of probability.

    Example:
        >>> one = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()  # q(z_1) and q(z_2) of one datum
        >>> best = extend(no_digits(1, one.device), one[None, None], 3)
        >>> best.digits[:, 0].tolist(), best.log_q[:, 0].exp()
        ([[1, 0], [0, 0], [1, 1]], tensor([0.5400, 0.3600, 0.0600], dtype=torch.float64))
    """
    num_latents, num_categories = log_probs.shape[-2:]
    # The i-th best category of a digit can be among the C best results only after one of the C / i best prefixes.
    ranked = log_probs.double().movedim(0, 1).sort(-1, descending=True)  # (B or 1, C or 1, N, K)
    batch_size, starts = best.log_q.shape[1], len(best.log_q)
    depends = ranked.values.shape[1] > 1
    log_q = best.log_q.T  # (B, C)
    origins = torch.arange(starts, device=log_q.device).expand(batch_size, -1)  # the code that each result extends
    steps = []
    for n in range(num_latents):
        values, categories = (_of_origins(part[:, :, n], origins if depends else None) for part in ranked)
        prefix, rank = _few_pairs(log_q.shape[-1], num_categories, count, log_q.device)
        pairs = prefix * num_categories + rank
        candidates = (log_q.unsqueeze(-1) + values).flatten(1).index_select(1, pairs)
        shape = batch_size, log_q.shape[-1], num_categories
        log_q, chosen = candidates.topk(min(count, candidates.shape[-1]), -1)  # (B, C')
        parents = prefix[chosen]
        steps.append((parents, categories.expand(shape).flatten(1).gather(-1, pairs[chosen])))
        if depends:
            origins = origins.gather(-1, parents)
    digits, nodes = [], []
    places = torch.arange(log_q.shape[-1], device=log_q.device).expand(batch_size, -1)
    for parents, category in reversed(steps):  # follow the parents back, from the last digit to the first
        digits.append(category.gather(-1, places))
        places = parents.gather(-1, places)
        nodes.append(places)
    parts = []
    for before, added in ((best.digits, digits), (best.nodes, nodes)):
        first = before.movedim(1, 0).gather(1, places.unsqueeze(-1).expand(-1, -1, before.shape[-1]))
        parts.append(torch.cat([first, torch.stack(added[::-1], -1)], -1).movedim(1, 0))
    return Best(parts[0], parts[1], log_q.T)


def _of_origins(table: Tensor, origins: Tensor | None) -> Tensor:
    """Select the row of each code's origin from a table (B or 1, C, K): (B, C', K); unchanged if all share one row."""
    if origins is None:
        return table
    return table.expand(len(origins), -1, -1).gather(1, origins.unsqueeze(-1).expand(-1, -1, table.shape[-1]))


def _few_pairs(num_prefixes: int, num_categories: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ranks of prefix and category of pairs that may be among the `count` best, two tensors (pairs,)."""
    pairs = [(i, j) for i in range(num_prefixes) for j in range(num_categories) if (i + 1) * (j + 1) <= count]
    prefix, rank = torch.tensor(pairs, device=device).T
    return prefix, rank


@final
class Exits(NamedTuple):
    """Where all other codes leave the tree of the best codes, for the digits processed so far.

    Another code agrees with some of the best codes up to a node, and leaves the tree there, by a digit that none of
    them has. The probability of leaving a node is divided equally among the best codes at that node.
    """

    log_q: Tensor  # (B, C), float64: log q of the digits so far, for each of the best codes
    probs: tuple[Tensor, ...]  # for each site, (B, N, C): q of all codes that leave code c at the n-th digit
    taken: tuple[Tensor, ...]  # for each site, (B, N, C, K): how many of the best codes continue from a node with k


def no_exits(best: Best) -> Exits:
    """Return the exits before any digit has been processed."""
    return Exits(torch.zeros_like(best.log_q.T), (), ())


def add_exits(exits: Exits, best: Best, log_probs: Tensor) -> Exits:
    """Add the exits of N more digits.

    Args:
        exits: the exits of the earlier digits.
        best: the codes with all their digits; those of probability 0 are ignored.
        log_probs: log q of these digits given each of the best codes, (C or 1, B or 1, N, K).
    """
    num_latents, num_categories = log_probs.shape[-2:]
    begun = sum(part.shape[1] for part in exits.probs)
    digits, nodes = (part[..., begun : begun + num_latents].permute(1, 2, 0) for part in (best.digits, best.nodes))
    batch_size, _, num_codes = digits.shape  # (B, N, C)
    log_probs = log_probs.double().permute(1, 2, 0, 3)  # (B or 1, N, C or 1, K)
    of_digits = log_probs.expand(*digits.shape, -1).gather(-1, digits.unsqueeze(-1)).squeeze(-1)
    sums = torch.cat([exits.log_q.unsqueeze(1), of_digits], 1).cumsum(1)
    counts = (best.log_q > -torch.inf).T.unsqueeze(1).expand(digits.shape)
    places = nodes * num_categories + digits
    zeros = torch.zeros(batch_size, num_latents, num_codes * num_categories, dtype=torch.int32, device=digits.device)
    taken = zeros.scatter_add_(-1, places, counts.int())
    shares = torch.where(counts, of_digits.exp() / taken.gather(-1, places), 0.0)  # codes with the same digit share q
    kept = torch.zeros_like(shares).scatter_add_(-1, nodes, shares).gather(-1, nodes)
    begins = torch.arange(begun, begun + num_latents, device=digits.device).unsqueeze(-1) == 0
    stays = counts | begins  # if no best code of a datum counts, all codes leave at the first digit
    at_node = torch.zeros_like(shares).scatter_add_(-1, nodes, stays.double()).gather(-1, nodes)
    total = log_probs.exp().sum(-1)  # (B or 1, N, C or 1)
    left = total - kept
    is_left = stays & (left > num_categories * torch.finfo(left.dtype).eps * total)  # else only rounding is left
    return Exits(
        sums[:, -1],
        (*exits.probs, torch.where(is_left, sums[:, :-1].exp() * left / at_node, 0.0)),
        (*exits.taken, taken.unflatten(-1, (num_codes, num_categories))),
    )


@final
class Leaving(NamedTuple):
    """Where each of P sampled codes of each datum leaves the best codes."""

    digit: Tensor  # (P, B): the first digit that differs
    code: Tensor  # (P, B): one of the best codes with the same earlier digits


def draw_exits(exits: Exits, count: int) -> Leaving:
    """Draw where `count` codes leave the best codes; the result is arbitrary if no other code has any probability."""
    num_codes = exits.log_q.shape[-1]
    chosen = _drawn(torch.cat(exits.probs, 1).flatten(1).unsqueeze(0), count)
    return Leaving(chosen // num_codes, chosen % num_codes)


def draw_others(digits: Tensor, best: Best, leaving: Leaving, taken: Tensor, log_probs: Tensor) -> Tensor:
    """Draw N more digits of codes from q, given where they leave the best codes.

    Digits before the exit are those of the best code. At the exit, only digits that no best code at the node has are
    drawn. Later digits are drawn from q. So no draw is wasted. Where no other code has probability, the codes are
    arbitrary; give them weight 0.

    Args:
        digits: the samples so far, (P, B, n).
        best: the best codes, which are not drawn, with all their digits.
        leaving: where the samples leave them.
        taken: :attr:`Exits.taken` for these digits, (B, N, C, K).
        log_probs: log q of the next digits given each sample, (P or 1, B or 1, N, K).

    Example:
        >>> one = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()[None, None]
        >>> best = extend(no_digits(1, one.device), one, 3)
        >>> exits = add_exits(no_exits(best), best, one)
        >>> begun = torch.zeros(2, 1, 0, dtype=torch.long)
        >>> draw_others(begun, best, draw_exits(exits, 2), exits.taken[0], one).squeeze(1)  # the only code left
        tensor([[0, 1],
                [0, 1]])
    """
    num_samples, batch_size, begun = digits.shape
    num_latents = log_probs.shape[-2]
    probs = log_probs.double().exp()
    later = _drawn(probs.expand(-1, batch_size, -1, -1), num_samples // len(probs))
    rows = torch.arange(num_samples, device=digits.device).unsqueeze(-1)
    data = torch.arange(batch_size, device=digits.device)
    place = (leaving.digit - begun).clamp(0, num_latents - 1)  # (P, B)
    there = probs.expand(num_samples, batch_size, -1, -1)[rows, data, place]  # (P, B, K)
    node = best.nodes[leaving.code, data, begun + place]
    other = _drawn(torch.where(taken[data, place, node] > 0, 0.0, there), 1)
    same = best.digits[leaving.code, data, begun : begun + num_latents]
    places, left = torch.arange(begun, begun + num_latents, device=digits.device), leaving.digit.unsqueeze(-1)
    drawn = torch.where(places < left, same, torch.where(places > left, later, other.unsqueeze(-1)))
    return torch.cat([digits, drawn], -1)


def _drawn(weights: Tensor, count: int) -> Tensor:
    """Draw `count` categories from each row of weights (R, .., K): (R count, ..)."""
    sums = weights.cumsum(-1)
    shape = *sums.shape[:-1], count
    thresholds = torch.rand(shape, dtype=sums.dtype, device=sums.device) * sums[..., -1:]
    chosen = torch.searchsorted(sums.contiguous(), thresholds, right=True).clamp_max(sums.shape[-1] - 1)
    return chosen.movedim(-1, 1).flatten(0, 1)
