"""Output to terminals, pipes and closed streams: it arrives if it can, and stops no command if it cannot."""

import io
import os
import subprocess
import sys

import pytest

from pyro_gvae.cli.main import main
from pyro_gvae.cli.terminal import say


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "1 ± 2 – é\n"), ("ascii", "1 +/- 2 - \\xe9\n"), ("latin-1", "1 +/- 2 - é\n")],
)
def test_letters_that_a_stream_lacks_are_replaced(encoding, expected):
    out = stream(encoding)
    say("1 ± 2 – é", out)
    assert out.buffer.getvalue().decode(encoding) == expected


def test_a_pipe_that_nobody_reads_is_no_error_and_a_full_disk_is():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        say("nobody", out)
        say("listens", out)  # a closed stream is no error either
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "w") as out:
        say("too much", out)


def test_names_that_are_no_text_are_refused_before_anything_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--output", os.fsdecode(b"na\xffme")]) == 2
    assert r"Expected arguments that are text, but found b'na\xffme'." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, sys
from pyro_gvae.cli.terminal import open_streams
open_streams()
with open(sys.argv[1], "w") as file:
    os.write(2, b"of a library")
    print("nobody", file=sys.stderr)
    print("nobody")
    file.write(str(file.fileno()))
"""


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path):
    def closed():
        for number in range(3):
            os.close(number)

    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "file"], preexec_fn=closed, check=True)
    assert int((tmp_path / "file").read_text()) > 2


CLOSED = """
import os, sys
from pyro_gvae.cli.main import main
os.close(2)
sys.stderr = None  # as Python starts then
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_training_goes_on_where_stderr_is_closed(server, tmp_path):
    (tmp_path / "closed.py").write_text(CLOSED)
    size = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--stages", "exact:1steps"]
    done = server.run("train", *size, "--output", str(tmp_path / "run"), script=tmp_path / "closed.py")
    assert done.code == 0 and (tmp_path / "run" / "weights.safetensors").exists()
