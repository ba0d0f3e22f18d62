"""Functions recorded for a page: its script computes what torch computes; other operations are refused."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_gvae import CategoricalVAE
from pyro_gvae.models.priors import PRIORS
from pyro_gvae.report.arrays import Arrays
from pyro_gvae.report.explorer import Shown, explorer
from pyro_gvae.report.graphs import read_graph

Function = Callable[[Tensor], Tensor]


class Gated(nn.Module):
    """A network with common operations between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 6)
        self.query, self.kinds = nn.Linear(3, 3), nn.Embedding(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.relu(self.first(x), inplace=True).chunk(2, -1)
        x = x + self.second(value * gate.sigmoid())
        rows = x.unflatten(-1, (2, 3))
        mixed = (self.query(rows) @ rows.mT / 3**0.5).softmax(-1) @ rows
        normed = torch.einsum("...ni,i->...n", mixed, torch.arange(3.0)) / rows.norm(dim=-1).clamp(min=0.1)
        return torch.cat([mixed.flatten(-2), 2 - normed, self.kinds(x.argmax(-1))], -1)


def signs(x: Tensor) -> Tensor:
    y = x.new_zeros(1, 6)
    return torch.where((x > 0) & ~(x > 1), x.round().sign(), y - 1) + x.masked_fill(x < 0, 2.0).sqrt() + x.amax(-1)


ACTIVATIONS = [
    *(nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Softplus(), nn.Softplus(2, 1)),
    *(nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.Hardtanh(), nn.Hardswish(), nn.Mish(), nn.Softmax(-1), nn.ReLU6()),
]


def functions() -> list[tuple[Function, tuple[int, ...]]]:
    """Return functions with the shape of their input."""
    torch.manual_seed(0)
    norms = nn.Sequential(nn.BatchNorm1d(6), nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.Dropout())
    nn.init.uniform_(norms[0].running_mean), nn.init.uniform_(norms[0].running_var, 0.5, 2.0)
    pictures = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), nn.PixelShuffle(2), nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2), nn.ZeroPad2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    lines = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ConvTranspose1d(3, 2, 2, 2))
    made = [(Gated(), (1, 6)), (signs, (1, 6)), (norms, (1, 6)), (pictures, (1, 1, 6, 8)), (lines, (1, 2, 5))]
    made += [(torch.lgamma, (1, 6)), (lambda x: x.logsumexp((-2, -1)), (2, 3, 4)), (lambda x: x.T.sum(0), (2, 3))]
    for prior in PRIORS.values():
        one = prior(3, 4)
        nn.ParameterList(map(nn.init.normal_, one.parameters()))
        made.append((one.log_prob, (1, 3, 4)))
    for function, _ in made:
        if isinstance(function, nn.Module):
            function.eval()
    return made + [(activation, (1, 9)) for activation in ACTIVATIONS]


@pytest.mark.slow
def test_a_page_computes_what_torch_computes(
    opened: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    vae = CategoricalVAE(4, 1, 2, (3,))
    path = explorer([Shown("m", vae)], torch.ones(1, 4), (2, 2), title="t", path=tmp_path / "page.html")
    run = """([graph, arrays, x]) =>
        Array.from(compute(withArrays(graph, Float32Array.from(arrays)), Float64Array.from(x)))"""
    with opened(path) as page:
        for function, shape in functions():
            store, x = Arrays(), 2 * torch.randn(shape)
            graph = read_graph(function, torch.zeros(shape), store)
            assert graph is not None, function
            arrays = [float(number) for part in store.parts for number in part]
            found = page.evaluate(run, [graph, arrays, x.flatten().tolist()])
            with torch.no_grad():
                torch.testing.assert_close(torch.tensor(found), function(x).flatten(), rtol=1e-4, atol=1e-5)


class InPlace(nn.Module):
    """A network that changes tensors in place where something else could notice."""

    def __init__(self, *, view: bool) -> None:
        super().__init__()
        self.first, self.view = nn.Linear(3, 4), view

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        (hidden[:, :2] if self.view else x).mul_(2)
        return hidden + x.sum()


def filled(y: Tensor) -> Tensor:
    """Change a constant through a view of it."""
    y[1] = 2.0
    return y


@pytest.mark.parametrize(
    "function",
    [
        InPlace(view=True),
        InPlace(view=False),
        lambda x: filled(torch.zeros(3)) + x,
        lambda x: x.cumsum(-1),
        lambda x: x + torch.rand(3),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: (x, x),
        nn.Sequential(nn.Unflatten(-1, (3, 1)), nn.Conv1d(3, 3, 1, groups=3)),
        nn.GRU(3, 2),
    ],
)
def test_what_a_page_cannot_compute_is_refused_and_leaves_nothing(function: Function) -> None:
    store = Arrays()
    store.put(torch.ones(2))
    if isinstance(function, nn.Module):
        function.eval()
    assert read_graph(function, torch.zeros(1, 3), store) is None
    assert (len(store.parts), store.size, store.weights) == (1, 2, [])


def test_constants_are_computed_once_and_numbers_that_only_move_are_not_copied() -> None:
    store = Arrays()
    graph = read_graph(
        lambda x: x.reshape(2, 2).unsqueeze(0).flatten() + torch.eye(2).exp().sum(), torch.zeros(1, 4), store
    )
    assert graph is not None and [step["op"] for step in graph["steps"]] == ["constant", "add"]
    assert graph["steps"][1]["of"] == [0, 1] and store.size == 1
