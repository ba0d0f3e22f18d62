"""Define priors over the joint codes of N one-hots of K categories, and construct them by name."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ..config.models import INDEPENDENT, named_prior
from ..config.names import PriorName
from ..distributions.codes import Left, numbered_codes
from ..distributions.coupled import CodePrior
from ..distributions.parameters import at_least_float32, halve
from .causal import CAUSAL_NETWORKS, CausalNetwork
from .pairwise_priors import MarkovPrior, TreePrior

P = TypeVar("P", bound=nn.Module)

#: The largest number of joint codes over which a joint prior is normalized in each step.
MOST_NORMALIZED = 2**18


@final
class JointPrior(CodePrior):
    r"""An arbitrary distribution over the S joint codes: p(z) = exp f(z) / sum_z' exp f(z').

    Args:
        num_latents: N.
        num_categories: K.
        module: f, from codes (..., N, K) to logits (...); an MLP if None, which begins as the uniform prior.
        hidden: widths of the MLP.

    Attributes:
        shares: the terms that :meth:`~pyro_gvae.distributions.coupled.CodePrior.split` adds to f for each category,
            (N, K); they are not trained.

    Raises:
        ValueError: if there are more than 2^18 codes.

    Example:
        >>> prior = JointPrior(2, 3)
        >>> round(prior.log_prob(prior.all_codes()).exp().sum().item(), 4)
        1.0
    """

    shares: Tensor

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
                "or 'autoregressive', which need no such sum."
            )
        self.module = module or _mlp(num_latents * num_categories, hidden)
        self.register_buffer("shares", torch.zeros(num_latents, num_categories))

    @override
    def log_prob(self, codes: Tensor) -> Tensor:
        return self._logits(codes.to(self.uniform)) - self._logits(self.all_codes()).logsumexp(0)

    def _logits(self, codes: Tensor) -> Tensor:
        return at_least_float32(self.module(codes)) + (codes * self.shares).sum((-2, -1))

    @override
    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        numbers = torch.multinomial(self._logits(self.all_codes()).softmax(0), count, replacement=True)
        return numbered_codes(numbers, self.num_latents, self.num_categories, dtype=self.uniform.dtype)

    @override
    @torch.no_grad()
    def split(self, digit: int, source: int, to: int) -> None:
        first = self._first
        if first is None:
            super().split(digit, source, to)
            return
        columns = first.weight.unflatten(1, self.uniform.shape)[:, digit]
        columns[:, to] = columns[:, source]
        halve(self.shares[digit], source, to)

    @override
    def condition(self, left: Left) -> None:
        first = self._first
        if first is None or first.bias is None:  # to which the part of removed digits is added
            super().condition(left)
            return
        columns = first.weight.unflatten(1, self.uniform.shape)  # (H, N, K)
        is_removed = torch.ones_like(left.fixed, dtype=torch.bool).index_fill(0, left.latents, False)
        numbers = is_removed.nonzero().squeeze(-1)
        first.bias.add_(columns[:, numbers, left.fixed[numbers]].sum(-1))
        first.weight.data = left.of_each(columns).flatten(1)
        first.in_features = left.categories.numel()
        self.shares = left.of_each(self.shares)

    @property
    def _first(self) -> nn.Linear | None:
        """The layer with a column for each category of each digit, if it is known to have them."""
        match [*self.module.children()][:2]:
            case [nn.Flatten(), nn.Linear(in_features=size) as first] if size == self.uniform.numel():
                return first
        return None


def _mlp(num_inputs: int, hidden: Sequence[int]) -> nn.Module:
    widths = [num_inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten(-2)]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    last = nn.Linear(widths[-1], 1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers, last, _Squeezed())


@final
class _Squeezed(nn.Module):
    """Drop the last dimension, of size 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1)


@final
class AutoregressivePrior(CodePrior):
    """An autoregressive prior, each digit given all before it: p(z_1) p(z_2 | z_1) .. p(z_N | z_1, .., z_(N - 1)).

    One causal network returns the logits of all digits. It begins as the uniform prior.

    Args:
        num_latents: N.
        num_categories: K.
        network: "mlp", a masked MLP, or "transformer", a small causal transformer; or your own
            :class:`~pyro_gvae.models.causal.CausalNetwork`.
        **options: options of a network given by name: `hidden`; or `width`, `num_heads` and `num_layers`.

    Raises:
        ValueError: if there is no such network or option.

    Example:
        >>> prior = AutoregressivePrior(3, 4, "transformer", width=8, num_heads=2)
        >>> round(prior.log_prob(prior.all_codes()).exp().sum().item(), 4)
        1.0
    """

    def __init__(
        self, num_latents: int, num_categories: int, network: str | CausalNetwork = "mlp", **options: Any
    ) -> None:
        super().__init__(num_latents, num_categories)
        if isinstance(network, str):
            if network not in CAUSAL_NETWORKS:
                raise ValueError(
                    f"Expected a network among {', '.join(CAUSAL_NETWORKS)}, or a CausalNetwork, but found '{network}'."
                )
            network = _made(f"the network '{network}'", CAUSAL_NETWORKS[network], num_latents, num_categories, options)
        self.network = network

    @override
    def log_prob(self, codes: Tensor) -> Tensor:
        log_probs = at_least_float32(self.network(codes.to(self.uniform))).log_softmax(-1)
        return (codes.to(log_probs) * log_probs).sum((-2, -1))

    @override
    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        codes = self.uniform.new_zeros(count, self.num_latents, self.num_categories)
        for n in range(self.num_latents):
            drawn = torch.multinomial(self.network(codes)[:, n].softmax(-1), 1).squeeze(-1)
            codes[:, n] = F.one_hot(drawn, self.num_categories).to(codes)
        return codes

    @override
    def split(self, digit: int, source: int, to: int) -> None:
        self.network.split(digit, source, to)

    @override
    def condition(self, left: Left) -> None:
        raise ValueError(
            "Expected a prior whose digits given a removed one are of the same kind, but found an AutoregressivePrior: "
            "given that a later digit has one of some categories, the prior of an earlier one is a sum over all digits "
            "between them, which its network cannot say. Try prior='tree' or 'mixture', or fit_prior after pruning."
        )


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
        # Random, since equal components would stay equal.
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

    @override
    @torch.no_grad()
    def split(self, digit: int, source: int, to: int) -> None:
        halve(self.logits[:, digit], source, to)

    @override
    def condition(self, left: Left) -> None:
        log_probs = at_least_float32(self.logits).log_softmax(-1)
        of_digits = log_probs.masked_fill(~left.among(self.num_categories), -torch.inf).logsumexp(-1)  # (M, N)
        log_weights = at_least_float32(self.weights).log_softmax(-1) + of_digits.sum(-1)
        self.weights.data = log_weights.log_softmax(-1).to(self.weights)
        self.logits.data = left.of_each(self.logits)


#: Name -> constructor from N and K. `config/names.py` lists these names and the two priors of independent digits.
PRIORS: dict[PriorName, Callable[..., CodePrior]] = {
    "joint": JointPrior,
    "markov": MarkovPrior,
    "tree": TreePrior,
    "autoregressive": AutoregressivePrior,
    "mixture": MixturePrior,
}


def as_prior(prior: str | CodePrior, num_latents: int, num_categories: int) -> CodePrior | None:
    """Construct a prior from its name and any options in brackets (None for independent digits), or return a given one.

    Raises:
        ValueError: if name or options are unknown, or a given prior is for codes of another shape.

    Example:
        >>> as_prior("mixture[num_components=3]", 2, 4).logits.shape
        torch.Size([3, 2, 4])
    """
    if isinstance(prior, CodePrior):
        own, expected = (prior.num_latents, prior.num_categories), (num_latents, num_categories)
        if own != expected:
            raise ValueError(f"Expected a prior of codes of shape (N, K) = {expected}, but found one of {own}.")
        return prior
    if prior in INDEPENDENT:
        return None
    name, options = named_prior(prior)
    return _made(f"the prior '{name}'", PRIORS[name], num_latents, num_categories, options)


def _made(owner: str, construct: Callable[..., P], num_latents: int, num_categories: int, options: dict[str, Any]) -> P:
    try:
        inspect.signature(construct).bind(num_latents, num_categories, **options)
    except TypeError as error:
        raise ValueError(f"Expected options that {owner} has, but {error}.") from error
    return construct(num_latents, num_categories, **options)
