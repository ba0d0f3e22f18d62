"""Convert a module's weights to dense tensors, which can be saved, and back: sparse buffers are split into parts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: The dense parts of each sparse layout, besides its shape.
PARTS: dict[Any, tuple[str, ...]] = {
    torch.sparse_coo: ("indices", "values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), ("crow_indices", "col_indices", "values")),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), ("ccol_indices", "row_indices", "values")),
}


def in_parts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split sparse tensors into dense parts, such as "graph/indices" and "graph/values" for "graph".

    Example:
        >>> sorted(in_parts({"graph": torch.eye(2).to_sparse(), "bias": torch.ones(2)}))
        ['bias', 'graph/indices', 'graph/values']
    """
    found = {}
    for name, tensor in weights.items():
        if tensor.layout is torch.strided:
            found[name] = tensor
            continue
        whole = tensor.detach().coalesce() if tensor.layout is torch.sparse_coo else tensor.detach()
        found |= {f"{name}/{part}": getattr(whole, part)() for part in PARTS[tensor.layout]}
    return found


def from_parts(parts: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rebuild the sparse tensors that :func:`in_parts` split.

    Args:
        parts: the tensors that it returned.
        like: weights with the original names, layouts and shapes.

    Raises:
        KeyError: if a part is absent.
        RuntimeError: if the parts of a tensor do not fit together.
    """
    found = dict(parts)
    for name, tensor in like.items():
        if tensor.layout is not torch.strided:
            own = [found.pop(f"{name}/{part}") for part in PARTS[tensor.layout]]
            found[name] = _sparse(own, tensor)
    return found


def _sparse(parts: list[Tensor], like: Tensor) -> Tensor:
    if like.layout is torch.sparse_coo:
        indices, values = parts
        return torch.sparse_coo_tensor(indices, values, like.shape, check_invariants=True)
    compressed, plain, values = parts
    return torch.sparse_compressed_tensor(
        compressed, plain, values, like.shape, layout=like.layout, check_invariants=True
    )
