"""The benchmark of training steps as a whole at tiny sizes, and the parts that its conclusions rely on."""

import json

import pytest
import speed_step
import torch
from speed_step import Protocol, Size

from pyro_gvae.data.dataset import Dataset

pytestmark = pytest.mark.slow  # many recordings, or processes


@pytest.fixture
def tiny():
    x = torch.rand(20, 6).round()
    return Size(Dataset("tiny", x, x, (2, 3)), num_latents=2, num_categories=3, hidden=(5, 4), batch_size=4)


@pytest.mark.usefixtures("recorded")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # JitTrace_ELBO uses torch.jit
def test_the_smoke_run_measures_everything(tmp_path):
    speed_step.step(smoke=True, results=tmp_path / "new" / "speed.json", figures=tmp_path / "figures")
    found = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert {"ours", "stock Pyro", "JitTrace_ELBO", "hand-written PyTorch"} <= found["large"].keys()
    stock_over_ours = found["large"]["stock Pyro"] / found["large"]["ours"]
    assert found["ratios"]["stock Pyro / ours"]["found"] == pytest.approx(stock_over_ours)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"step_time.png", "step_time.svg"}
    assert found["machine"]["torch"] == torch.__version__


def test_stock_pyro_and_ours_have_the_same_loss(tiny):
    """Compare means over many draws: stock Pyro scores z, ours log z, and the densities differ only by a Jacobian."""
    x = tiny.batches(1)[0]
    program, vae = speed_step.Stock(tiny, "stock"), tiny.vae()
    elbo = speed_step.Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    theirs = elbo.loss(program.model, program.guide, x)
    assert elbo.loss(vae.model, vae.guide, x) == pytest.approx(theirs, rel=0.02)


def test_blocks_alternate_and_every_contender_takes_the_same_batches(tiny):
    seen = {"a": [], "b": []}
    contenders = {name: lambda x, name=name: seen[name].append(x) for name in seen}
    speed_step.measured(contenders, tiny, Protocol(blocks=3, steps=2, batches=4, epochs=1, late=1))
    assert [id(x) for x in seen["a"]] == [id(x) for x in seen["b"]]
    assert len(seen["a"]) == 3 + 3 * (1 + 2)
