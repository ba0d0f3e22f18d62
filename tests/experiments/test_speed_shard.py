"""The benchmark of divided codes, on tiny sizes."""

import json
import sys
from pathlib import Path

import pytest
import speed_shard

pytestmark = pytest.mark.slow  # many recordings, or processes


def test_the_smoke_run_measures_everything(server, tmp_path):
    done = server.run(str(tmp_path / "new" / "speed.json"), script=__file__)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert [(row["estimator"], row["num_codes"]) for row in found["rows"]] == [("exact", 9), ("exact-evidence", 9)]
    for row in found["rows"]:
        assert row["loss_difference"] < 1e-5
        assert row["efficiency"] == pytest.approx(row["one_ms"] / row["together_ms"] / 2)
        assert row["message_bytes"] == 4 * sum(
            inputs * outputs + outputs for inputs, outputs in [(16, 12), (12, 8), (8, 6), (6, 8), (8, 12), (12, 16)]
        )


if __name__ == "__main__":  # in a process with one thread, which forks
    speed_shard.shard(smoke=True, results=Path(sys.argv[1]))
