"""Commands on a table that is read in slices."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_gvae import exact, load_run
from pyro_gvae.cli.main import main
from pyro_gvae.data.columns import first
from pyro_gvae.data.labels import given
from pyro_gvae.evaluate.metrics import code_usage
from pyro_gvae.runs.checkpoint import load_tensors

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("unrendered", "unreported")
SMALL = ["--num-latents", 1, "--num-categories", 3, "--hidden", 4, "--batch-size", 16]
#: Gigabytes for two blocks of two row groups of five columns each.
MEMORY = 2 * 2 * 16 * 5 * 4 / 1e9


def people(number=200):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 10, number).round(1),
            "sex": random.choice(["f", "m"], number),
            "visits": random.poisson(2, number),
            "city": random.choice(["Oslo", "Paris", "Rome"], number),
        }
    )
    return frame.mask(random.random(frame.shape) < 0.2).assign(group=random.choice(["x", "y"], number))


@pytest.fixture
def said(capsys):
    def run(*arguments, status=0):
        assert main(list(map(str, arguments))) == status, capsys.readouterr().err
        written = capsys.readouterr()
        return written.out + written.err

    return run


@pytest.fixture
def file(tmp_path):
    people().to_parquet(tmp_path / "people.parquet", row_group_size=16)
    return tmp_path / "people.parquet"


@pytest.mark.slow
def test_a_run_in_slices(file, tmp_path, said):
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = ["--labels", "group", "--validation-share", 0.2, "--stages", "exact:2", *SMALL]
    told = said("train", "--data", file, *options, "--data-memory", MEMORY, "--output", run)
    assert "people.parquet: 200 rows, 4 columns" in told and "read in slices" in told
    config = json.loads((run / "config.json").read_text())
    assert config["data_in_slices"] and config["label_of_data"]["levels"] == ["x", "y"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["validation_elbo"] < 0 and line["test_elbo"] < 0 for line in metrics)
    assert "read in slices" not in said("train", "--data", file, *options, "--output", whole)
    assert json.loads((whole / "config.json").read_text())["data_in_slices"] is False
    told = said("evaluate", run, "--num-data", 20)
    assert "validation" in told and "linear probe accuracy" in told
    told = said("encode", run, "--part", "train")
    codes = pd.read_csv(run / "codes" / "exact-seed0-train-map.csv")
    assert f"{len(codes)} data" in told and set(codes["label"]) == {0, 1}
    found = pd.read_parquet(run / "codes" / "exact-seed0-train-map.parquet")
    pd.testing.assert_frame_equal(found, codes, check_dtype=False, rtol=1e-5)
    for command in ("reconstruct", "report", "gaps"):
        said(command, run)
    file.write_bytes(file.read_bytes() + b" ")
    assert "has changed" in said("evaluate", run, status=2)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["conditional", "semi-supervised"])
def test_labels_in_slices(model, file, tmp_path, said):
    """All commands; of the same rows, codes in memory and in slices are the same."""
    run, sizes = tmp_path / "run", SMALL if model == "conditional" else ["--latent-dim", 2, "--hidden", 4, *SMALL[-2:]]
    frame = pd.read_parquet(file)
    if model == "semi-supervised":
        frame.loc[::3, "group"] = None
        frame.to_parquet(file, row_group_size=16)
        sizes += ["--labelled-share", 0.5]
    options = ["--model", model, "--labels", "group", "--stages", "exact:2", *sizes]
    told = said("train", "--data", file, *options, "--data-memory", MEMORY, "--output", run)
    assert "read in slices" in told and "classes: x, y" in told
    config = json.loads((run / "config.json").read_text())
    assert config["data_in_slices"] and sum(config["labelled_rows"]) > 10
    assert ("accuracy" in said("evaluate", run)) == (model == "semi-supervised")
    said("encode", run, "--data", file)
    in_slices = pd.read_csv(run / "codes" / "exact-seed0-people-map.csv")
    assert in_slices["label"].isna().tolist() == frame["group"].isna().tolist()
    frame.to_csv(tmp_path / "people.csv", index=False)
    said("encode", run, "--data", tmp_path / "people.csv", "--output", tmp_path / "whole")
    whole = pd.read_csv(tmp_path / "whole" / "exact-seed0-people-map.csv")
    pd.testing.assert_frame_equal(in_slices, whole, check_dtype=False, rtol=1e-4)
    said("impute", run, file)
    said("impute", run, tmp_path / "people.csv", "--output", tmp_path / "whole")
    if model == "conditional":  # whose probabilities are sums
        cells = [
            pd.read_csv(folder / "exact-seed0-people-cells.csv") for folder in (run / "imputed", tmp_path / "whole")
        ]
        pd.testing.assert_frame_equal(*cells, rtol=1e-4)
        frame.loc[120, "group"] = None
        frame.to_parquet(tmp_path / "some.parquet", row_group_size=16)
        for command in (["encode", run, "--data"], ["impute", run]):
            assert "none in row 121" in said(*command, tmp_path / "some.parquet", status=2)
        said("gaps", run)  # of discrete latents alone
    for command in ("reconstruct", "report", "sample", "resume"):
        said(command, run)


@pytest.mark.parametrize("options", [["--columns", "group=ignore"], ["--model", "conditional", "--labels", "group"]])
def test_a_comparison_in_slices(options, file, tmp_path, said, monkeypatch):
    monkeypatch.setattr("pyro_gvae.compare.cell.AT_A_TIME", 7)
    monkeypatch.setattr("pyro_gvae.train.setup.dataset_of", lambda *_, **__: pytest.fail("read as a whole"))
    run = tmp_path / "run"
    options = [*options, "--estimators", "exact", "--seeds", 0, "--epochs", 1, *SMALL]
    told = said("compare", "--data", file, *options, "--data-memory", MEMORY, "--output", run)
    assert "people.parquet: 200 rows, 4 columns" in told and "read in slices" in told
    result, read = pd.read_csv(run / "results.csv").iloc[0], load_run(run)
    test = first(given(read.model(), read.data).test, 1000)
    expected = exact.log_evidence(read.model(), test).mean().item()
    assert result["test_log_evidence"] == pytest.approx(expected, rel=1e-5)
    usage = load_tensors(run / "cells" / "exact-seed0" / "pictures.safetensors")["code_usage"]
    torch.testing.assert_close(usage, code_usage(read.model(), test), atol=1e-5, rtol=1e-5)
    assert "200 rows" in said("compare", "--data", file, *options, "--data-memory", MEMORY, "--output", run)


@pytest.mark.slow
def test_slices_are_encoded_and_imputed_as_the_whole_table(file, tmp_path, said, monkeypatch):
    monkeypatch.setattr("pyro_gvae.data.parquet.DECODED_AT_A_TIME", 7)
    monkeypatch.setattr("pyro_gvae.cli.slices.ROWS_AT_A_TIME", 9)
    run, other = tmp_path / "run", tmp_path / "other"
    options = ["--columns", "group=ignore", "--stages", "exact:2steps", *SMALL]
    said("train", "--data", file, *options, "--output", run)
    said("encode", run, "--data", file)
    said("impute", run, file)
    config = json.loads((run / "config.json").read_text())
    config["train"]["data_memory"] = MEMORY
    (run / "config.json").write_text(json.dumps(config))
    said("encode", run, "--data", file, "--output", other)
    said("impute", run, file, "--output", other)
    [codes] = (run / "codes").glob("*.safetensors")
    written = pd.read_csv(other / f"{codes.stem}.csv").filter(like="latent_")
    expected = torch.from_numpy(written.to_numpy(copy=True))
    assert torch.equal(load_tensors(codes)["codes"], expected) and len(expected) == 200
    names = [path.name for path in (run / "imputed").glob("*.csv")]
    assert len(names) == 3
    for name in names:
        pd.testing.assert_frame_equal(pd.read_csv(run / "imputed" / name), pd.read_csv(other / name), rtol=1e-5)
    kept = said("evaluate", run, "--data", file, "--num-data", 10)
    assert "evidence" in kept
