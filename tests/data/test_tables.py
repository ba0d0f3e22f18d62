"""Tables, files and splits: guessed kinds of columns, conversion to numbers and back, refusals by row and column."""

import dataclasses
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_gvae.config.data import DataConfig
from pyro_gvae.data.columns import as_data
from pyro_gvae.data.datasets import TABLES, load
from pyro_gvae.data.files import file_digest, read_file
from pyro_gvae.data.splits import dataset_of, described, with_validation
from pyro_gvae.data.tables import columns_of, decoded, encoded
from pyro_gvae.models.table import Column

FRAME = pd.DataFrame(
    {
        "age": [30.5, 41.0, None, 22.0, 65.25, 33.0],
        "sex": ["f", "m", "f", None, "m", "f"],
        "visits": [3, 0, 0, 7, 2, 1],
        "income": [1200.5, 80.0, 20000.0, None, 1500.0, 90.0],
        "city": ["Rome", "Paris", "Rome", None, "Oslo", "Rome"],
        "grade": [1.0, 2.0, None, 3.0, 1.0, 2.0],
    }
)
KINDS = {"age": "real", "sex": "binary", "visits": "count", "income": "positive", "city": "categorical"}


def test_kinds_are_guessed_and_cells_read_back_in_their_units():
    columns = columns_of(FRAME, "grade=categorical")
    assert {column.name: column.kind for column in columns} == KINDS | {"grade": "categorical"}
    assert columns[-1].levels == ("1", "2", "3")
    x = encoded(FRAME, columns)
    assert x.dtype == torch.float32 and torch.equal(x.isnan(), torch.from_numpy(FRAME.isna().to_numpy()))
    again = decoded(x, columns)
    assert again["city"].tolist() == FRAME["city"].tolist()
    for name in ("age", "visits", "income"):
        np.testing.assert_allclose(again[name], FRAME[name], rtol=1e-6)
    assert encoded(again, columns).nan_to_num(9.0).equal(x.nan_to_num(9.0))


def test_only_training_rows_standardize():
    columns = columns_of(FRAME, train=[0, 1])
    assert columns[0].centre == 35.75 and columns[0].spread == 5.25
    x = encoded(FRAME, columns)
    np.testing.assert_allclose(x[:2, 0], [-1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "row", "cell", "kind", "said"),
    [
        ("age", 3, "old", "real", "real cells in column 'age', but found 'old' in row 4"),
        ("age", 0, np.inf, "real", "column 'age', but found 'inf' in row 1"),
        ("income", 1, 0.0, "positive", "positive cells in column 'income', but found '0.0' in row 2"),
        ("visits", 5, 1.5, "count", "count cells in column 'visits', but found '1.5' in row 6"),
        ("city", 2, "Bonn", "categorical", "one of Oslo, Paris, Rome in column 'city', but found 'Bonn' in row 3"),
    ],
)
def test_bad_cells_are_refused_by_row_and_column(name, row, cell, kind, said):
    columns = columns_of(FRAME)
    bad = FRAME.astype({name: object})
    bad.loc[row, name] = cell
    with pytest.raises(ValueError, match=said):
        encoded(bad, columns)
    if name != "city":
        with pytest.raises(ValueError, match=said):
            columns_of(bad, {name: kind})


def test_words_are_not_standardized_and_none_may_be_missing():
    frame = pd.DataFrame({"tea": [0, 3, 1], "rose": [2.0, None, 0.0]})
    columns = columns_of(frame[["tea"]], "*=word")
    assert columns == (Column("tea", "word", (), 4 / 3, pytest.approx(1.247, abs=1e-3)),)
    assert decoded(encoded(frame, columns), columns)["tea"].tolist() == [0, 3, 1]
    said = "count of the word 'rose' in each row, .* none in row 2. Try 0, or --columns rose=count"
    with pytest.raises(ValueError, match=said):
        columns_of(frame, "*=word")
    with pytest.raises(ValueError, match=said):
        encoded(frame, [Column("rose", "word")])


@pytest.mark.parametrize(
    ("frame", "kinds", "said"),
    [
        (FRAME, "agee=real", "Expected a column among age, .* but found 'agee'"),
        (FRAME, "age=reel", "one of binary, .*, ignore, but found 'age=reel'"),
        (FRAME, "city=binary", "two levels in the binary column 'city', but found Oslo, Paris, Rome"),
        (FRAME.assign(age=None), None, "cells in column 'age', but found that all are missing"),
        (pd.DataFrame({"name": [f"n{row}" for row in range(300)]}), None, "300 different texts"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), None, "different names, but found 'a' twice"),
    ],
)
def test_invalid_columns_are_refused(frame, kinds, said):
    with pytest.raises(ValueError, match=said):
        columns_of(frame, kinds)


def written(folder, name):
    path = folder / name
    numbers = np.arange(12.0).reshape(4, 3)
    match name:
        case "t.csv":
            FRAME.to_csv(path, index=False)
        case "t.parquet":
            pytest.importorskip("pyarrow")
            FRAME.to_parquet(path, index=False)
        case "columns.npz":
            np.savez(path, a=numbers[:, 0], b=numbers[:, 1])
        case "x.npz":
            np.savez(path, x=numbers, y=np.arange(4) % 2)
        case "table.npy":
            np.save(path, numbers)
        case "images.npy":
            np.save(path, np.arange(24, dtype=np.uint8).reshape(4, 2, 3))
        case "images":
            for number, own in enumerate(["a", "a", "b", "b"]):
                (path / own).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((2, 3), 50 * number, np.uint8)).save(path / own / f"{number}.png")
    return path


@pytest.mark.parametrize(
    ("name", "num_rows", "shape", "has_labels"),
    [
        ("t.csv", 6, (1, 6), False),
        ("t.parquet", 6, (1, 6), False),
        ("columns.npz", 4, (1, 2), False),
        ("x.npz", 4, (1, 3), True),
        ("table.npy", 4, (1, 3), False),
        ("images.npy", 4, (2, 3), False),
        ("images", 4, (2, 3), True),
    ],
)
def test_files_are_read_and_hashed(tmp_path, name, num_rows, shape, has_labels):
    path = written(tmp_path, name)
    data = dataset_of(path, test_share=0.25)
    assert len(data.train) + len(data.test) == num_rows and data.image_shape == shape
    assert (data.columns is None) == name.startswith("images") and (data.train_labels is not None) == has_labels
    before = file_digest(path)
    assert before == file_digest(path)
    changed = path / "a" / "0.png" if path.is_dir() else path
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert file_digest(path) != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("t.csv", b"", "found an empty file"),
        ("t.csv", b"\xff\xfe\x00", "UTF-8, with commas"),
        ("t.npy", b"no array", "Expected arrays or a table in"),
        ("t.npz", b"PK\x03\x04", "Expected arrays or a table in"),
        ("t.parquet", b"PAR1", "Expected arrays or a table in"),
        ("t.txt", b"", "a file .csv, .csv.gz, .tsv, .tsv.gz, .parquet, .npy, .npz, but found"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, name, content, said):
    if name == "t.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_file(tmp_path / name)


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Expected arrays or a table in"):
        read_file(tmp_path / "x.npy")


def test_images_of_different_sizes_are_refused(tmp_path):
    for width in (2, 3):
        Image.fromarray(np.zeros((2, width), np.uint8)).save(tmp_path / f"{width}.png")
    with pytest.raises(ValueError, match=r"2 x 2 as that of '2\.png', but found 3 x 2 in"):
        read_file(tmp_path)


def test_splits_depend_on_the_seed_alone_and_have_each_row_once():
    x = torch.arange(40.0).reshape(20, 2, 1) / 40
    split = {"test_share": 0.2, "validation_share": 0.1}
    data, again, other = (dataset_of(x, seed=seed, **split) for seed in (0, 0, 1))
    assert [len(getattr(data, part)) for part in data.parts] == [14, 2, 4]
    rows = torch.cat([getattr(data, part) for part in data.parts])
    assert torch.equal(rows.sort(0).values, x.flatten(1))
    assert torch.equal(data.test, again.test) and not torch.equal(data.test, other.test)
    held = with_validation(dataclasses.replace(data, validation=None), 0.25)
    assert [len(getattr(held, part)) for part in held.parts] == [10, 4, 4]
    for shares in ((0.0, 0.0), (0.5, 0.5), (0.2, -0.1)):
        with pytest.raises(ValueError, match="a test_share above 0"):
            DataConfig(test_share=shares[0], validation_share=shares[1]).check_data()


def test_python_data_and_labels():
    x, y = torch.rand(10, 1, 2, 3), torch.arange(10) % 3
    for data in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=4)):
        found = dataset_of(data)
        assert found.image_shape == (2, 3) and found.train_labels is not None and found.columns is None
    labelled = dataset_of(FRAME.fillna({"city": "Rome"}), labels="city")
    assert [column.name for column in labelled.columns] == ["age", "sex", "visits", "income", "grade"]
    assert sorted(torch.cat([labelled.train_labels, labelled.test_labels]).tolist()) == [0, 1, 2, 2, 2, 2]
    with pytest.raises(ValueError, match=r"a label in each row, since .* but found none in row 4"):
        dataset_of(FRAME, labels="city", every_label=True)
    with pytest.raises(ValueError, match=r"labels in a column among age, .* but found 'town'"):
        dataset_of(FRAME, labels="town")
    with pytest.raises(ValueError, match=r"but found a DataFrame. Try dataset_of\(data\)"):  # cells, not numbers
        as_data(FRAME)
    with pytest.raises(ValueError, match=r"grey images .* but found shape"):
        dataset_of(torch.rand(10, 3, 2, 2))


def test_what_was_read_is_said():
    said = described(dataset_of(FRAME, name="t.csv", columns="grade=ignore", test_share=0.3))
    assert said.splitlines()[0] == "t.csv: 6 rows, 5 columns, 4 missing cells; 4 train, 2 test"
    assert "  sex     binary       2 levels: f, m  1 missing" in said


@pytest.mark.parametrize("name", TABLES)
def test_embedded_tables(name):
    data = load(name)
    assert data.columns is not None and (data.train_labels is not None) == TABLES[name]
    assert data.train.nanmean(0).abs().max() < 1e3 and "rows" in described(data)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t.csv", {"sep": ";"}),
        ("t.csv", {"sep": ";", "decimal": ","}),
        ("t.csv", {"sep": "|"}),
        ("t.tsv", {"sep": "\t"}),
        ("t.csv.gz", {}),
        ("t.csv", {"encoding": "utf-8-sig"}),
    ],
)
def test_tables_of_other_programs_are_read_as_they_are(tmp_path, name, options):
    FRAME.to_csv(tmp_path / name, index=False, **options)
    pd.testing.assert_frame_equal(read_file(tmp_path / name).data, FRAME, check_dtype=False)


def test_a_first_column_without_a_name_is_left_out_and_commas_may_be_in_names(tmp_path):
    FRAME.rename(columns={"age": "age, in years"}).to_csv(tmp_path / "t.csv")
    found = dataset_of(tmp_path / "t.csv", columns="age, in years=positive,*=categorical")
    assert [(one.name, one.kind) for one in found.columns] == [
        ("age, in years", "positive"),
        *((name, "categorical") for name in FRAME.columns[1:]),
    ]
    assert dataset_of(tmp_path / "t.csv", columns="Unnamed: 0=count").columns[0].kind == "count"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (pd.date_range("2020", periods=60), "numbers or texts in column 'a', but found dates"),
        (pd.to_timedelta(range(60), "D"), "numbers or texts in column 'a', but found times"),
        ([1j] * 60, "found complex numbers"),
        ([*([1.5] * 7), [2.0], *range(52)], "but found a list in row 8"),
        ([*np.linspace(0, 1, 59).round(6).astype(str), "?"], r"numbers in column 'a', but found '\?' in row 60"),
        ([f"name {place}" for place in range(60)], "found 60 different texts in 60 cells, such as 'name 0'"),
        ([str(place) for place in range(60)], "60 different numbers, written as texts.* Try --columns a=real"),
        ([*range(59), 1e300], r"found '1e\+300' in row 60"),
    ],
)
def test_cells_that_are_neither_numbers_nor_levels_are_refused(cells, said):
    with pytest.raises(ValueError, match=said):
        dataset_of(pd.DataFrame({"a": cells}))


def test_dates_are_no_real_numbers_but_may_be_levels():
    dates = pd.DataFrame({"a": [*pd.date_range("2020", periods=9), pd.NaT]})
    with pytest.raises(ValueError, match="real cells in column 'a', but found '2020-01-01 00:00:00' in row 1"):
        dataset_of(dates, columns="a=real")
    assert len(dataset_of(dates, columns="a=categorical").columns[0].levels) == 9


def test_decimals_are_numbers_and_levels_of_one_text_are_one_level():
    columns = columns_of(pd.DataFrame({"a": [Decimal(place) / 4 for place in (-1, 2, 9)], "b": [1, "1", "2"]}))
    assert [column.kind for column in columns] == ["real", "binary"] and columns[1].levels == ("1", "2")
    assert columns[0].centre == pytest.approx(10 / 12)


class _Items(TorchDataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


class _Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_Stream(), "a data set with a length, but found _Stream, which is a stream"),
        (DataLoader(_Stream()), "which is a stream"),
        (_Items([{"x": 1.0}]), "items with numbers in _Items, but found a dict in item 0"),
        (
            _Items([torch.zeros(3), torch.zeros(4)]),
            r"items of one shape, \(3,\), in _Items, but found \(4,\) in item 1",
        ),
        ([[1.0, 2.0]], r"but found list. Try numpy.asarray\(data\)"),
    ],
)
def test_data_sets_that_are_no_table_are_refused_in_a_sentence(data, said):
    with pytest.raises(ValueError, match=said):
        dataset_of(data)


def test_items_may_be_pictures_and_labels_keep_their_values():
    pictures = dataset_of(_Items([(Image.new("L", (4, 3), 255 * (place % 2)), place % 2) for place in range(10)]))
    assert pictures.image_shape == (3, 4) and set(pictures.train.unique().tolist()) == {0.0, 1.0}
    assert pictures.train_labels.tolist() == pictures.train[:, 0].long().tolist()
    targets = dataset_of(TensorDataset(torch.rand(6, 2), torch.linspace(0, 1, 6)))
    assert len(targets.classes) == 6  # not all 0, as rounded to integers
    assert dataset_of(torch.rand(8, 2).bfloat16()).train.shape == (6, 2)
