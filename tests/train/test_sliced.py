"""Training on rows that are read in slices: resuming is exact to the bit, and evaluations use all test rows."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, exact, fit, sliced_dataset
from pyro_gvae.config.stages import Amount
from pyro_gvae.models.table import TableObservation
from pyro_gvae.train import monitor
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.monitor import choose_judge, discrete_elbo

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("unrecorded")


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"age": random.normal(size=150), "sex": random.choice(["f", "m"], 150)})
    frame.mask(random.random(frame.shape) < 0.1).to_parquet(tmp_path / "people.parquet", row_group_size=16)
    return sliced_dataset(tmp_path / "people.parquet", memory=2 * 2 * 16 * 2 * 4)


def program(data):
    torch.manual_seed(0)
    return CategoricalVAE(2, 1, 3, (4,), observation=TableObservation(data.columns))


def test_a_resumed_run_is_the_same_to_the_bit(data, tmp_path):
    config = TrainConfig(stages="gumbel-softmax:2", batch_size=7)
    whole, again = program(data), program(data)
    done = fit(whole, data, config, progress=False)
    steps = [Amount(float(step), "steps") for step in (3, 21)]  # in the first epoch, and the second
    for stop in steps:
        fit(
            again,
            data,
            config,
            output=tmp_path / "run",
            resume=True,
            progress=False,
            milestones=Milestones([stop], lambda _: {}),
        )
        again = program(data)
    resumed = fit(again, data, config, output=tmp_path / "run", resume=True, progress=False)
    assert done.steps == resumed.steps > 21
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert resumed.history[-1]["test_elbo"] == done.history[-1]["test_elbo"]


def test_all_test_rows_are_judged(data, monkeypatch):
    monkeypatch.setattr(monitor, "AT_A_TIME", 7)
    vae, x = program(data), torch.cat(list(data.test.chunks(1000)))
    expected = exact.elbo(vae, x).mean().item()
    assert discrete_elbo(vae, data.test, "exact") == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(discrete_elbo(vae, data.test, "sampled"))
    assert choose_judge(vae, data.test) == "exact"


def test_a_program_of_other_columns_is_told_before_it_is_trained(data):
    other = CategoricalVAE(2, 1, 3, (4,))
    with pytest.raises(ValueError, match="without NaN or infinity"):
        fit(other, data, TrainConfig(stages="exact:1steps", batch_size=7), progress=False)


def test_the_order_is_part_of_what_a_checkpoint_is_held_against(data, tmp_path):
    config = TrainConfig(stages="exact:2steps", batch_size=7)
    fit(program(data), data, config, output=tmp_path / "run", progress=False)
    other = sliced_dataset(tmp_path / "people.parquet", memory=2 * 16 * 2 * 4)
    with pytest.raises(ValueError, match="the training data of the checkpoint, but found other"):
        fit(program(data), other, config, output=tmp_path / "run", resume=True, progress=False)
    in_memory = Dataset(
        "people", next(data.train.chunks(999)), next(data.test.chunks(999)), (1, 2), columns=data.columns
    )
    with pytest.raises(ValueError, match="the training data of the checkpoint, but found other"):
        fit(program(data), in_memory, config, output=tmp_path / "run", resume=True, progress=False)
