"""The benchmark of tables that are read in slices, as a whole at a tiny size."""

import json

import pandas as pd
import pytest
import speed_rows
import torch

pytest.importorskip("pyarrow")


def test_the_table_has_the_stated_kinds_of_columns(tmp_path):
    file = speed_rows.write_table(tmp_path, 500, 128)
    assert len(pd.read_parquet(file)) == 500
    kinds = [column.kind for column in speed_rows.sliced_dataset(file).columns]
    assert kinds == [*["real"] * 3, *["positive"] * 2, *["count"] * 2, "binary", *["categorical"] * 2]


def test_a_smoke_run_measures_both(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_rows, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(speed_rows, "in_a_process", lambda _, **told: {"died": False} | speed_rows.point(**told))
    speed_rows.rows(smoke=True, results=tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["method"] for row in found["memory"]] == ["in memory", "in slices"]
    assert all(row["peak_bytes"] >= row["peak_of_reading"] >= row["peak_before"] > 50e6 for row in found["memory"])
    [row] = found["rate"]
    assert row["slices_over_memory"] == row["rows_a_second"]["in slices"] / row["rows_a_second"]["in memory"]
    assert found["machine"]["torch"] == torch.__version__ and "rows" in found["command"]
