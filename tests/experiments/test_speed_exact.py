"""The benchmark of exact sums as a whole at tiny sizes, and the parts that its conclusions rely on."""

import json

import pyro
import pytest
import speed_exact
import torch
from bench import Size

pytestmark = pytest.mark.slow  # many recordings, or processes

TINY = Size(data_dim=6, hidden=(5, 4), batch_size=3)


@pytest.mark.usefixtures("recorded")
def test_the_smoke_run_measures_everything(server, tmp_path, monkeypatch):
    monkeypatch.setattr(speed_exact, "in_a_process", server.in_a_process)
    speed_exact.exact(smoke=True, results=tmp_path / "new" / "speed.json", figures=tmp_path / "figures")
    found = json.loads((tmp_path / "new" / "speed.json").read_text())
    compared, alone = found["compared"]
    assert compared["stock_over_ours"] == pytest.approx(compared["stock_ms"] / compared["ours_ms"])
    assert compared["loss_difference"] < 1e-5
    assert "stock_ms" not in alone
    assert [(point["method"], point["num_codes"]) for point in found["scaling"]] == [("ours", 8), ("stock", 4)]
    assert all(point["peak_bytes"] > 50e6 for point in found["scaling"])
    assert found["long_run"]["steps"] == 6
    assert found["machine"]["torch"] == torch.__version__
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"exact_scaling.png", "exact_scaling.svg"}


def test_both_take_the_same_first_step():
    x = TINY.x()
    ours, stock = TINY.vae(2, 3), TINY.vae(2, 3)
    our_loss = speed_exact.our_step(ours, x)()
    pyro.clear_param_store()
    assert speed_exact.stock_svi(stock).step(x) / len(x) == pytest.approx(our_loss, rel=1e-5)
    for found, expected in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_operations_are_counted_from_the_layer_sizes():
    # Decoder 4-7-5-3 on 10 codes, encoder 3-5-7-4 on 2 data, and two products of (10, 3) and (2, 3).
    decoder = 10 * (6 * (4 * 7 + 7 * 5 + 5 * 3) - 2 * 4 * 7)
    encoder = 2 * (6 * (3 * 5 + 5 * 7 + 7 * 4) - 2 * 3 * 5)
    products = 2 * (2 * 10 * 3 * 2)
    assert speed_exact.step_flops(Size(3, (5, 7), 2), 10, 4) == decoder + encoder + products


def test_medians_are_of_all_blocks():
    calls: list[str] = []
    jobs = {"a": (lambda: calls.append("a"), 2), "b": (lambda: calls.append("b"), 1)}
    assert set(speed_exact.interleaved(jobs, 3)) == {"a", "b"}
    assert "".join(calls) == "ab" + 3 * "aab"


def test_linearity_is_that_of_the_large_sums():
    ours = {12: 9.0, 14: 2.0, 16: 9.0, 18: 40.0}
    points = [{"method": "ours", "num_codes": 2**n, "seconds": seconds, "peak_bytes": n} for n, seconds in ours.items()]
    points.append({"method": "stock", "num_codes": 2**20, "seconds": 1.0, "peak_bytes": 1})
    found = speed_exact.linearity(points)
    assert (found["from_codes"], found["to_codes"], found["peak_bytes"]) == (2**14, 2**18, 18)
    assert found["seconds_per_code_last_over_first"] == pytest.approx(40.0 / 16 / 2.0)


def test_a_process_that_runs_out_of_memory_is_a_result(tmp_path):
    point = speed_exact.scaled("stock", 2, TINY, memory_cap=1e6)
    assert point["died"]
    assert point["reason"]
    points = [point, {"method": "ours", "num_codes": 8, "seconds": 1.0, "peak_bytes": 1e9, "died": False}]
    speed_exact.draw(points, tmp_path)
    assert (tmp_path / "exact_scaling.svg").stat().st_size > 1000


def test_denormal_numbers_are_counted():
    tiny = torch.finfo(torch.float32).tiny
    assert speed_exact._denormals(torch.tensor([0.0, tiny, tiny / 2, -tiny / 8, 1.0])) == 2
