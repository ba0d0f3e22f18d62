"""Find trees over digits: pairwise probabilities under the aggregated posterior, mutual information, the best tree."""

import math

import torch
from torch import Tensor

#: Pairs (parent, child), starting at the root, each parent before its children.
Edges = list[tuple[int, int]]


def chain(num_latents: int) -> Edges:
    """Return the edges of a chain: each digit is the child of the digit before it.

    Example:
        >>> chain(3)
        [(0, 1), (1, 2)]
    """
    return [(n, n + 1) for n in range(num_latents - 1)]


def pairwise_means(probs: Tensor) -> Tensor:
    r"""Return the probabilities of all pairs of digits under the aggregated posterior.

    .. math:: \bar q(z_n = i, z_m = j) = \frac{1}{B} \sum_b q(z_n = i | x_b) q(z_m = j | x_b), \quad n \ne m

    Args:
        probs: q(z_n = k | x_b) of independent digits, shape (B, N, K).

    Returns:
        Shape (N, N, K, K); the block of a digit with itself is diagonal.
    """
    pairs = torch.einsum("bni,bmj->nmij", probs, probs) / len(probs)
    own = torch.diag_embed(probs.mean(0))  # (N, K, K)
    same = torch.eye(len(own), dtype=torch.bool, device=probs.device)[:, :, None, None]
    return torch.where(same, own.unsqueeze(1), pairs)


def mutual_information(pairs: Tensor) -> Tensor:
    """Return the mutual information of all pairs of digits in nats, (N, N), from their probabilities (N, N, K, K).

    Example:
        >>> equal = torch.eye(2)[torch.tensor([[0, 0], [1, 1]])]
        >>> round(mutual_information(pairwise_means(equal))[0, 1].item(), 4)
        0.6931
    """
    rows, columns = pairs.sum(-1, keepdim=True), pairs.sum(-2, keepdim=True)
    return (torch.xlogy(pairs, pairs) - torch.xlogy(pairs, rows * columns)).sum((-2, -1))


def maximum_spanning_tree(weights: Tensor) -> Edges:
    """Return the spanning tree with the largest sum of weights (N, N), by Prim's algorithm from the first digit.

    Example:
        >>> maximum_spanning_tree(torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]))
        [(0, 2), (2, 1)]
    """
    table = weights.tolist()
    parent = [0] * len(table)
    left = set(range(1, len(table)))
    edges = []
    while left:
        child = max(sorted(left), key=lambda n: _known(table[parent[n]][n]))
        edges.append((parent[child], child))
        left.remove(child)
        for n in left:
            if _known(table[child][n]) > _known(table[parent[n]][n]):
                parent[n] = child
    return edges


def _known(weight: float) -> float:
    return -math.inf if math.isnan(weight) else weight
