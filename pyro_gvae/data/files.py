"""Read files of data: tables, arrays, folders of images. No file is run as code."""

import csv
import gzip
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..runtime.extras import import_extra

if TYPE_CHECKING:
    import pandas as pd

#: The parts of a data set, in the order in which rows of a file are numbered.
PARTS = ("train", "validation", "test")
#: Names of the arrays of a part and of its labels: our own, and those of Keras.
SPLIT_NAMES = (("{}", "{}_labels"), ("x_{}", "y_{}"))
#: What may separate the cells of a row of text.
SEPARATORS = ",;\t|"
#: Name endings of the files in a folder of images.
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


class Raw(NamedTuple):
    """The contents of a file.

    Attributes:
        data: a table; an array of two dimensions, treated as a table; or grey images (M, H, W).
        labels: the labels (M,), if the file has any.
        sizes: the number of rows of each part, in the order of the rows, if the file has a split.
    """

    data: "pd.DataFrame | np.ndarray"
    labels: np.ndarray | None = None
    sizes: Mapping[str, int] | None = None

    @property
    def held_out(self) -> "pd.DataFrame | np.ndarray":
        """The test data; all data if the file has no split."""
        return self.data if self.sizes is None else self.data[-self.sizes["test"] :]


def read_file(path: Path) -> Raw:
    """Read a table from .csv, .tsv or .parquet, arrays from .npy or .npz, or a folder of images.

    The cells of a .csv file are separated by commas, semicolons, tabs or bars, whichever gives its first line the most
    names; .gz after the name means that it is compressed. Without commas as separators, numbers may have a decimal
    comma.

    A .npz file has data as `x` and optional labels as `y`; or parts as `train`, `test` and optionally `validation`,
    with labels as `train_labels` and so on, or with Keras's names `x_train`, `y_train`, `x_test`, `y_test`; or a single
    array; or the columns of a table, each an array of one dimension.

    Raises:
        ValueError: if the file is of another kind or damaged.
        OSError: if it cannot be read.
    """
    path = path.expanduser()
    if path.is_dir():
        return _images(path)
    for ending, reader in _READERS.items():
        if path.name.endswith(ending):
            return reader(path)
    raise ValueError(f"Expected a folder of images, or a file {', '.join(_READERS)}, but found '{path}'.")


def file_digest(path: Path) -> str:
    """Hash a file, or the names and contents of the images in a folder."""
    path = path.expanduser()
    if not path.is_dir():
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    whole = hashlib.sha256()
    for file in _image_files(path):
        whole.update(f"{file.relative_to(path).as_posix()}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _csv(path: Path) -> Raw:
    import pandas as pd

    try:
        separator = _separator(path)
        found = pd.read_csv(path, sep=separator, skipinitialspace=True)
        if separator != ",":
            numeric = found.select_dtypes("number").columns
            commas = pd.read_csv(path, sep=separator, skipinitialspace=True, decimal=",").select_dtypes("number")
            found = found.assign(**{name: commas[name] for name in commas.columns.difference(numeric)})
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"Expected a table in '{path}', but found an empty file.") from error
    except (pd.errors.ParserError, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise ValueError(f"Expected a table in '{path}', but found \"{reason}\". Try UTF-8, with commas.") from error
    return Raw(found)


def _separator(path: Path) -> str:
    """Return the separator that gives the first line of a text the most names; a comma if others give no more."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
        line = next((line for line in text if line.strip()), "")
    return max(SEPARATORS, key=lambda one: len(next(csv.reader([line], delimiter=one), [])))


def _parquet(path: Path) -> Raw:
    import pandas as pd

    arrow = import_extra("pyarrow", extra="parquet", purpose="Parquet files")
    try:
        return Raw(pd.read_parquet(path, engine="pyarrow"))
    except arrow.ArrowException as error:
        raise damaged(path, error) from error


def _npy(path: Path) -> Raw:
    return Raw(_loaded(path))


def _npz(path: Path) -> Raw:
    import pandas as pd

    arrays = _loaded(path)
    split = _own_split(arrays)
    if split is not None:
        return split
    if "x" in arrays:
        return Raw(arrays["x"], arrays.get("y"))
    if len(arrays) == 1:
        return Raw(next(iter(arrays.values())))
    if arrays and len({array.shape for array in arrays.values()}) == 1 and next(iter(arrays.values())).ndim == 1:
        return Raw(pd.DataFrame(arrays))
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
    raise ValueError(
        f"Expected an array x in '{path}', or train and test with labels for both or none, or columns of one length, "
        f"but found {shapes}. Try numpy.savez(path, x=..)."
    )


def _own_split(arrays: dict[str, np.ndarray]) -> Raw | None:
    """Return arrays that are named as the parts of a data set; None if they are not."""
    for of_data, of_labels in SPLIT_NAMES:
        parts = [part for part in PARTS if of_data.format(part) in arrays]
        x = [arrays[of_data.format(part)] for part in parts]
        labels = [arrays[name] for part in parts if (name := of_labels.format(part)) in arrays]
        if not {"train", "test"} <= set(parts) or len(arrays) != len(x) + len(labels):
            continue
        if len({own.shape[1:] for own in x}) > 1 or len(labels) not in (0, len(x)):
            continue
        if labels and any(own.shape[:1] != others.shape for own, others in zip(x, labels, strict=True)):
            continue
        sizes = {part: len(own) for part, own in zip(parts, x, strict=True)}
        return Raw(np.concatenate(x), np.concatenate(labels) if labels else None, sizes)
    return None


def _loaded(path: Path) -> Any:
    try:
        with path.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error for a file that does not contain what its name says."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"Expected arrays or a table in '{path}', but found \"{reason}\". Try a copy.")


def _image_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
    if not files:
        raise ValueError(f"Expected images in '{folder}', but found none. Try PNG files.")
    return files


def _images(folder: Path) -> Raw:
    from PIL import Image, UnidentifiedImageError

    pixels: list[np.ndarray] = []
    files = _image_files(folder)
    for file in files:
        try:
            with Image.open(file) as image:
                pixels.append(np.asarray(image.convert("L")))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"Expected an image in '{file}', but found another or a damaged file.") from error
        if pixels[-1].shape != pixels[0].shape:
            sizes = ["{1} x {0}".format(*edges.shape) for edges in (pixels[0], pixels[-1])]
            raise ValueError(
                f"Expected images of one size, {sizes[0]} as that of '{files[0].name}', but found {sizes[1]} in "
                f"'{file}'. Try resizing them."
            )
    folders = [file.parent.relative_to(folder).as_posix() for file in files]
    return Raw(np.stack(pixels), np.array(folders) if len(set(folders)) > 1 else None)


_READERS = {
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _csv),
    ".parquet": _parquet,
    ".npy": _npy,
    ".npz": _npz,
}
