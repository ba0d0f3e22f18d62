"""The config.json of a run folder: it is read, or refused with one sentence."""

import re

import pytest

from pyro_gvae.cli.main import main
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.runs.config import earlier_run, is_train_run, read_config, read_train_config, write_config


@pytest.mark.parametrize("text", [None, "{", "5", "null", "[" * 100_000])
@pytest.mark.parametrize("command", ["report", "resume", "evaluate", "gaps"])
def test_a_missing_or_damaged_config_is_refused_by_each_command(command, text, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main([command, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"Expected a run folder, but found that '{tmp_path}' is not one: " in said
    assert "Traceback" not in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("train", [[], 3, None])
def test_invalid_settings_of_a_training_run_are_refused(train, tmp_path):
    write_config(tmp_path, {"train": train})
    with pytest.raises(ValueError, match=r"Expected a run folder of pyro-gvae train, but found that .* is not one"):
        read_train_config(tmp_path)


def test_what_is_written_comes_back(tmp_path):
    config = TrainConfig(stages="reinmax[temperature=1.3]:5", hidden=(3, 2))
    write_config(tmp_path, {"train": config.as_json()})
    assert read_train_config(tmp_path) == config and is_train_run(tmp_path)
    assert read_config(tmp_path)["versions"]["pyro-gvae"]


def test_a_command_goes_on_in_its_own_folder_with_the_same_settings_only(tmp_path):
    settings, run = {"a": 1, "b": [2.5], "output": "x", "cells": []}, tmp_path / "run"

    def found(**changed):
        return earlier_run(run, settings | changed, free={"output"}, known_by="cells")

    assert found() is None and earlier_run(None, settings, free=set(), known_by="cells") is None
    run.mkdir()
    with pytest.raises(ValueError, match="exists and is neither"):
        found()
    write_config(run, settings)
    assert found() == found(output="y") == run
    with pytest.raises(ValueError, match=re.escape(f"Expected the settings that '{run}' was started with")):
        found(b=[2.5, 1])
    with pytest.raises(ValueError, match="exists and is neither"):
        earlier_run(run, settings, free=set(), known_by="protocol")
