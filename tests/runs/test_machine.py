"""What a run folder says of the machine and the code that made it."""

import re
import subprocess

from pyro_gvae.runs import machine as module
from pyro_gvae.runs.config import read_config, write_config
from pyro_gvae.runs.machine import commit, machine, now, processor


def test_config_says_when_where_and_by_which_commit(tmp_path):
    write_config(tmp_path, {"train": {}})
    written = read_config(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", written["started"])
    assert written["machine"] == machine() and written["machine"]["cores"] >= 1 and written["commit"] == commit()


def test_a_processor_has_a_name_everywhere(tmp_path, monkeypatch):
    for text, name in (("vendor_id : A\nmodel name\t: Fast 9\n", "Fast 9"), ("CPU part : 0xd0c\n", None)):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
        assert processor() == name or (name is None and processor())
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "absent")
    assert processor() and now()


def test_a_changed_checkout_is_dirty(tmp_path):
    def git(*words):
        named = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *named, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = module._commit_in(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{9}", clean)
    (tmp_path / "a").write_text("2")
    assert module._commit_in(tmp_path) == f"{clean}-dirty"
    assert module._commit_in(tmp_path / "absent") is None
