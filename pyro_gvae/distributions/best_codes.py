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

    The C best prefixes and the K categories of the next digit give C K candidates, of which the best C are kept: O(N C
    K) numbers in all. If digits are independent, no better code is lost, since each prefix of one of the C best codes
    is one of the C best prefixes. If they are not, this is a beam search: codes are distinct and probable, but perhaps
    not the very best.

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
    _, batch_size, _ = best.digits.shape
    log_probs = log_probs.double()
    num_latents, num_categories = log_probs.shape[-2:]
    rows = torch.arange(len(log_probs), device=log_probs.device).expand(batch_size, -1)  # of log_probs, (B, 1 or C)
    rows = rows.expand(-1, len(best.digits)).T  # (C, B)
    data = torch.arange(batch_size, device=log_probs.device)
    columns = data if log_probs.shape[1] > 1 else torch.zeros_like(data)
    for n in range(num_latents):
        candidates = best.log_q.unsqueeze(-1) + log_probs[rows, columns, n]  # (C, B, K)
        flat = candidates.movedim(0, 1).reshape(batch_size, -1)  # (B, C K)
        log_q, chosen = flat.topk(min(count, flat.shape[-1]), -1)  # (B, C')
        parents, category = (chosen // num_categories).T, (chosen % num_categories).T  # (C', B)
        digits = torch.cat([best.digits[parents, data], category.unsqueeze(-1)], -1)
        best, rows = Best(digits, log_q.T), rows[parents, data]
    return best


@final
class Others(NamedTuple):
    """P samples for each datum of codes that are not among the best, as far as they are drawn."""

    digits: Tensor  # (P, B, n), integers
    log_q: Tensor  # (P, B): of these digits under q itself, float64
    same: Tensor  # (P, B, C): which of the best codes begin with these digits


def no_others(best: Best, num_particles: int) -> Others:
    """Return samples that have no digits yet."""
    count, batch_size, _ = best.digits.shape
    digits = best.digits.new_zeros(num_particles, batch_size, 0)
    same = torch.ones(num_particles, batch_size, count, dtype=torch.bool, device=digits.device)
    return Others(digits, best.log_q.new_zeros(num_particles, batch_size), same)


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
    weights_of_best = best.log_q.exp().T  # (B, C)
    places = torch.arange(log_probs.shape[-1], device=log_probs.device)
    is_last = others.digits.shape[-1] + log_probs.shape[-2] == best.digits.shape[-1]
    for n in range(log_probs.shape[-2]):
        place = others.digits.shape[-1]
        of_best = best.digits[..., place].T.unsqueeze(-1) == places  # (B, C, K)
        own = others.log_q.unsqueeze(-1) + log_probs[:, :, n]  # (P, B, K)
        taken = torch.einsum("pbc,bck->pbk", others.same * weights_of_best, of_best.to(own.dtype))
        left = (own.exp() - taken).clamp_min(0.0)
        if is_last and n == log_probs.shape[-2] - 1:  # rounding must not let one of the best be drawn
            found = torch.einsum(
                "pbc,bck->pbk", (others.same & (weights_of_best > 0)).to(own.dtype), of_best.to(own.dtype)
            )
            left = left.masked_fill(found > 0, 0.0)
        sums = left.cumsum(-1)
        threshold = torch.rand_like(sums[..., :1]) * sums[..., -1:]
        category = (sums <= threshold).sum(-1, keepdim=True).clamp_max(len(places) - 1)  # (P, B, 1)
        same = others.same & (category == best.digits[..., place].T)
        digits = torch.cat([others.digits, category], -1)
        others = Others(digits, own.gather(-1, category).squeeze(-1), same)
    return others
