"""Data sets: loading returns what the files hold, batches depend on (seed, epoch) alone, and bad data are refused.

Loaders are tested on tiny files in torchvision's layout, and downloads with file: addresses, so that no test needs the
network.
"""

import gzip
import hashlib
import itertools
import math
import struct
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mnist_like import write_mnist_like
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchvision import datasets

from pyro_gvae.data import dataset as data
from pyro_gvae.data.batches import epoch_batches
from pyro_gvae.data.dataset import Dataset, binarized, check_images
from pyro_gvae.data.datasets import DATASETS, load
from pyro_gvae.data.observed import observed
from pyro_gvae.data.teacher import teacher
from pyro_gvae.models.observations import BernoulliObservation, CategoricalObservation

MNIST = Path(__file__).parents[2] / "../shared/mnist"
MNIST_LIKE = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
FOLDERS = {name: f"{folder}/raw" for name, folder in MNIST_LIKE.items()} | {"omniglot": "omniglot-py"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = urllib.request.urlopen

    def urlopen(request: urllib.request.Request) -> Any:
        assert request.full_url.startswith("file:"), f"no test may open {request.full_url}"
        response = real(request)
        response.length = int(response.headers["Content-Length"])  # HTTP has it, for the progress bar
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def grey(num_train: int = 50, num_test: int = 20, dim: int = 6) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.rand(size, dim, generator=generator) for size in (num_train, num_test))
    return Dataset("grey", train, test, (2, dim // 2))


# --- checks


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.tensor([[0.5, math.nan], [0.5, 0.5]]), r"in \[0, 1\], but found NaN in 1 of 2"),
        (torch.tensor([[0.5, math.inf]]), r"in \[0, 1\], but found values from 0\.5 to inf"),
        (torch.tensor([[-1e-3, 0.5]]), r"in \[0, 1\], but found values from -0\.001 to 0\.5"),
        (torch.tensor([[0.0, 255.0]]), r"found values from 0 to 255\. Try x / 255"),
        (torch.zeros(2, 3, dtype=torch.uint8), r"floating-point tensor \(M, D\), but found torch\.uint8"),
        (torch.zeros(2, 1, 3, 3), r"but found torch\.float32 of shape \(2, 1, 3, 3\)\. Try x\.flatten\(1\)"),
        (torch.zeros(0, 3), r"but found torch\.float32 of shape \(0, 3\)"),
    ],
)
def test_bad_images_are_refused(x: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_images(x)
    for train, test in ((x, torch.zeros(2, 3)), (torch.zeros(2, 3), x))[: min(len(x), 1) + 1]:  # no test data is fine
        with pytest.raises(ValueError, match="mine"):
            Dataset("mine", train, test, (1, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_ends_of_the_range_are_good(dtype: torch.dtype) -> None:
    check_images(torch.tensor([[0.0, 1.0, -0.0]], dtype=dtype))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_shape": (2, 4)}, r"images of 8 values, since image_shape=\(2, 4\), but found 6"),
        ({"test": torch.zeros(3, 5)}, r"Expected grey test images of 6 values, .* but found 5"),
        ({"train_labels": torch.zeros(49)}, r"Expected 50 grey train labels, .* labels of shape \(49,\)"),
        ({"test_labels": torch.zeros(20, 1)}, r"Expected 20 grey test labels, .* labels of shape \(20, 1\)"),
        ({"binarize": "soft"}, "Expected binarize among none, threshold, dynamic, but found 'soft'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Dataset(**{**vars(grey()), **change})


# --- batches


@pytest.mark.parametrize(("size", "batch_size"), [(50, 1), (50, 7), (50, 10), (50, 50), (1, 1)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_uses_every_image_once(size: int, batch_size: int, drop_last: bool) -> None:
    x = torch.arange(float(size)).unsqueeze(1)
    batches = list(epoch_batches(x, batch_size, seed=3, epoch=2, drop_last=drop_last))
    full, rest = divmod(size, batch_size)
    assert [len(b) for b in batches] == [batch_size] * full + ([rest] if rest and not drop_last else [])
    used = torch.cat(batches).flatten().tolist()
    assert len(set(used)) == len(used)
    if not rest or not drop_last:
        assert sorted(used) == x.flatten().tolist()


@pytest.mark.parametrize("binarize", data.BINARIZATIONS)
@pytest.mark.usefixtures("global_rng_untouched")
def test_batches_are_a_function_of_seed_and_epoch_alone(binarize: str) -> None:
    images = binarized(grey(), binarize)

    def epoch(seed: int, epoch: int) -> Tensor:
        return torch.cat(list(epoch_batches(images, 8, seed=seed, epoch=epoch)))

    table = {key: epoch(*key) for key in itertools.product(range(3), range(3))}
    assert all(torch.equal(table[key], epoch(*key)) for key in reversed(table))
    for one, other in itertools.combinations(table, 2):
        assert not torch.equal(table[one], table[other])


@pytest.mark.parametrize("binarize", data.BINARIZATIONS)
def test_an_epoch_goes_on_inside(binarize: str) -> None:
    images = binarized(grey(), binarize)
    whole = list(epoch_batches(images, 8, seed=0, epoch=1))
    tail = list(itertools.islice(epoch_batches(images, 8, seed=0, epoch=1), 3, None))
    assert len(tail) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], tail, strict=True))


def test_two_iterators_do_not_disturb_each_other() -> None:
    images = binarized(grey(), "dynamic")
    alone = list(epoch_batches(images, 8, seed=0, epoch=0))
    pairs = zip(*(epoch_batches(images, 8, seed=0, epoch=epoch) for epoch in (0, 1)), strict=True)
    assert all(torch.equal(a, b) for a, (b, _) in zip(alone, pairs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("binarize", data.BINARIZATIONS)
def test_batches_keep_the_dtype(dtype: torch.dtype, binarize: str) -> None:
    images = Dataset("mine", torch.rand(5, 6, dtype=dtype), torch.rand(5, 6, dtype=dtype), (2, 3))
    images = binarized(images, binarize)
    assert {b.dtype for b in epoch_batches(images, 2, seed=0, epoch=0)} == {images.test.dtype} == {dtype}


@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_a_batch_size_out_of_range_is_refused_at_the_call(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to the 50 training data, but found {batch_size}"):
        epoch_batches(grey(), batch_size, seed=0, epoch=0)


# --- binarization


def test_none_keeps_the_data() -> None:
    images = grey()
    assert binarized(images, "none") is images


def test_threshold_is_fixed_for_both_parts() -> None:
    images = grey()
    binary = binarized(images, "threshold")
    for part, oracle in ((binary.train, images.train), (binary.test, images.test)):
        assert part.tolist() == [[float(value > 0.5) for value in row] for row in oracle.tolist()]
    assert 0.5 not in images.train
    assert binarized(Dataset("half", torch.full((1, 1), 0.5), torch.ones(1, 1), (1, 1)), "threshold").train == 0.0


@pytest.mark.usefixtures("global_rng_untouched")
def test_dynamic_keeps_train_grey_and_draws_test_once() -> None:
    images = grey(num_test=5000)
    drawn = binarized(images, "dynamic", seed=1)
    assert torch.equal(drawn.train, images.train)
    assert set(drawn.test.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn.test, binarized(images, "dynamic", seed=1).test)
    assert not torch.equal(drawn.test, binarized(images, "dynamic", seed=2).test)
    standard_error = (images.test * (1 - images.test)).sum(0).sqrt() / len(images.test)
    assert ((drawn.test - images.test).mean(0).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("num_levels", [2, 17])
def test_grey_values_become_the_nearest_level(num_levels: int) -> None:
    images = grey()
    levels = observed(images, CategoricalObservation(num_levels))
    grid = torch.linspace(0, 1, num_levels)
    for x, found in ((images.train, levels.train), (images.test, levels.test)):
        assert torch.equal(found, (x.unsqueeze(-1) - grid).abs().argmin(-1).float())
    assert levels.value_range == (0, num_levels - 1) and levels.image_shape == images.image_shape


def test_levels_of_files_are_what_the_files_hold() -> None:
    """Scikit-learn's digits have 17 levels, other images 256; no level is off by rounding."""
    assert torch.equal(observed(load("digits"), CategoricalObservation(17)).train, load("digits").train * 16)
    bytes_ = torch.arange(256.0).unsqueeze(0)
    images = Dataset("bytes", bytes_ / 255, bytes_ / 255, (16, 16))
    assert torch.equal(observed(images, CategoricalObservation(256)).train, bytes_)


def test_images_that_are_data_as_they_stand_stay_the_same() -> None:
    drawn = teacher(sizes=(10, 10))
    assert observed(drawn, BernoulliObservation()) is drawn
    assert observed(binarized(grey(), "dynamic"), BernoulliObservation()).binarize == "dynamic"
    assert observed(drawn, CategoricalObservation(3)).teacher is None  # the teacher drew other data


def test_probabilities_are_no_levels() -> None:
    with pytest.raises(ValueError, match="found those of dynamic binarization, which are probabilities"):
        observed(binarized(grey(), "dynamic"), CategoricalObservation(2))
    levels = observed(grey(), CategoricalObservation(4))
    for make in (
        lambda: binarized(levels, "threshold"),
        lambda: binarized(levels, "dynamic"),
        lambda: observed(levels, CategoricalObservation(4)),
    ):
        with pytest.raises(ValueError, match=r"Expected grey images .* found the value_range \(0\.0, 3\.0\)"):
            make()


def test_images_keep_to_their_own_range() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    assert Dataset("mine", x, x, (1, 2), value_range=(-1, 2)).train is x
    with pytest.raises(ValueError, match=r"mine train images in \[-1, 1\], but found values from -1 to 2\. Try an"):
        Dataset("mine", x, x, (1, 2), value_range=(-1, 1))


def test_dynamic_batches_are_fresh_draws_with_the_grey_value_as_mean() -> None:
    """A mean of 30,000 draws misses by 5 standard errors once in two million pixels."""
    probabilities = torch.tensor([[0.0, 1.0, 0.1, 0.5, 0.9, 1e-3]])
    images = Dataset("grey", probabilities.expand(300, 6), probabilities, (2, 3), binarize="dynamic")
    epochs = torch.stack([torch.cat(list(epoch_batches(images, 100, seed=0, epoch=epoch))) for epoch in range(100)])
    assert set(epochs.unique().tolist()) == {0.0, 1.0}
    error = (epochs.mean((0, 1)) - probabilities).abs()
    assert (error <= 5 * (probabilities * (1 - probabilities) / 30_000).sqrt()).all()
    assert not torch.equal(epochs[0], epochs[1])


# --- digits, load


@pytest.mark.usefixtures("global_rng_untouched")
def test_digits_are_those_of_scikit_learn() -> None:
    images = load("digits")
    assert images.train.shape == (1437, 64)
    assert images.test.shape == (360, 64)
    assert images.image_shape == (8, 8)
    assert images.train_labels is not None and images.test_labels is not None
    assert images.train_labels.dtype == torch.int64
    ours = torch.cat([images.train, images.test]).mul(16)
    labels = torch.cat([images.train_labels, images.test_labels])
    theirs, their_labels = load_digits(return_X_y=True)
    rows = sorted(zip(ours.tolist(), labels.tolist(), strict=True))
    assert rows == sorted(zip(theirs.tolist(), their_labels.tolist(), strict=True))
    shares = images.test_labels.bincount() / labels.bincount()
    assert (shares - 360 / 1797).abs().max() < 0.005


def test_digits_have_one_split() -> None:
    one, other = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(one.train, other.train)
    assert torch.equal(one.test, other.test)


@pytest.mark.parametrize(
    ("name", "binarize", "sentence"),
    [
        ("digit", "none", r"digits, mnist, .* diabetes, but found 'digit'\. Try 'digits'\."),
        ("wine.csv", "none", r"but found 'wine\.csv'\. Try dataset_of\('wine\.csv'\)\."),
        ("digits", "grey", r"none, .* but found 'grey'"),
    ],
)
def test_unknown_names_are_refused_with_what_to_try(name: str, binarize: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load(name, binarize=binarize)


# --- files


def assert_holds(images: Dataset, arrays: dict[str, np.ndarray]) -> None:
    for part, x, labels in (
        ("train", images.train, images.train_labels),
        ("t10k", images.test, images.test_labels),
    ):
        oracle = arrays[f"{part}-images-idx3-ubyte"].reshape(-1, 784).astype(np.float32) / np.float32(255)
        assert labels is not None
        assert x.dtype == torch.float32
        np.testing.assert_array_equal(x.numpy(), oracle)
        np.testing.assert_array_equal(labels.numpy(), arrays[f"{part}-labels-idx1-ubyte"])


@pytest.mark.parametrize("name", MNIST_LIKE)
def test_mnist_like_files(name: str, tmp_path: Path) -> None:
    arrays = write_mnist_like(tmp_path / FOLDERS[name])
    images = load(name, data_dir=tmp_path)
    assert (images.name, images.image_shape) == (name, (28, 28))
    assert_holds(images, arrays)
    assert_holds(load(name, data_dir=str(tmp_path)), arrays)


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arrays = write_mnist_like(tmp_path / "images/KMNIST/raw")
    assert_holds(load("kmnist", data_dir="~/images"), arrays)


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST's files are not in ../shared/mnist")
def test_real_mnist() -> None:
    images = load("mnist", data_dir=MNIST)
    assert images.train.shape == (60_000, 784)
    assert images.test.shape == (10_000, 784)
    assert images.test_labels is not None
    assert images.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert images.train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert images.test.mean().item() == pytest.approx(0.1325, abs=5e-5)


def write_omniglot(folder: Path) -> None:
    """Write two zip files with drawings of 105 x 105 pixels; the number of black columns identifies the drawing."""
    folder.mkdir(parents=True)
    background = {"A/c1/d2": 20, "A/c1/d3": 60, "A/c1/d1": 105, "B/c2/d1": 40, "B/c1/d2": 0, "B/c1/d1": 30}
    evaluation = {"C/c1/d1": 50, "C/c2/d1": 0}
    for part, drawings in (("images_background", background), ("images_evaluation", evaluation)):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for name, columns in drawings.items():
                paper = np.ones((105, 105), dtype=bool)
                paper[:, :columns] = False  # black is ink
                with archive.open(f"{part}/{name}.png", "w") as file:
                    Image.fromarray(paper).save(file, "png")


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def omniglot_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that replaces Omniglot's download address in torchvision."""
    server = tmp_path / "server"
    write_omniglot(server)
    monkeypatch.setattr(datasets.Omniglot, "download_url_prefix", server.as_uri())
    sums = {part: md5(server / f"{part}.zip") for part in datasets.Omniglot.zips_md5}
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums)
    return server


@pytest.mark.usefixtures("omniglot_server")
def test_omniglot_downloads_and_reads(tmp_path: Path) -> None:
    images = load("omniglot", data_dir=tmp_path, download=True)
    assert (images.train.shape, images.test.shape, images.image_shape) == ((6, 784), (2, 784), (28, 28))
    ink = [105, 20, 60, 30, 0, 40], [50, 0]
    for x, columns in zip((images.train, images.test), ink, strict=True):
        np.testing.assert_allclose(x.mean(1), np.array(columns) / 105, atol=1 / 255)
    assert images.train.reshape(6, 28, 28)[1, :, :5].min() == 1.0
    assert images.train.reshape(6, 28, 28)[1, :, 6:].max() == 0.0
    assert images.train_labels is not None and images.test_labels is not None
    assert (images.train_labels.tolist(), images.test_labels.tolist()) == ([0, 0, 0, 1, 1, 2], [3, 4])
    again = load("omniglot", data_dir=tmp_path)
    assert torch.equal(again.train, images.train)


def test_mnist_like_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_mnist_like(tmp_path / "server")
    resources = []
    for name in arrays:
        packed = tmp_path / "server" / f"{name}.gz"
        packed.write_bytes(gzip.compress((tmp_path / "server" / name).read_bytes()))
        resources.append((packed.name, md5(packed)))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [(tmp_path / "server").as_uri() + "/"])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    assert_holds(load("fashion_mnist", data_dir=tmp_path / "here", download=True), arrays)
    assert_holds(load("fashion_mnist", data_dir=tmp_path / "here"), arrays)


def sentence_of(name: str, data_dir: Path, download: bool = False) -> OSError:
    with pytest.raises(OSError) as caught:
        load(name, data_dir=data_dir, download=download)
    # The message comes without a traceback of torchvision.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in str(caught.value)
    assert str(data_dir / FOLDERS[name]) in str(caught.value)
    assert "--download (download=True)" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", FOLDERS)
def test_absent_files_are_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    error = sentence_of(name, tmp_path)
    assert isinstance(error, FileNotFoundError)
    assert "another --data-dir (data_dir)" in str(error)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "foreign": lambda file: file.write_bytes(b"<html>404</html>"),
    "of floats": lambda file: file.write_bytes(struct.pack(">IIf", 0xD01, 1, 0.5)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_files_are_told_in_one_sentence(damage: str, file: str, tmp_path: Path) -> None:
    write_mnist_like(tmp_path / FOLDERS["mnist"])
    load("mnist", data_dir=tmp_path)
    DAMAGES[damage](tmp_path / FOLDERS["mnist"] / file)
    assert "Expected to read the files of 'mnist'" in str(sentence_of("mnist", tmp_path))


@pytest.mark.usefixtures("omniglot_server")
@pytest.mark.parametrize("file", ["images_background.zip", "images_evaluation/C/c1/d1.png"])
def test_damaged_drawings_are_told_in_one_sentence(file: str, tmp_path: Path) -> None:
    load("omniglot", data_dir=tmp_path, download=True)
    (tmp_path / "omniglot-py" / file).write_bytes(b"<html>404</html>")
    assert "Expected to read the files of 'omniglot'" in str(sentence_of("omniglot", tmp_path))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_failed_download_is_told_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = datasets.Omniglot if name == "omniglot" else getattr(datasets, MNIST_LIKE[name])
    nowhere = (tmp_path / "nowhere").as_uri()
    monkeypatch.setattr(dataset, "download_url_prefix", nowhere, raising=False)
    monkeypatch.setattr(dataset, "mirrors", [nowhere + "/"], raising=False)
    error = sentence_of(name, tmp_path, download=True)
    assert f"Expected to fetch or read the files of '{name}'" in str(error)
    assert "nowhere" in str(error)


# --- teacher


def true_log_evidence(images: Dataset, x: Tensor) -> Tensor:
    """Return log p(x) by its definition, a logsumexp over all codes, in float64."""
    vae = images.teacher
    assert vae is not None
    codes = itertools.product(range(vae.num_categories), repeat=vae.num_latents)
    z = one_hot(torch.tensor(list(codes)), vae.num_categories).float()
    logits = vae.decoder(z).double()  # (S, D)
    rows = [
        -binary_cross_entropy_with_logits(logits, one.double().expand_as(logits), reduction="none").sum(1) for one in x
    ]
    return torch.stack(rows).logsumexp(1) - math.log(len(logits))


@pytest.mark.usefixtures("global_rng_untouched")
def test_teacher_is_a_function_of_its_seed() -> None:
    one, again, other = (load("teacher", seed=seed) for seed in (0, 0, 1))
    assert (one.train.shape, one.test.shape, one.image_shape) == ((2000, 64), (500, 64), (8, 8))
    assert set(one.train.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(one.train, again.train)
    assert torch.equal(one.test, again.test)
    assert not torch.equal(one.train, other.train)
    assert one.teacher is not None and again.teacher is not None
    assert (one.teacher.num_latents, one.teacher.num_categories, one.teacher.data_dim) == (4, 8, 64)
    assert not any(parameter.requires_grad for parameter in one.teacher.parameters())
    weights, same_weights = one.teacher.state_dict(), again.teacher.state_dict()
    assert all(torch.equal(weights[key], same_weights[key]) for key in weights)


def frequencies_deviate(drawn: Dataset, truth: Dataset) -> float:
    """Return the largest deviation of the frequency of one of the 64 images from its probability in standard errors."""
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))
    probability = true_log_evidence(truth, every).exp()
    assert probability.sum().item() == pytest.approx(1.0)
    index = (drawn.train @ 2.0 ** torch.arange(5.0, -1.0, -1.0)).long()
    frequency = index.bincount(minlength=64) / len(index)
    return ((frequency - probability) / (probability * (1 - probability) / len(index)).sqrt()).abs().max().item()


def test_teacher_draws_from_its_own_model() -> None:
    """64 frequencies of 20,000 images within 5 standard errors; another teacher's are not."""
    one, other = (
        teacher(image_shape=(2, 3), num_latents=2, num_categories=3, sizes=(20_000, 1), seed=seed) for seed in (0, 1)
    )
    assert frequencies_deviate(one, one) < 5
    assert frequencies_deviate(one, other) > 50


@pytest.mark.parametrize("contrast", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("hidden", [(), (32,), (16, 24)])
def test_teacher_has_the_contrast_asked_for(contrast: float, hidden: tuple[int, ...]) -> None:
    vae = teacher(num_latents=2, num_categories=5, hidden=hidden, contrast=contrast, sizes=(1, 1)).teacher
    assert vae is not None
    z = one_hot(torch.cartesian_prod(torch.arange(5), torch.arange(5)), 5).float()
    logits = vae.decoder(z)
    assert logits.std(0).square().mean().sqrt().item() == pytest.approx(contrast, rel=0.1)
    assert logits.mean(0).abs().max().item() < 0.2 * contrast


def test_teachers_codes_matter() -> None:
    """The true model beats the best model without a code by several nats on new images."""
    images = teacher(sizes=(2000, 100))
    pixel = images.train.mean(0)
    without_code = (images.test * pixel.log() + (1 - images.test) * (1 - pixel).log()).sum(1)
    assert (true_log_evidence(images, images.test) - without_code).mean() > 5


def test_every_data_set_is_loaded_by_a_test() -> None:
    assert DATASETS.keys() == {"digits", "teacher", *FOLDERS}
