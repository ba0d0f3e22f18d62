"""Define priors with pairwise terms along the edges of a tree of digits: a chain, or the tree that fits data best."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ..distributions.codes import Left
from ..distributions.coupled import CodePrior
from ..distributions.parameters import at_least_float32, halve
from .trees import Edges, chain, maximum_spanning_tree, mutual_information, pairwise_means

#: The smallest probability that a tree learns from data, so that no code becomes impossible.
LEAST = 1e-6


class PairwisePrior(CodePrior):
    r"""Abstract base: a tree of digits, with p(z) the product of p(z_r) and of p(z_n | z_m) for its edges (m, n).

    Every distribution with pairwise terms along the edges of a tree can be written in this form, whose normalizer is 1.
    Its log-probability is linear in each digit, so its mean under independent digits is its value at their
    probabilities.

    Args:
        num_latents: N.
        num_categories: K.
        edges: pairs (parent, child), starting at the root, each parent before its children.

    Attributes:
        root_logits: logits of p(z_r), (K,).
        logits: logits of p(z_n | z_m) for each edge, (N - 1, K, K): rows are the categories of the parent.
        sources: the parents of the edges, (N - 1,).
        targets: their children, (N - 1,).
    """

    sources: Tensor
    targets: Tensor

    def __init__(self, num_latents: int, num_categories: int, edges: Edges) -> None:
        super().__init__(num_latents, num_categories)
        self.root_logits = nn.Parameter(torch.zeros(num_categories))
        self.logits = nn.Parameter(torch.zeros(num_latents - 1, num_categories, num_categories))
        self.register_buffer("sources", torch.tensor([parent for parent, _ in edges], dtype=torch.long))
        self.register_buffer("targets", torch.tensor([child for _, child in edges], dtype=torch.long))

    @property
    def edges(self) -> Edges:
        """The edges (parent, child), each parent before its children."""
        return list(zip(self.sources.tolist(), self.targets.tolist(), strict=True))

    @property
    def _root(self) -> int:
        return self.edges[0][0] if self.num_latents > 1 else 0

    @property
    @override
    def has_mean(self) -> bool:
        return True

    @override
    def mean_log_prob(self, probs: Tensor) -> Tensor:
        return self.log_prob(probs)

    @override
    def log_prob(self, codes: Tensor) -> Tensor:
        root = self.sources[:1] if self.num_latents > 1 else self.sources.new_zeros(1)  # without a copy to the host
        of_root, of_edges = (at_least_float32(own).log_softmax(-1) for own in (self.root_logits, self.logits))
        codes = codes.to(of_root)
        own = codes.index_select(-2, root).squeeze(-2) @ of_root  # (...)
        parents, children = codes.index_select(-2, self.sources), codes.index_select(-2, self.targets)
        given = torch.einsum("eij,...ei->...ej", of_edges, parents)
        return own + (given * children).sum((-2, -1))

    @override
    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        digits = torch.zeros(count, self.num_latents, dtype=torch.long, device=self.uniform.device)
        digits[:, self._root] = torch.multinomial(self.root_logits.softmax(-1), count, True)
        for (parent, child), given in zip(self.edges, self.logits.softmax(-1), strict=True):
            digits[:, child] = torch.multinomial(given[digits[:, parent]], 1).squeeze(-1)
        return F.one_hot(digits, self.num_categories).to(self.uniform)

    @override
    @torch.no_grad()
    def split(self, digit: int, source: int, to: int) -> None:
        for (parent, child), given in zip(self.edges, self.logits, strict=True):
            if parent == digit:
                given[to] = given[source]
            if child == digit:
                halve(given, source, to)
        if self._root == digit:
            halve(self.root_logits, source, to)

    @override
    def condition(self, left: Left) -> None:
        r"""Give it the conditional prior, which is a tree again.

        With :math:`m_n(i) = \sum_j p(z_n = j | z_m = i) \prod_c m_c(j)` over the categories j left of n and the
        children c of n, the summands are proportional to the conditional p(z_n = j | z_m = i). A digit whose parent is
        removed does not depend on digits beyond it, since it has one category: the edge comes from the next digit above
        that is left, or else from the root, and has equal rows.
        """
        tables = torch.cat([self.root_logits.expand(1, self.num_categories, -1), self.logits])
        tables = at_least_float32(tables).log_softmax(-1)  # (N, K, K): the root has the same one for all parents
        edges = [(self._root, self._root), *self.edges]
        is_left = left.among(self.num_categories)
        beneath = torch.zeros_like(is_left, dtype=tables.dtype).masked_fill_(~is_left, -torch.inf)  # (N, K)
        for (parent, child), table in reversed([*zip(edges, tables, strict=True)]):
            table += beneath[child]
            beneath[parent] += table.logsumexp(-1)
        rows = left.fixed.unsqueeze(-1).repeat(1, left.categories.shape[-1])  # of each digit as a parent, (N, K')
        rows[left.latents] = left.categories
        numbers = {latent: number for number, latent in enumerate(left.latents.tolist())}
        above: dict[int, int] = {}  # of each digit, the number of the first that is left, from itself upwards
        found: list[tuple[tuple[int, int], Tensor]] = []
        for (parent, child), table in zip(edges, tables, strict=True):
            if child in numbers:
                source = above.get(parent, found[0][0][1] if found else -1)
                found.append(((source, numbers[child]), table[rows[parent]][:, rows[child]]))
                above[child] = numbers[child]
            elif parent in above:
                above[child] = above[parent]
        kept = torch.stack([table for _, table in found]).to(self.logits)  # (N', K', K')
        self.root_logits.data, self.logits.data = kept[0, 0].clone(), kept[1:].clone()
        sources, targets = self.sources.new_tensor([edge for edge, _ in found[1:]]).reshape(-1, 2).T
        self.sources, self.targets = sources.contiguous(), targets.contiguous()


@final
class MarkovPrior(PairwisePrior):
    """A Markov chain of the digits in their order: p(z_1) p(z_2 | z_1) .. p(z_N | z_(N - 1)).

    Example:
        >>> prior = MarkovPrior(3, 4)
        >>> round(prior.log_prob(prior.all_codes()).exp().sum().item(), 4)
        1.0
    """

    def __init__(self, num_latents: int, num_categories: int) -> None:
        super().__init__(num_latents, num_categories, chain(num_latents))


@final
class TreePrior(PairwisePrior):
    r"""The tree of digits that is closest to the aggregated posterior of the data (Chow and Liu 1968).

    It begins as a chain. Of all trees, :meth:`refit` finds the one with the lowest divergence from the aggregated
    posterior :math:`\bar q(z) = \frac{1}{B} \sum_b q(z | x_b)`: the one with the largest sum of mutual information.

    Example:
        >>> probs = torch.eye(2)[torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]])]  # digits 0 and 2 are equal
        >>> prior = TreePrior(3, 2)
        >>> prior.refit(probs), prior.edges[0]
        (True, (0, 2))
        >>> round(prior.log_prob(probs).exp().sum().item(), 3)
        1.0
    """

    def __init__(self, num_latents: int, num_categories: int) -> None:
        super().__init__(num_latents, num_categories, chain(num_latents))

    @torch.no_grad()
    def refit(self, probs: Tensor) -> bool:
        """Replace the tree and its probabilities by the best tree for the codes of data, if that is a different tree.

        Args:
            probs: q(z_n = k | x), shape (B, N, K).

        Returns:
            Whether the tree has changed.
        """
        pairs = pairwise_means(probs.to(self.uniform))
        edges = maximum_spanning_tree(mutual_information(pairs))
        if edges == self.edges:
            return False
        self.sources.copy_(torch.tensor([parent for parent, _ in edges]))
        self.targets.copy_(torch.tensor([child for _, child in edges]))
        self.root_logits.copy_(pairs[edges[0][0], edges[0][0]].diagonal().clamp_min(LEAST).log())
        own = pairs[self.sources, self.targets]
        self.logits.copy_((own / own.sum(-1, keepdim=True).clamp_min(LEAST)).clamp_min(LEAST).log())
        return True
