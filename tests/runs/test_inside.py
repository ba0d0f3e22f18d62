"""Paths that stay inside of a folder while somebody else changes it."""

import errno
import os
import sys

import pytest

from pyro_gvae.runs.files import append_json_line, read_bytes, remove, remove_unfinished, write_text_atomic
from pyro_gvae.runs.folder import sole_writer
from pyro_gvae.runs.inside import in_place, make_folder, staying_inside

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open folders are shown by Linux alone")


@pytest.fixture
def run(tmp_path):
    """Return a folder behind a link, like runs/latest, that contains folders, one of them a link to another place."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "mine").write_text("not yours")
    (tmp_path / "real" / "cells" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "cells" / "deep" / "mine").write_text("its own")
    (tmp_path / "real" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    return tmp_path / "latest"


USES = {
    "read": read_bytes,
    "append": lambda path: append_json_line(path, {"step": 1}),
    "write": lambda path: write_text_atomic(path, "new"),
    "remove": remove,
    "make": lambda path: make_folder(path.parent / "new"),
    "lock": lambda path: sole_writer(path.parent).__enter__(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_no_link_is_followed_inside(use, run):
    outside = run.parent / "outside"
    with staying_inside(run):
        with pytest.raises(ValueError, match="link' is a link or not a folder"):
            use(run / "link" / "deep" / "mine")
        use(run / "cells" / "deep" / "mine")
    assert (outside / "deep" / "mine").read_text() == "not yours" and len(list(outside.rglob("*"))) == 2
    use(run / "link" / "deep" / "mine")  # the negative control: unprotected access follows the link


@ON_LINUX
def test_what_was_opened_is_used_whatever_its_name_leads_to_by_then(run):
    deep, outside = run / "cells" / "deep", run.parent / "outside" / "deep"
    with staying_inside(run), in_place(deep / "mine") as place:
        (run / "cells").rename(run / "moved")
        (run / "cells").symlink_to(run.parent / "outside")
        assert place.read_text() == "its own" != (deep / "mine").read_text()
        place.unlink()
    assert (outside / "mine").exists() and not (run / "moved" / "deep" / "mine").exists()


@ON_LINUX
def test_the_folder_itself_is_the_same_to_the_end(run):
    with staying_inside(run):
        (run.parent / "latest").unlink()
        (run.parent / "latest").symlink_to(run.parent / "outside")
        assert read_bytes(run / "cells" / "deep" / "mine") == b"its own"


def test_a_cell_is_a_folder_in_a_folder(run):
    """The cell of a comparison, for example, is a run folder itself."""
    with staying_inside(run):
        with staying_inside(run / "cells" / "deep"):
            assert read_bytes(run / "cells" / "deep" / "mine") == b"its own"
            assert read_bytes(run.parent / "outside" / "deep" / "mine") == b"not yours"  # other folders do not matter
        with pytest.raises(ValueError, match="is a link"), staying_inside(run / "link" / "deep"):
            pass


def test_errors_name_the_path_that_was_asked_for(run):
    absent = run / "cells" / "absent" / "mine"
    with staying_inside(run):
        for path in (absent, run / "cells" / "mine"):
            with pytest.raises(FileNotFoundError) as error:
                read_bytes(path)
            assert (
                error.value.filename in (str(path), os.path.abspath(path.parent)) and error.value.errno == errno.ENOENT
            )
        remove(absent)  # removing an absent file is no error


def test_what_the_killed_left_elsewhere_stays(run):
    left = [run / folder / ".x.0123456789abcdef.tmp" for folder in ("cells/deep", "link/deep")]
    for path in left:
        path.touch()
    with staying_inside(run):
        remove_unfinished(run)
    assert [path.exists() for path in left] == [False, True]


def test_handles_are_closed(run):
    open_folders = "/proc/self/fd" if os.path.exists("/proc/self/fd") else "/dev/fd"
    before = len(os.listdir(open_folders))
    for _ in range(3):
        with staying_inside(run):
            write_text_atomic(run / "cells" / "deep" / "mine", "new")
            with pytest.raises(ValueError, match="is a link"):
                read_bytes(run / "link" / "deep" / "mine")
    assert len(os.listdir(open_folders)) == before
