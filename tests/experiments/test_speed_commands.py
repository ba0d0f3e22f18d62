"""The benchmarks of commands, memory, processes and the last tag, on tiny sizes."""

import json
import sys
from pathlib import Path

import bench_tag
import pytest
import speed_commands
import speed_memory
import speed_processes

pytestmark = pytest.mark.slow  # recordings, or processes


def test_commands_are_held_against_the_imports(tmp_path):
    speed_commands.commands(smoke=True, results=tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["command"] for row in found["rows"]] == ["--help", "evaluate"]
    for row in found["rows"]:
        assert row["over_imports"] == pytest.approx(row["seconds"] / found["imports_seconds"])
    assert [row["command"] for row in found["sums"]] == ["evaluate", "encode", "encode --kind exact", "gaps"]


def test_memory_is_that_of_the_networks_and_more(tmp_path):
    speed_memory.memory(smoke=True, results=tmp_path / "speed.json")
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["step"], row["method"]) for row in rows] == [
        (step, method) for step in ("relaxed", "exact") for method in ("networks", "ours", "stock")
    ]
    assert all(row["peak_bytes"] > row["held_bytes"] > 0 for row in rows)


def test_processes_are_held_against_one(server, tmp_path):
    done = server.run(str(tmp_path / "speed.json"), script=__file__)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["estimator"], row["divided"]) for row in rows] == [row[:2] for row in speed_processes.ROWS]
    assert all(row["efficiency"] == pytest.approx(row["one_ms"] / row["together_ms"] / 2) for row in rows)


def test_a_commit_that_is_not_there_is_a_sentence(capsys, monkeypatch):
    bench_tag.main("no-such-commit")
    monkeypatch.setattr(bench_tag, "_git", lambda *words: None)
    bench_tag.main(None)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "There is no commit 'no-such-commit' to compare with."
    assert said[1].startswith("There is no tag to compare with.")


def test_a_tree_is_as_fast_as_itself(capsys, monkeypatch):
    monkeypatch.setattr(bench_tag, "SIZES", {"exact 10^2": bench_tag.SIZES["exact 10^2"]})
    bench_tag.compare(bench_tag.ROOT, "itself", blocks=1)
    assert "exact 10^2     itself" in capsys.readouterr().out


if __name__ == "__main__":  # in a process with one thread, which forks
    speed_processes.processes(smoke=True, results=Path(sys.argv[1]))
