"""Tables that are read in slices: the same columns as in memory, each row once, few blocks at a time."""

import weakref
from concurrent.futures import wait

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_gvae.data import blocks
from pyro_gvae.data.batches import epoch_batches, sample_of
from pyro_gvae.data.blocks import ParquetRows
from pyro_gvae.data.parquet import ParquetTable
from pyro_gvae.data.parts import fixed_part, shown_part
from pyro_gvae.data.shares import Shares
from pyro_gvae.data.sliced import MOST_SLICED_LEVELS, large_table, sliced_dataset
from pyro_gvae.data.splits import dataset_of, described
from pyro_gvae.data.tables import columns_of, encoded

pytest.importorskip("pyarrow")
NUMBER, GROUP = 230, 16
#: Bytes for which a block has two groups of training rows.
MEMORY = 2 * (2 * GROUP) * 4 * 6


def people(number=NUMBER):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 10, number),
            "sex": random.choice(["f", "m"], number),
            "visits": random.poisson(2, number),
            "income": np.exp(random.normal(7, 2, number)),
            "grade": random.integers(1, 4, number),
            "city": random.choice(["Oslo", "Paris", "Rome"], number),
        }
    )
    return frame.mask(random.random(frame.shape) < 0.1)


def written(folder, frame, **options):
    frame.to_parquet(folder / "people.parquet", row_group_size=GROUP, **options)
    return folder / "people.parquet"


@pytest.fixture
def file(tmp_path):
    return written(tmp_path, people())


def in_slices(file, **options):
    return sliced_dataset(file, columns="grade=categorical", memory=MEMORY, **options)


def rows_of(batches):
    """Return rows as sets of texts, so that missing cells compare equal."""
    return [str(row) for batch in batches for row in batch.tolist()]


def test_columns_are_those_of_the_whole_table(file, monkeypatch):
    monkeypatch.setattr("pyro_gvae.data.parquet.DECODED_AT_A_TIME", 7)
    data, frame = in_slices(file, validation_share=0.1), people()
    train = Shares(0.2, 0.1).of_part("train", 0, NUMBER)
    expected = columns_of(frame, "grade=categorical", train=np.flatnonzero(train).tolist())
    assert [one[:3] for one in data.columns] == [one[:3] for one in expected]
    found, whole = ([(one.centre, one.spread) for one in columns] for columns in (data.columns, expected))
    np.testing.assert_allclose(found, whole, rtol=1e-13)
    ages = frame["age"][train]
    np.testing.assert_allclose(found[0], (ages.mean(), ages.std(ddof=0)), rtol=1e-13)
    assert data.missing == tuple(frame.isna().sum())
    x = encoded(frame, data.columns)
    for part, mask in zip(data.parts, (Shares(0.2, 0.1).of_part(name, 0, NUMBER) for name in data.parts), strict=True):
        read = torch.cat(list(getattr(data, part).chunks(9)))
        assert torch.equal(read.nan_to_num(9.0), x[mask].nan_to_num(9.0)) and len(getattr(data, part)) == mask.sum()
    assert f"{NUMBER} rows, 6 columns, {sum(data.missing)} missing cells" in described(data)
    assert "read in slices" in described(data)


def test_parts_share_no_row_and_are_the_same_in_every_call():
    shares = Shares(0.2, 0.1, seed=3)
    masks = [shares.of_part(part, 0, 20_000) for part in ("train", "validation", "test")]
    assert (np.sum(masks, 0) == 1).all()
    np.testing.assert_allclose([mask.mean() for mask in masks], [0.7, 0.1, 0.2], atol=0.014)  # 5 standard errors
    parts = np.concatenate([shares.of_part("test", start, 100) for start in range(0, 20_000, 100)])
    assert (parts == masks[2]).all() and (Shares(0.2, 0.1, seed=4).of_part("test", 0, 20_000) != parts).any()


@pytest.mark.parametrize("batch_size", [1, 7, 40, 150])
def test_an_epoch_has_each_row_once_in_an_order_of_its_own(file, batch_size):
    train = in_slices(file).train
    batches = [list(epoch_batches(train, batch_size, seed=0, epoch=epoch)) for epoch in (0, 1, 0)]
    assert {len(batch) for batch in batches[0][:-1]} <= {batch_size} and len(batches[0][-1]) <= batch_size
    orders = list(map(rows_of, batches))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(rows_of(train.chunks(50)))
    for skip in (1, len(batches[0]) // 2, len(batches[0]) - 1, len(batches[0])):
        assert rows_of(epoch_batches(train, batch_size, seed=0, epoch=0, skip=skip)) == rows_of(batches[0][skip:])
    whole = len(train) // batch_size
    assert len(list(epoch_batches(train, batch_size, seed=0, epoch=0, drop_last=True, skip=1))) == whole - 1
    assert rows_of([sample_of(train, 5)]) == rows_of([sample_of(train, 5)])
    assert set(rows_of([sample_of(train, 5)])) <= set(orders[0])


def test_an_order_mixes_groups_and_rows_of_a_block(file):
    train = in_slices(file).train
    in_order = rows_of(train.chunks(50))
    places = [in_order.index(row) for row in rows_of(epoch_batches(train, 10, seed=0, epoch=0))]
    steps = np.abs(np.diff(places))
    assert (steps == 1).mean() < 0.2 and (steps > 3 * GROUP).mean() > 0.05
    assert np.abs(np.subtract(places, np.arange(len(places)))).max() > len(places) / 2


def test_two_blocks_are_in_memory_and_no_more(file, monkeypatch):
    alive, sizes, most = [], [], []
    mixed = ParquetRows._mixed

    def counted(self, block):
        found = mixed(self, block)
        alive.append(weakref.ref(found))
        sizes.append(found.numel() * found.itemsize)
        most.append(sum(one() is not None for one in alive))
        return found

    monkeypatch.setattr(blocks.ParquetRows, "_mixed", counted)
    train = in_slices(file).train
    for epoch in range(3):
        for _ in epoch_batches(train, 10, seed=0, epoch=epoch):
            wait([train._ahead[1]])  # as if the step took longer than reading the next block
    assert len(sizes) > 12 and max(sizes) <= MEMORY / 2
    assert max(most) == 2


def test_what_a_table_in_memory_is_asked_for(tmp_path):
    file = written(tmp_path, people().fillna({"city": "Oslo"}))
    data = in_slices(file, labels="city", validation_share=0.1)
    assert data.train.shape[1] == 5 == data.image_shape[1] and len(data.label.levels) == 3
    part = fixed_part(data, "validation")
    assert part.x.shape == (len(data.validation), 5) and set(part.labels.tolist()) == {0, 1, 2}
    assert fixed_part(data, "test", 7).labels.shape == (7,) and shown_part(data, 3)[1].shape == (3, 5)
    with pytest.raises(ValueError, match="Expected a part among train, test, but found 'validation'"):
        fixed_part(in_slices(file), "validation")


def test_a_table_is_large_by_the_bytes_that_the_file_states(file, tmp_path):
    num_bytes = NUMBER * 6 * 4
    assert large_table(file, num_bytes) is None and large_table(file, num_bytes - 1).num_rows == NUMBER
    assert large_table(None, 0) is None and large_table(tmp_path / "absent.parquet", 0) is None
    table = ParquetTable(written(tmp_path, people().assign(city="Oslo").set_index("age")))
    assert "age" not in table.names and table.may_lack("sex") and not table.may_lack("city")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"age": np.inf}, {}, "positive cells in column 'age', but found 'inf' in row 101"),
        ({"income": -1.0}, {"columns": "income=positive"}, "column 'income', but found '-1.0' in row 101"),
        ({"city": "none"}, {"columns": "city=count"}, "count cells in column 'city', but found 'Paris' in row 1"),
        ({}, {"columns": "agee=real"}, "Expected a column among age, .* but found 'agee'"),
        ({}, {"labels": "town"}, "labels in a column among age, .* but found 'town'"),
        ({"city": None}, {"labels": "city", "every_label": True}, "a label in each row, .* but found none in row 101"),
    ],
)
def test_invalid_cells_are_refused_by_row_and_column(tmp_path, change, options, said):
    frame = people()
    frame["city"] = frame["city"].fillna("Paris").where(frame.index > 0, "Paris")
    for name, cell in change.items():
        frame.loc[100, name] = cell
    with pytest.raises(ValueError, match=said):
        data = sliced_dataset(written(tmp_path, frame), memory=MEMORY, **options)
        for part in data.parts:
            list(getattr(data, part).parts(50))


def test_groups_that_are_too_large_are_told(file):
    with pytest.warns(RuntimeWarning, match=r"of 'people.parquet' takes 384 bytes, .* Try .* row_group_size=3\."):
        sliced_dataset(file, memory=4 * GROUP * 6 * 2 - 1)


def test_names_are_no_levels(tmp_path, monkeypatch):
    frame = pd.DataFrame({"name": [f"n{row}" for row in range(300)]})
    with pytest.raises(ValueError, match="300 different texts in 300 cells"):
        sliced_dataset(written(tmp_path, frame))
    assert MOST_SLICED_LEVELS > 300
    monkeypatch.setattr("pyro_gvae.data.sliced.MOST_SLICED_LEVELS", 200)
    with pytest.raises(ValueError, match="at most 200 levels in column 'name', which are held in memory"):
        sliced_dataset(written(tmp_path, frame), columns="name=categorical")


def test_a_damaged_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="Expected arrays or a table in"):
        sliced_dataset(file)


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rows to train on and to test with, but found 1 rows"):
        sliced_dataset(written(tmp_path, people(1).fillna(1)))


PARTS = {"train": np.arange(12.0).reshape(4, 3), "test": np.ones((2, 3)), "validation": np.zeros((3, 3))}


@pytest.mark.parametrize(
    "arrays",
    [
        {"train": PARTS["train"], "test": PARTS["test"]},
        {**PARTS, "train_labels": [0, 1, 0, 1], "validation_labels": [1, 0, 1], "test_labels": [1, 1]},
        {"x_train": PARTS["train"], "y_train": [0, 1, 1, 0], "x_test": PARTS["test"], "y_test": [1, 0]},
    ],
)
def test_a_file_of_arrays_may_have_a_split(tmp_path, arrays):
    np.savez(tmp_path / "own.npz", **arrays)
    data = dataset_of(tmp_path / "own.npz", columns="x0=real,x1=real,x2=real")
    assert (len(data.train), len(data.test)) == (4, 2) and (data.train_labels is not None) == (len(arrays) > 2)
    assert data.columns[0].centre == 4.5 and (data.validation is not None) == ("validation" in arrays)
    if data.test_labels is not None:
        assert data.test_labels.tolist() == list(arrays.get("test_labels", arrays.get("y_test")))
    held = dataset_of(tmp_path / "own.npz", columns="x0=real,x1=real,x2=real", validation_share=0.25)
    assert len(held.validation) == (3 if "validation" in arrays else 1)
    assert len(held.train) + len(held.validation) == 4 + 3 * ("validation" in arrays)


@pytest.mark.parametrize(
    "arrays",
    [
        {"train": PARTS["train"], "test": np.ones((2, 4))},
        {"train": PARTS["train"], "test": PARTS["test"], "train_labels": [0, 1, 0, 1]},
        {"train": PARTS["train"], "test": PARTS["test"], "other": [0]},
        {"train": PARTS["train"], "valid": PARTS["test"]},
    ],
)
def test_other_arrays_are_named(tmp_path, arrays):
    np.savez(tmp_path / "own.npz", **arrays)
    found = ", ".join(f"{name} \\({np.shape(array)[0]}" for name, array in list(arrays.items())[:1])
    with pytest.raises(ValueError, match=f"train and test with labels for both or none, .* but found {found}"):
        dataset_of(tmp_path / "own.npz")
