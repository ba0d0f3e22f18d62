"""Define causal networks of digits: the logits of each digit depend only on the digits before it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ..distributions.parameters import halve


class CausalNetwork(nn.Module, ABC):
    """Abstract base: codes (..., N, K), possibly soft, -> logits (..., N, K); those of a digit depend on earlier ones.

    Args:
        num_latents: N.
        num_categories: K.
    """

    def __init__(self, num_latents: int, num_categories: int) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.num_categories = num_categories

    @abstractmethod
    @override
    def forward(self, codes: Tensor) -> Tensor:
        """Return the logits of all digits, (..., N, K), for codes (..., N, K)."""

    @abstractmethod
    def split(self, digit: int, source: int, to: int) -> None:
        """Treat category `to` of a digit as `source` on input, and give it half of the probability of `source`."""


@final
class MaskedMLP(CausalNetwork):
    """One hidden layer with masked weights (MADE: Germain et al. 2015, arXiv 1502.03509). The initial logits are 0.

    Args:
        num_latents: N.
        num_categories: K.
        hidden: width of the hidden layer.

    Example:
        >>> MaskedMLP(4, 8)(torch.zeros(5, 4, 8)).shape
        torch.Size([5, 4, 8])
    """

    reads: Tensor
    writes: Tensor
    skips: Tensor

    def __init__(self, num_latents: int, num_categories: int, hidden: int = 128) -> None:
        super().__init__(num_latents, num_categories)
        size = num_latents * num_categories
        self.first = nn.Linear(size, hidden)
        self.last, self.direct = nn.Linear(hidden, size), nn.Linear(size, size, bias=False)
        for parameter in (self.last.weight, self.last.bias, self.direct.weight):
            nn.init.zeros_(parameter)
        digit = torch.arange(num_latents).repeat_interleave(num_categories)  # the digit of each input and output
        before = torch.arange(hidden) % max(1, num_latents - 1) + 1  # how many digits each hidden unit reads
        self.register_buffer("reads", (digit < before[:, None]).float(), persistent=False)  # (H, NK)
        self.register_buffer("writes", (before <= digit[:, None]).float(), persistent=False)  # (NK, H)
        self.register_buffer("skips", (digit < digit[:, None]).float(), persistent=False)  # (NK, NK)

    @override
    def forward(self, codes: Tensor) -> Tensor:
        flat = codes.flatten(-2)
        hidden = F.linear(flat, self.first.weight * self.reads, self.first.bias).relu()
        logits = F.linear(hidden, self.last.weight * self.writes, self.last.bias)
        return (logits + F.linear(flat, self.direct.weight * self.skips)).unflatten(-1, codes.shape[-2:])

    @override
    @torch.no_grad()
    def split(self, digit: int, source: int, to: int) -> None:
        source, to = (digit * self.num_categories + category for category in (source, to))
        for weight in (self.first.weight, self.direct.weight):
            weight[:, to] = weight[:, source]
        for weight in (self.last.weight, self.direct.weight):
            weight[to] = weight[source]
        halve(self.last.bias, source, to)


@final
class CausalTransformer(CausalNetwork):
    """A small transformer with one token for each digit and an embedding for each category. The initial logits are 0.

    Token n embeds digit n - 1, so that no digit sees itself, and attends to the tokens up to itself (Vaswani et al.
    2017, arXiv 1706.03762); layers are normalized before attention.

    Args:
        num_latents: N.
        num_categories: K.
        width: the dimension of the tokens.
        num_heads: the number of attention heads, which must divide the width.
        num_layers: the number of blocks, each of attention and a hidden layer of four times the width.

    Raises:
        ValueError: if the number of heads does not divide the width.

    Example:
        >>> CausalTransformer(4, 8)(torch.zeros(5, 4, 8)).shape
        torch.Size([5, 4, 8])
    """

    def __init__(
        self, num_latents: int, num_categories: int, width: int = 32, num_heads: int = 4, num_layers: int = 2
    ) -> None:
        super().__init__(num_latents, num_categories)
        if min(width, num_heads, num_layers) < 1 or width % num_heads:
            raise ValueError(
                f"Expected a width that num_heads divides, and at least one layer, but found width={width}, "
                f"num_heads={num_heads} and num_layers={num_layers}. Try width=32, num_heads=4, num_layers=2."
            )
        sizes = num_latents, num_categories, width
        self.embedding = nn.Parameter(torch.randn(sizes) / math.sqrt(width))
        self.position = nn.Parameter(torch.randn(num_latents, width) / math.sqrt(width))
        self.blocks = nn.Sequential(*(_Block(width, num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.readout, self.bias = nn.Parameter(torch.zeros(sizes)), nn.Parameter(torch.zeros(sizes[:2]))

    @override
    def forward(self, codes: Tensor) -> Tensor:
        tokens = torch.einsum("...nk,nkw->...nw", codes, self.embedding)
        tokens = F.pad(tokens[..., :-1, :], (0, 0, 1, 0)) + self.position  # (..., N, W)
        tokens = self.norm(self.blocks(tokens))
        return torch.einsum("...nw,nkw->...nk", tokens, self.readout) + self.bias

    @override
    @torch.no_grad()
    def split(self, digit: int, source: int, to: int) -> None:
        for rows in (self.embedding[digit], self.readout[digit]):
            rows[to] = rows[source]
        halve(self.bias[digit], source, to)


@final
class _Block(nn.Module):
    """A transformer block: causal attention and a hidden layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.before_attention, self.before_layer = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layer = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.project(self.before_attention(tokens)).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = heads.unbind(-3)  # (..., N, heads, W / heads)
        scores = torch.einsum("...nhc,...mhc->...hnm", queries, keys) / math.sqrt(queries.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        seen = torch.einsum("...hnm,...mhc->...nhc", weights, values).flatten(-2)
        tokens = tokens + self.gather(seen)
        out: Tensor = tokens + self.layer(self.before_layer(tokens))
        return out


#: Name -> constructor from N and K.
CAUSAL_NETWORKS: dict[str, Callable[..., CausalNetwork]] = {"mlp": MaskedMLP, "transformer": CausalTransformer}
