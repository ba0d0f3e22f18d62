"""Weights that are stored in parts come back unchanged."""

import pytest
import torch

from pyro_gvae.runs.weights import from_parts, in_parts

LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "coo, an entry given twice": lambda x: torch.sparse_coo_tensor(
        [[0, 0], [1, 1]], [1.0, 2.0], x.shape, check_invariants=True
    ),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((2, 2)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
def test_sparse_weights_come_back(name):
    weights = {"graph": LAYOUTS[name](torch.rand(4, 4).round()), "bias": torch.ones(2)}
    parts = in_parts(weights)
    assert all(part.layout is torch.strided for part in parts.values())
    found = from_parts(parts, weights)
    assert found.keys() == weights.keys() and found["graph"].layout is weights["graph"].layout
    assert torch.equal(found["graph"].to_dense(), weights["graph"].to_dense())
    with pytest.raises(KeyError):
        from_parts({"bias": torch.ones(2)}, weights)
