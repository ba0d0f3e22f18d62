"""Files of run folders: they survive crashes, and come back as written."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_gvae.runs import folder
from pyro_gvae.runs.files import (
    append_json_line,
    cut,
    read_bytes,
    remove_unfinished,
    replacing,
    write_json,
    write_text_atomic,
)
from pyro_gvae.runs.folder import new_run_folder, sole_writer
from pyro_gvae.runs.frames import read_json_lines, write_csv


def test_default_run_folder_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2024, 5, 6, 7, 8, 9)

    monkeypatch.setattr(folder, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    names = [new_run_folder(None, prefix="compare").as_posix() for _ in range(3)]
    stem = "runs/compare-20240506-070809"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
    assert all(Path(name).is_dir() for name in names)


def test_given_run_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert new_run_folder(tmp_path / "a" / "b").is_dir()


def test_a_named_folder_may_be_there_if_it_is_empty(tmp_path: Path) -> None:
    """A kill in the first milliseconds leaves an empty folder, and the same command starts again."""
    assert new_run_folder(tmp_path) == tmp_path


def folder_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").touch()


@pytest.mark.parametrize("make", [folder_with_a_file, Path.touch], ids=["folder", "file"])
def test_run_folder_that_exists_is_refused(tmp_path: Path, make) -> None:
    make(tmp_path / "old")
    with pytest.raises(ValueError, match=r"Expected a new run folder, .*old' exists\. Try"):
        new_run_folder(tmp_path / "old")


def test_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run' cannot: Not a directory\. Try"):
        new_run_folder(tmp_path / "file" / "run")


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path),
        pytest.raises(ValueError, match="no other process writes to, but found that one works in"),
        sole_writer(tmp_path),
    ):
        pass
    with sole_writer(tmp_path):
        pass


def test_a_writer_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from pyro_gvae.runs.folder import sole_writer\n"
        "with sole_writer(pathlib.Path(sys.argv[1])): print('holds', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "holds\n"
        with pytest.raises(ValueError, match="one works in"), sole_writer(tmp_path):
            pass
        other.kill()
    with sole_writer(tmp_path):
        pass


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_a_failing_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old and whole")

    def write_half(self: Path, text: str, **_: object) -> None:
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError("no space left on device")

    def fail(self: Path, target: Path) -> None:
        raise OSError("read-only file system")

    if failing == "write":
        monkeypatch.setattr(Path, "write_text", write_half)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"space|read-only"):
        write_text_atomic(path, "new and longer than before")
    monkeypatch.undo()
    assert path.read_text() == "old and whole"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_shows_nothing_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_json_is_strict_and_plain(tmp_path: Path) -> None:
    value = {"a": np.float32(0.5), "b": [math.nan, -math.inf, 1], "c": Path("x/y"), "d": {"e": np.float64("nan")}}
    write_json(tmp_path / "value.json", value)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "value.json").read_text(), parse_constant=refuse)
    assert read == {"a": 0.5, "b": [None, None, 1], "c": "x/y", "d": {"e": None}}


def test_csv_has_no_index(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1, 2], "b": [0.5, math.nan]}, index=[7, 9]))
    assert (tmp_path / "t.csv").read_text().splitlines() == ["a,b", "1,0.5", "2,"]


def test_json_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"estimator": "exact", "step": 0, "train_objective": None, "test_elbo": math.nan})
    append_json_line(path, {"estimator": "exact", "step": 5, "train_objective": None, "test_elbo": np.float64(-2.5)})
    frame = read_json_lines(path)
    assert frame["step"].tolist() == [0, 5]
    assert frame["test_elbo"].iloc[1] == -2.5
    assert math.isnan(frame["test_elbo"].iloc[0])
    assert frame["train_objective"].dtype == float  # although it only holds nulls
    assert frame.attrs["torn_lines"] == []


LINE = b'{"estimator": "exact", "step": 23, "test_elbo": -19.5}'


@pytest.mark.parametrize("kept", range(1, len(LINE)))
def test_a_line_torn_anywhere_costs_that_line_only(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"estimator": "exact", "step": 0, "test_elbo": -40.0})
    with path.open("ab") as file:
        file.write(LINE[:kept])
    with pytest.warns(RuntimeWarning, match="left out torn line 2"):
        frame = read_json_lines(path)
    assert frame["step"].tolist() == [0]
    assert frame.attrs["torn_lines"] == [2]
    # A resumed run continues after it.
    append_json_line(path, {"estimator": "exact", "step": 46, "test_elbo": -18.0})
    with pytest.warns(RuntimeWarning, match="left out torn line 2"):
        assert read_json_lines(path)["step"].tolist() == [0, 46]


def test_a_last_line_without_its_newline_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINE)
    assert read_json_lines(path)["step"].tolist() == [23]


def test_a_full_disk_leaves_the_lines_that_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is found to be full after the line has been written."""
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_json_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n'


def test_nobody_else_reads_a_file_before_it_has_its_name(tmp_path: Path) -> None:
    names, mask = set(), os.umask(0o022)
    try:
        for _ in range(3):
            with replacing(tmp_path / "table.csv") as temporary:
                assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
                temporary.write_text("whole")
                names.add(temporary.name)
        assert stat.S_IMODE((tmp_path / "table.csv").stat().st_mode) == 0o644
    finally:
        os.umask(mask)
    assert len(names) == 3  # nobody can predict the names


def test_what_the_killed_left_is_removed_and_what_the_living_write_stays(tmp_path: Path) -> None:
    deep = tmp_path / "cells" / "exact"
    deep.mkdir(parents=True)
    left = [folder / ".table.csv.0123456789abcdef.tmp" for folder in (tmp_path, deep)]
    kept = [tmp_path / ".table.csv.12.tmp", tmp_path / ".hidden", tmp_path / "x.0123456789abcdef.tmp"]
    for path in (*left, *kept):
        path.touch()
    (tmp_path / ".link.0123456789abcdef.tmp").symlink_to(kept[0])
    with replacing(tmp_path / "table.csv") as temporary:
        remove_unfinished(tmp_path)
        assert temporary.exists() and not any(path.exists() for path in left) and all(path.exists() for path in kept)
        temporary.write_text("whole")
    assert (tmp_path / "table.csv").read_text() == "whole"


@pytest.mark.parametrize(
    "use", [read_bytes, lambda path: append_json_line(path, {"step": 1}), lambda path: cut(path, 0)]
)
@pytest.mark.parametrize("make", ["link", "pipe", "folder"])
def test_what_is_no_file_is_neither_read_nor_written(tmp_path: Path, use, make: str) -> None:
    path, mine = tmp_path / "metrics.jsonl", tmp_path / "mine"
    mine.write_text("not yours")
    {"link": lambda: path.symlink_to(mine), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[make]()
    with pytest.raises((ValueError, OSError), match=r"is a link or not a regular file|directory"):
        use(path)
    assert mine.read_text() == "not yours"


@pytest.mark.parametrize(
    ("name", "use", "kept"),
    [
        ("metrics.jsonl", lambda path: append_json_line(path, {"step": 1}), '{"step": 0}\n{"step": 1}\n'),
        ("metrics.jsonl", lambda path: cut(path, 5), '{"ste'),
        ("metrics.jsonl", lambda path: write_text_atomic(path, "new"), "new"),
        (".lock", lambda path: lock(path.parent), "PID\n"),
    ],
)
def test_what_a_hard_link_shares_is_never_changed(tmp_path: Path, name, use, kept) -> None:
    """A stranger's folder may hold a hard link to a file of mine, and a backup may share files with its original."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    run.mkdir()
    mine.write_text('{"step": 0}\n')
    os.link(mine, run / name)
    use(run / name)
    assert mine.read_text() == '{"step": 0}\n' and (run / name).read_text() == kept.replace("PID", str(os.getpid()))
    assert list(run.iterdir()) == [run / name]


def lock(folder: Path) -> None:
    with sole_writer(folder):
        pass


def test_a_lock_that_has_two_names_is_one_lock(tmp_path: Path) -> None:
    """A backup by hard links of a folder in use has such a lock."""
    with sole_writer(tmp_path):
        os.link(tmp_path / ".lock", tmp_path / "backup")
        with pytest.raises(ValueError, match="one works in"), sole_writer(tmp_path):
            pass


def test_a_file_takes_the_place_of_a_link_and_not_of_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("not yours")
    (tmp_path / "table.csv").symlink_to(tmp_path / "mine")
    write_text_atomic(tmp_path / "table.csv", "whole")
    assert (tmp_path / "mine").read_text() == "not yours" and not (tmp_path / "table.csv").is_symlink()
