"""Every command on a table: values of columns take the place of pictures."""

import json

import numpy as np
import pandas as pd
import pytest

from pyro_gvae.cli.main import main

SMALL = ["--num-latents", 1, "--num-categories", 3, "--hidden", 4, "--batch-size", 16]


def write(path, number=60):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 10, number).round(1),
            "sex": random.choice(["f", "m"], number),
            "visits": random.poisson(2, number),
            "city": random.choice(["Oslo", "Paris", "Rome"], number),
        }
    )
    frame = frame.mask(random.random(frame.shape) < 0.2)
    frame.assign(group=random.choice(["x", "y"], number)).to_csv(path, index=False)


@pytest.fixture
def said(capsys):
    def run(*arguments, status=0):
        assert main(list(map(str, arguments))) == status, capsys.readouterr().err
        written = capsys.readouterr()
        return written.out + written.err

    return run


def test_counts_of_words(tmp_path, said):
    file, run = tmp_path / "documents.csv", tmp_path / "run"
    random = np.random.default_rng(0)
    pd.DataFrame(random.poisson([1.0, 0.3, 2.0], (60, 3)), columns=["tea", "rose", "moon"]).to_csv(file, index=False)
    options = ["--data", file, *SMALL, "--output", run]
    told = said("train", *options, "--observation", "multinomial", status=2)
    assert "found 'multinomial'. Try --columns '*=word' for counts of words" in told
    said("train", *options, "--columns", "*=word", "--stages", "exact:2steps")
    said("evaluate", run)
    said("sample", run, "--pixels")
    drawn = pd.read_csv(run / "samples" / "exact-seed0-pixels.csv")
    assert drawn.columns.tolist() == ["tea", "rose", "moon"]
    assert drawn.sum(axis=1).nunique() == 1  # the rounded mean of training rows
    said("explore", run)
    assert '"words": ["tea", "rose", "moon"]' in (run / "explorer.html").read_text()


@pytest.mark.slow
def test_a_run_on_a_table(tmp_path, said, unreported):
    file, run = tmp_path / "people.csv", tmp_path / "run"
    write(file)
    options = ["--labels", "group", "--validation-share", 0.2, "--stages", "exact:2steps", *SMALL]
    told = said("train", "--data", file, "--columns", "visits=count", *options, "--output", run)
    assert "people.csv: 60 rows, 4 columns" in told and "36 train, 12 validation, 12 test" in told
    config = json.loads((run / "config.json").read_text())
    assert config["columns_of_data"][0]["name"] == "age" and len(config["data_sha256"]) == 64
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["validation_elbo"] < 0 for line in metrics)
    told = said("evaluate", run)
    assert "validation" in told and "linear probe accuracy" in told
    assert "60 data" in said("encode", run, "--data", file)
    assert "from its code" in said("reconstruct", run)
    said("sample", run, "--pixels")
    drawn = pd.read_csv(run / "samples" / "exact-seed0-pixels.csv")
    assert set(drawn["sex"]) <= {"f", "m"} and drawn["visits"].ge(0).all()
    said("impute", run, file)
    filled, known = pd.read_csv(run / "imputed" / "exact-seed0-people-table.csv"), pd.read_csv(file)
    assert filled.notna().all().all() and filled.columns.tolist() == known.columns.tolist()
    assert filled["sex"][known["sex"].notna()].equals(known["sex"].dropna())
    said("report", run)
    page = (run / "report.html").read_text()
    assert "on people.csv" in page and "from its code" in page and "<h2>Images</h2>" not in page
    assert "explorer:" in said("explore", run) and '"name": "visits"' in (run / "explorer.html").read_text()

    known.drop(index=0).to_csv(file, index=False)
    for command in ("resume", "evaluate"):
        assert "but found that it has changed. Try a copy" in said(command, run, status=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "FILE", "--columns", "age=count"], "count cells in column 'age', but found"),
        (["--data", "FILE", "--observation", "gaussian"], "no observation for the table 'people.csv'"),
        (["--data", "FILE", "--networks", "conv"], "no networks for the table 'people.csv'"),
        (["--data", "FILE", "--labels", "grup"], "labels in a column among age, sex"),
        (["--columns", "age=real"], "a table for kinds of columns or a column of labels, but found the images"),
        (["--data", "no.csv"], "'no.csv' cannot be used"),
    ],
)
def test_what_does_not_fit_a_table_is_refused_in_a_sentence(tmp_path, said, options, told):
    write(tmp_path / "people.csv")
    options = [tmp_path / "people.csv" if word == "FILE" else word for word in options]
    assert told in said("train", *options, "--output", tmp_path / "run", status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_comparison_on_a_table(tmp_path, said, unrendered):
    file, run = tmp_path / "people.csv", tmp_path / "run"
    write(file)
    options = ["--estimators", "exact", "--seeds", 0, "--epochs", 1, *SMALL, "--output", run]
    assert "60 rows" in said("compare", "--data", file, *options)
    page = (run / "report.html").read_text()
    assert "on people.csv" in page and "Images" not in page and "Which codes are used" in page
    write(file, number=59)
    assert "has changed" in said("compare", "--data", file, *options, status=2)
