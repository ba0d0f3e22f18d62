"""The benchmark of programs with several latents, as a whole at tiny sizes."""

import json

import pytest
import speed_programs
import torch

pytestmark = pytest.mark.slow  # many recordings, or processes


@pytest.mark.usefixtures("recorded")
def test_the_smoke_run_measures_everything(server, tmp_path, monkeypatch):
    monkeypatch.setattr(speed_programs, "in_a_process", server.in_a_process)
    speed_programs.programs(smoke=True, results=tmp_path / "new" / "speed.json")
    found = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert [row["program"] for row in found["programs"]] == ["M2", "Gaussian mixture", "two layers", "HMM"]
    for row in found["programs"]:
        assert row["stock_over_ours"] == pytest.approx(row["milliseconds"]["stock"] / row["milliseconds"]["ours"])
    assert all(row["loss_difference"] < 1e-4 for row in found["programs"][2:])
    assert [(row["method"], row["num_steps"]) for row in found["memory"]] == [("ours", 2), ("stock", 2)]
    assert all(row["peak_bytes"] > row["peak_bytes_before"] > 50e6 for row in found["memory"])
    assert [row["observation"] for row in found["observations"]] == ["Bernoulli", "Normal", "Poisson"]
    assert found["machine"]["torch"] == torch.__version__ and "programs" in found["command"]


def test_a_loss_that_is_another_is_refused():
    def other(vae):
        vae.prior_logits.data += torch.arange(2.0)
        return speed_programs.site_by_site(vae)

    def make(**named):
        return speed_programs.HierarchicalCategoricalVAE(4, 2, 1, 2, (3,), **named)

    x = torch.ones(3, 4)
    with pytest.raises(RuntimeError, match="Expected the same loss of 'two layers' to 1e-4, but found"):
        speed_programs.compare("two layers", make, other, x, blocks=1)
