"""Simplified graphs compute the same as the original ones."""

import operator

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_gvae.jit.in_place import with_writes
from pyro_gvae.jit.passes import simplify

X = torch.linspace(0.5, 2, 6).reshape(2, 3)


def operations(graph_module):
    called = [node.target for node in graph_module.graph.nodes if node.op == "call_function"]
    return [target.name() for target in called if target is not operator.getitem]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x - 2 * torch.ones_like(x), ["aten::sub.Tensor"]),
        (lambda x: x - -1 * torch.ones_like(x), ["aten::sub.Tensor"]),
        (lambda x: x - 2, ["aten::sub.Tensor"]),
        (lambda x: 2 * torch.ones_like(x) - x, ["aten::rsub.Scalar"]),
        (lambda x: x * -1 * torch.ones_like(x), ["aten::neg"]),
        (lambda x: x.sigmoid().mul_(torch.ones_like(x)), ["aten::sigmoid"]),
        (lambda x: x.exp().log() - x, ["aten::exp", "aten::log_", "aten::sub_.Tensor"]),
        (lambda x: (y := x.exp(), y.log()), ["aten::exp", "aten::log"]),  # both values are results
        (lambda x: x.exp().view(-1).log(), ["aten::exp", "aten::view", "aten::log"]),  # a view
        (lambda x: x.exp()[:, :1] - x, ["aten::exp", "aten::slice.Tensor", "aten::sub.Tensor"]),  # another shape
        (lambda x: x.max(-1)[0] - x.max(-1)[1], ["aten::max.dim", "aten::sub.Tensor"]),  # two results of one operation
    ],
)
def test_what_is_left(function, expected):
    graph_module = make_fx(function)(X)
    simplify(graph_module)
    with_writes(graph_module.graph)
    graph_module.recompile()
    assert operations(graph_module) == expected
    for given in (X, X + 1):
        before = given.clone()
        torch.testing.assert_close(graph_module(given), function(given))
        assert torch.equal(given, before)  # arguments are never written over
