"""Priors over the joint codes of N one-hots of K categories, by name."""

import itertools
from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ..config.names import PriorName
from ..distributions.codes import numbered_codes
from ..distributions.coupled import CodePrior
from ..distributions.parameters import at_least_float32
from .pairwise_priors import MarkovPrior, TreePrior

#: The most joint codes over which a joint prior is normalized, in each step.
MOST_NORMALIZED = 2**18


@final
class JointPrior(CodePrior):
    r"""Any probabilities of the S joint codes: p(z) = exp f(z) / sum_z' exp f(z').

    Args:
        num_latents: N.
        num_categories: K.
        module: f, from codes (..., N, K) to logits (...); an MLP if None, which begins as the uniform prior.
        hidden: widths of the MLP.

    Raises:
        ValueError: if there are more than 2^18 codes.

    Example:
        >>> prior = JointPrior(2, 3)
        >>> round(prior.log_prob(prior.all_codes()).exp().sum().item(), 4)
        1.0
    """

    def __init__(
        self,
        num_latents: int,
        num_categories: int,
        module: nn.Module | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(num_latents, num_categories)
        if self.num_codes > MOST_NORMALIZED:
            raise ValueError(
                f"Expected at most {MOST_NORMALIZED:,} joint codes, over which a joint prior is normalized in each "
                f"step, but found {num_categories}^{num_latents} = {self.num_codes:,}. Try the prior 'tree', 'mixture' "
                "or 'autoregressive', which are normalized as they are."
            )
        self.module = module or _mlp(num_latents * num_categories, hidden)

    @override
    def log_prob(self, codes: Tensor) -> Tensor:
        logits, of_all = (at_least_float32(self.module(own)) for own in (codes.to(self.uniform), self.all_codes()))
        return logits - of_all.logsumexp(0)

    @override
    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        numbers = torch.multinomial(self.module(self.all_codes()).softmax(0), count, replacement=True)
        return numbered_codes(numbers, self.num_latents, self.num_categories, dtype=self.uniform.dtype)


def _mlp(num_inputs: int, hidden: Sequence[int]) -> nn.Module:
    widths = [num_inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten(-2)]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, _zero(nn.Linear(widths[-1], 1)), _Squeezed())


@final
class _Squeezed(nn.Module):
    """Drops the last dimension, of size 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1)


def _zero(linear: nn.Linear) -> nn.Linear:
    """Set weights and biases to 0."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


@final
class AutoregressivePrior(CodePrior):
    """The digits in their order, each given all before: p(z_1) p(z_2 | z_1) .. p(z_N | z_1, .., z_(N - 1)).

    One masked network returns the logits of all digits (MADE: Germain et al. 2015, arXiv 1502.03509). It begins as the
    uniform prior.

    Args:
        num_latents: N.
        num_categories: K.
        hidden: width of the hidden layer.

    Example:
        >>> prior = AutoregressivePrior(3, 4)
        >>> round(prior.log_prob(prior.all_codes()).exp().sum().item(), 4)
        1.0
    """

    reads: Tensor
    writes: Tensor
    skips: Tensor

    def __init__(self, num_latents: int, num_categories: int, hidden: int = 128) -> None:
        super().__init__(num_latents, num_categories)
        size = num_latents * num_categories
        self.first = nn.Linear(size, hidden)
        self.last, self.direct = _zero(nn.Linear(hidden, size)), _zero(nn.Linear(size, size, bias=False))
        digit = torch.arange(num_latents).repeat_interleave(num_categories)  # of each input and output
        before = torch.arange(hidden) % max(1, num_latents - 1) + 1  # a hidden unit reads so many digits
        self.register_buffer("reads", (digit < before[:, None]).float(), persistent=False)  # (H, NK)
        self.register_buffer("writes", (before <= digit[:, None]).float(), persistent=False)  # (NK, H)
        self.register_buffer("skips", (digit < digit[:, None]).float(), persistent=False)  # (NK, NK)

    @override
    def log_prob(self, codes: Tensor) -> Tensor:
        log_probs = at_least_float32(self._logits(codes.to(self.uniform))).log_softmax(-1)
        return (codes.to(log_probs) * log_probs).sum((-2, -1))

    def _logits(self, codes: Tensor) -> Tensor:
        flat = codes.flatten(-2)
        hidden = F.linear(flat, self.first.weight * self.reads, self.first.bias).relu()
        logits = F.linear(hidden, self.last.weight * self.writes, self.last.bias)
        return (logits + F.linear(flat, self.direct.weight * self.skips)).unflatten(-1, codes.shape[-2:])

    @override
    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        codes = self.uniform.new_zeros(count, self.num_latents, self.num_categories)
        for n in range(self.num_latents):
            drawn = torch.multinomial(self._logits(codes)[:, n].softmax(-1), 1).squeeze(-1)
            codes[:, n] = F.one_hot(drawn, self.num_categories).to(codes)
        return codes


@final
class MixturePrior(CodePrior):
    """A mixture of M components, each of independent digits.

    Args:
        num_latents: N.
        num_categories: K.
        num_components: M.

    Example:
        >>> prior = MixturePrior(3, 4)
        >>> round(prior.log_prob(prior.all_codes()).exp().sum().item(), 4)
        1.0
    """

    def __init__(self, num_latents: int, num_categories: int, num_components: int = 20) -> None:
        super().__init__(num_latents, num_categories)
        self.weights = nn.Parameter(torch.zeros(num_components))
        # Not all alike, or they would stay so.
        self.logits = nn.Parameter(0.5 * torch.randn(num_components, num_latents, num_categories))

    @override
    def log_prob(self, codes: Tensor) -> Tensor:
        log_probs, log_weights = (at_least_float32(own).log_softmax(-1) for own in (self.logits, self.weights))
        of_digits = codes.flatten(-2).to(log_probs) @ log_probs.flatten(1).T  # (..., M)
        return (of_digits + log_weights).logsumexp(-1)

    @override
    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        components = torch.multinomial(self.weights.softmax(-1), count, replacement=True)
        probs = self.logits.softmax(-1)[components]  # (count, N, K)
        digits = torch.multinomial(probs.flatten(0, 1), 1).reshape(count, self.num_latents)
        return F.one_hot(digits, self.num_categories).to(self.uniform)


#: Name -> constructor from N and K. `config/names.py` lists the names, and the two of independent digits besides.
PRIORS: dict[PriorName, Callable[[int, int], CodePrior]] = {
    "joint": JointPrior,
    "markov": MarkovPrior,
    "tree": TreePrior,
    "autoregressive": AutoregressivePrior,
    "mixture": MixturePrior,
}


def as_prior(prior: str | CodePrior, num_latents: int, num_categories: int) -> CodePrior | None:
    """Return a prior by its name, None for independent digits, or a given one.

    Raises:
        ValueError: if the name is unknown, or a given prior is one of other codes.
    """
    if isinstance(prior, CodePrior):
        own, expected = (prior.num_latents, prior.num_categories), (num_latents, num_categories)
        if own != expected:
            raise ValueError(f"Expected a prior of codes of shape (N, K) = {expected}, but found one of {own}.")
        return prior
    if prior in ("uniform", "independent"):
        return None
    if prior not in PRIORS:
        names = ", ".join(("uniform", "independent", *PRIORS))
        raise ValueError(f"Expected a prior among {names}, or a CodePrior, but found '{prior}'.")
    return PRIORS[prior](num_latents, num_categories)
