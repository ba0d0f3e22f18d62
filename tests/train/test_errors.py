"""Errors of programs in a step are raised unchanged, and existing runs are never overwritten."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_gvae import CategoricalVAE, TrainConfig, fit
from pyro_gvae.data.dataset import as_tensor
from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.train.non_finite import first_non_finite
from pyro_gvae.train.training import Training

STAGES = ["gumbel-softmax:2", "exact:2", "reinforce-loo:2"]


def new_vae(**options):
    torch.manual_seed(0)
    return CategoricalVAE(12, 2, 3, hidden=(8,), **options)


def images(count=16):
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(1)).round()


def config(stages="exact:2", **options):
    return TrainConfig(stages=stages, batch_size=8, **options)


class Mistaken(nn.Module):
    """A decoder that works for batches of 8 and for evaluations, and fails for the last batch, of 4."""

    def __init__(self, error):
        super().__init__()
        self.linear, self.error = nn.Linear(12, 6), error

    def forward(self, x):
        if len(x) == 4:
            raise self.error
        return self.linear(x).unflatten(-1, (2, 3))


@pytest.mark.parametrize(
    ("stages", "error"),
    [*zip(STAGES, [ValueError("my own mistake"), RuntimeError("my own mistake"), KeyError("mine")], strict=True)],
)
def test_an_error_of_the_program_is_raised_as_it_is(stages, error):
    with pytest.raises(type(error), match=r"mine|my own mistake"):
        fit(new_vae(encoder=Mistaken(error)), images(20), config(stages), progress=False)


def test_batch_normalization_of_one_datum_is_no_number_that_is_not_finite():
    layers = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.Unflatten(-1, (2, 3))
    vae = new_vae(encoder=nn.Sequential(*layers))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fit(vae, images(17), config(), progress=False)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("stages", STAGES)
def test_a_step_that_is_not_finite_is_still_left_out(stages):
    """The control: the logits are NaN for one batch, and torch cannot draw from them."""

    class NotANumber(Mistaken):
        def forward(self, x):
            logits = self.linear(x).unflatten(-1, (2, 3))
            return logits * torch.nan if len(x) == 4 else logits

    done = fit(new_vae(encoder=NotANumber(None)), images(20), config(stages), progress=False)
    assert done.history[-1]["skipped"] == 2  # the last batch of each epoch


def test_a_distribution_of_nan_is_named():
    class Program(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
                pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x[:, 0])

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.OneHotCategorical(logits=torch.full((len(x), 3), torch.nan)))

    from pyro_gvae import estimator

    found = first_non_finite(Program(), estimator("reinforce-loo"), images())
    assert found == "a parameter of the distribution of site 'z' of the guide"


def test_a_folder_with_a_run_is_not_begun_in(tmp_path):
    fit(new_vae(), images(), config(), output=tmp_path, progress=False)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"Expected a folder without a run, but found 'checkpoint.*Try resume=True"):
        fit(new_vae(), images(), config("gumbel-softmax:1"), output=tmp_path, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files


@pytest.mark.parametrize("lost", [["checkpoint.safetensors"], ["checkpoint.safetensors", "weights.safetensors"]])
def test_a_run_whose_checkpoint_is_lost_keeps_what_it_has(lost, tmp_path):
    fit(new_vae(), images(), config(), output=tmp_path, progress=False)
    for name in lost:
        (tmp_path / name).unlink()
    history = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"Expected a checkpoint of the run in .*left as they are"):
        fit(new_vae(), images(), config(), output=tmp_path, resume=True, progress=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == history


class Swapped(CategoricalVAE):
    """Parameters with the same names and sizes, in another order."""

    def __init__(self):
        super().__init__(12, 2, 3, hidden=(8,))
        encoder, decoder = self.encoder, self.decoder
        del self.encoder, self.decoder
        self.decoder, self.encoder = decoder, encoder


def transposed(content):
    content["optimizer"][0]["exp_avg"] = torch.zeros(3)
    return content


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return a function that reads the checkpoint of a run of one step."""
    path = tmp_path_factory.mktemp("kept") / "checkpoint.safetensors"
    training = Training(new_vae(), images(), config())
    training.advance()
    save_checkpoint(path, training.content())
    return partial(load_checkpoint, path)


def test_a_resumed_run_tidies_up_at_the_same_steps(kept):
    resumed = Training(new_vae(), images(), config())
    resumed.restore(kept())
    assert resumed.step.taken == 1


@pytest.mark.parametrize(
    ("make", "harm", "sentence"),
    [
        (Swapped, lambda content: content, "Expected a checkpoint of this program, but found one of another"),
        (new_vae, transposed, "Expected a checkpoint of this program, but found one of another"),
        (new_vae, without("vae"), "Expected a complete checkpoint, but found one without vae"),
        (new_vae, lambda content: content | {"state": {"step": "many", "rounds": 3}}, "of this release"),
        (new_vae, lambda content: content | {"optimizer": {99: {}}}, "of this program"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(make, harm, sentence, kept):
    """With averages of another shape, a fused optimizer would read and write out of bounds."""
    resumed = Training(make(), images(), config())
    with pytest.raises(ValueError, match=sentence):
        resumed.restore(harm(kept()))


def test_other_data_of_the_same_shape_are_refused(kept):
    resumed = Training(new_vae(), 1 - images(), config())
    with pytest.raises(ValueError, match="Expected the training data of the checkpoint, but found other data"):
        resumed.restore(kept())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: TensorDataset(x, torch.arange(len(x))),
        lambda x: DataLoader(TensorDataset(x), batch_size=5),
        lambda x: x.numpy().astype(np.int64),
    ],
)
def test_data_may_be_held_by_anything(wrapped):
    assert torch.equal(as_tensor(wrapped(images())), images())


def test_a_run_on_an_array_is_that_on_a_tensor():
    """Weights are the same, bit for bit."""
    found, right = new_vae(), new_vae()
    fit(found, images().numpy(), config(), progress=False)
    fit(right, images(), config(), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), right.parameters(), strict=True))


def test_what_is_no_data_is_one_sentence():
    with pytest.raises(ValueError, match=r"Expected data as a tensor \(M, D\), an array or a data set"):
        fit(new_vae(), "digits", config(), progress=False)


@pytest.mark.parametrize("stages", ["reinmax:1", "exact:1", "rebar:1,exact:1"])
def test_a_temperature_that_no_stage_reads_is_refused(stages):
    with pytest.raises(ValueError, match=r"Expected a stage that reads the program's temperature"):
        fit(new_vae(), images(), config(stages, temperature=0.5), progress=False)


@pytest.mark.parametrize("stages", ["gumbel-softmax:1,exact:1", "reinmax[temperature=None]:1"])
def test_a_temperature_that_a_stage_reads_acts(stages):
    weights = []
    for temperature in (0.1, 5.0):
        vae = new_vae()
        fit(vae, images(), config(stages, temperature=temperature), progress=False)
        weights.append(vae.encoder[0].weight)
    assert not torch.equal(*weights)


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    """The first step has a finite loss but gives infinite weights, which would be written before ten more steps."""
    with pytest.raises(ValueError, match=r"Expected finite weights, but found others in '.*' at step 1\. The last ch"):
        fit(
            new_vae(), images(), config(learning_rate=1e300, checkpoint_every="1steps"), output=tmp_path, progress=False
        )
    kept = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert kept["state"]["step"] == 0 and all(tensor.isfinite().all() for tensor in kept["vae"].values())


def test_weights_that_are_not_finite_are_no_result(tmp_path):
    with pytest.raises(ValueError, match="Expected finite weights"):
        fit(new_vae(), images(), config("exact:1steps", learning_rate=1e300), output=tmp_path, progress=False)
    assert not (tmp_path / "weights.safetensors").exists()


def test_what_was_not_finite_before_is_as_it_should_be(tmp_path):
    """Examples are logits of -inf, which exclude a category."""
    vae = new_vae()
    vae.excluded = nn.Parameter(torch.tensor([-torch.inf, 0.0]))
    done = fit(vae, images(), config(checkpoint_every="1steps"), output=tmp_path, progress=False)
    assert done.reason == "all stages" and vae.excluded[0] == -torch.inf
