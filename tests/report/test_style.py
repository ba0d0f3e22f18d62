"""Writing of figures."""

from matplotlib.figure import Figure

from pyro_gvae.report.style import save_figure


def drawn(height):
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, height])
    return figure


def test_a_figure_is_two_files_of_the_same_bytes_each_time(tmp_path):
    first, second, other = (save_figure(drawn(height), tmp_path / str(i), "f") for i, height in enumerate((1, 1, 2)))
    assert first == tmp_path / "0" / "f.svg" and {path.name for path in first.parent.iterdir()} == {"f.png", "f.svg"}
    for suffix in (".svg", ".png"):
        bytes_ = [path.with_suffix(suffix).read_bytes() for path in (first, second, other)]
        assert bytes_[0] == bytes_[1] != bytes_[2]
