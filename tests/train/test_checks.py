"""Checks before training: they refuse what cannot be trained without building anything, with the same sentences."""

import pytest
import torch

from pyro_gvae.config.stages import Amount, Named
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runtime.distributed import Share
from pyro_gvae.train import training as training_module
from pyro_gvae.train.checks import check_training
from pyro_gvae.train.training import Training


def program():
    torch.manual_seed(0)
    return CategoricalVAE(6, 2, 3, (5,))


class Plain(torch.nn.Module):
    """A program without a temperature."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 9}, "Expected a batch size from 1 to the 8 training data, but found 9"),
        ({"patience": 2}, "Expected a Dataset with test images for patience"),
        ({"stages": "exact:1,reinmax[heat=2]:1"}, "Expected options that 'reinmax' has"),
        ({"stages": "exact:1,gumbel-softmax:1", "shard": "codes"}, "shard='codes', but found 'gumbel-softmax'"),
        ({"stages": "disarm:1"}, "Expected latents of K=2 categories for 'disarm', but found K=3"),
        ({"stages": "per-site[w=exact]:1"}, "Expected the program to have a site 'w', but found 'z', 'x'."),
        ({"stages": "per-site[z=vimco]:1"}, "but found 'vimco' for z: the importance-weighted bound"),
        ({"stages": "per-site[z=exact]:1", "shard": "codes"}, "shard='codes', but found 'per-site'"),
        ({"stages": "exact-evidence:1", "beta": 0.5}, "Expected an objective with a KL to weigh"),
        ({"optimizer": "Adamant"}, "Expected the name of an optimizer in torch.optim, but found 'Adamant'"),
        ({"optimizer": "SGD[heat=1]"}, "Expected options that torch.optim.SGD has"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
@pytest.mark.parametrize("make", [check_training, Training])
def test_each_mistake_is_one_sentence(make, changes, sentence):
    config = TrainConfig(**{"stages": "gumbel-softmax:1", "batch_size": 3} | changes)
    with pytest.raises(ValueError, match="Expected") as refusal:
        make(program(), torch.ones(8, 6), config)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("make", [check_training, Training])
def test_programs_and_data_that_do_not_fit_are_refused(make, monkeypatch):
    config = TrainConfig(stages="exact:1", batch_size=3)
    with pytest.raises(ValueError, match=r"Expected training data in \[0, 1\]"):
        make(program(), 2 * torch.ones(8, 6), config)
    with pytest.raises(ValueError, match="Expected a program with a buffer 'temperature' to anneal"):
        make(Plain(), torch.ones(8, 6), TrainConfig(stages="exact:1", batch_size=3, temperature=0.5))
    monkeypatch.setattr("pyro_gvae.train.checks.share", lambda: Share(0, 4))
    with pytest.raises(ValueError, match="each of 4 processes in every batch, but found a last batch of 2"):
        make(program(), torch.ones(8, 6), config)


def test_nothing_is_built_to_be_thrown_away(monkeypatch):
    def built(*args, **kwargs):
        raise AssertionError("Expected a check alone.")

    vae = program()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    for name in ("judge_of", "make_step"):
        monkeypatch.setattr(training_module, name, built)
    config = TrainConfig(stages="gumbel-softmax:1,exact:1", batch_size=3, temperature=0.1, beta=0.5)
    check_training(vae, torch.ones(8, 6), config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def test_texts_are_read_once_and_not_in_each_step(monkeypatch):
    def read(text):
        raise AssertionError(f"Expected '{text}' to be read before.")

    config = TrainConfig(stages="gumbel-softmax:2steps,exact:2steps", batch_size=4, checkpoint_every="3steps")
    for kind in (Amount, Named):
        monkeypatch.setattr(kind, "parse", read)
    training = Training(program(), torch.ones(8, 6), config)
    due = []
    for _ in range(4):
        training.advance()
        due.append((training.evaluation_is_due, training.checkpoint_is_due))
        if training.stage_is_over:
            training.next_stage()
    assert due == [(False, False), (True, False), (True, True), (True, True)] and training.state.done == "all stages"


@pytest.mark.parametrize("stages", ["exact:1", "gumbel-softmax:1,exact-evidence:1"])
def test_codes_that_cannot_be_summed_are_refused(stages):
    vae = CategoricalVAE(6, 30, 8, (5,))
    config = TrainConfig(stages=stages, batch_size=3, free_bits=0.1 if stages == "exact:1" else None)
    with pytest.raises(ValueError, match=r"Expected at most 2\^62 joint codes, but found K\^N = 8\^30"):
        check_training(vae, torch.ones(8, 6), config)
