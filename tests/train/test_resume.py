"""A resumed run is the run that was never interrupted, bit for bit, for every estimator."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pyro_gvae.config.stages import Amount
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.elbos.sampled import Estimate, SampledELBO
from pyro_gvae.estimators import ESTIMATORS, estimator
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.train.fit import fit
from pyro_gvae.train.training import Training

pytestmark = pytest.mark.slow  # many trainings

D, N, K, HALF = 8, 2, 3, 4


def new_vae(num_categories=K, **options):
    torch.manual_seed(0)
    return CategoricalVAE(D, N, num_categories, (6,), **options)


def data(size=15):
    """Return images for batches of 5: an epoch is 3 steps, so a checkpoint after 4 steps is within an epoch."""
    return torch.rand(size, D, generator=torch.Generator().manual_seed(1)).round()


def config(stages, **options):
    return TrainConfig(stages=stages, batch_size=5, learning_rate=1e-2, **options)


def begun(config, make=new_vae, x=None):
    training = Training(make(), data() if x is None else x, config)
    torch.manual_seed(2)
    return training


def advanced(training, steps):
    for _ in range(steps):
        training.advance()
        if training.stage_is_over:
            training.next_stage()
    return training


def flat(content, name=""):
    """Yield (name, value) of everything in a checkpoint except times."""
    if isinstance(content, dict):
        return [pair for key, item in content.items() for pair in flat(item, f"{name}/{key}")]
    if isinstance(content, list):
        return [pair for key, item in enumerate(content) for pair in flat(item, f"{name}/{key}")]
    return [] if name.endswith("seconds") else [(name, content)]


def assert_the_same(found, expected):
    found, expected = dict(flat(found)), dict(flat(expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name


def assert_resumed_is_uninterrupted(config, path, make=new_vae, *, forget=(), x=None):
    """Compare k steps, a checkpoint and k more steps with the same k steps of a resumed run.

    Returns:
        The final state of the first run.
    """
    training = advanced(begun(config, make, x), HALF)
    save_checkpoint(path, training.content())
    expected = advanced(training, HALF).content()
    resumed = Training(make(), data() if x is None else x, config)
    torch.manual_seed(99)
    content, fresh = load_checkpoint(path), resumed.content()
    resumed.restore({name: (fresh if name in forget else content)[name] for name in content})
    assert_the_same(advanced(resumed, HALF).content(), expected)
    return training


# A resumed run records again; other needs of estimators for a checkpoint show without recordings, too.
RECORDED = {"gumbel-softmax", "exact", "reinforce-baseline", "relax"}


@pytest.mark.parametrize("name", [*ESTIMATORS, "per-site[z=reinforce-loo]"])
def test_k_and_k_steps_are_2k_steps(name, tmp_path, request):
    if name in RECORDED:
        request.getfixturevalue("recorded")
    make = partial(new_vae, estimator(name).num_categories or K)
    assert_resumed_is_uninterrupted(config(f"{name}:100"), tmp_path / "checkpoint", make)


@pytest.mark.usefixtures("recorded")
def test_a_checkpoint_changes_nothing_in_the_run_that_writes_it(tmp_path):
    """The last batch of an epoch is smaller, and needs another recording."""
    chosen, x = config("relax:100"), data(13)
    training = assert_resumed_is_uninterrupted(chosen, tmp_path / "checkpoint", x=x)
    assert_the_same(training.content(), advanced(begun(chosen, x=x), 2 * HALF).content())


@pytest.mark.parametrize("forgotten", ["random", "optimizer", "vae"])
def test_negative_control(forgotten, tmp_path):
    """The test notices a checkpoint that lacks one of its parts."""
    with pytest.raises(AssertionError):
        assert_resumed_is_uninterrupted(config("gumbel-softmax:100"), tmp_path / "checkpoint", forget=[forgotten])


class Branching(nn.Module):
    """A decoder that cannot be recorded."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N * K, D)

    def forward(self, z):
        return self.layer(z.flatten(-2)) * (2.0 if z.sum().item() > 0 else 1.0)


class Normalized(nn.Module):
    """An encoder whose buffers change in every step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, N * K), nn.BatchNorm1d(N * K), nn.Unflatten(-1, (N, K)))

    def forward(self, x):
        return self.layers(x)


OTHERS = {
    "SGD, whose state has no count": {"optimizer": "SGD[momentum=0.9]"},
    "RAdam": {"optimizer": "RAdam"},
    "schedules": {"learning_rate": "cosine:1e-2,1e-4,12", "temperature": "linear:1.0,0.1,12"},
    "clipping": {"clip_norm": 0.1},
    "a KL that warms up": {"beta": "linear:0,1,12", "free_bits": 0.1},
    "a sum whose KL warms up": {"stages": "exact:100", "beta": "cosine:0,2,12", "free_bits": 0.1},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_with_other_settings(options, tmp_path):
    chosen = TrainConfig(**{"stages": "gumbel-softmax:100", "batch_size": 5} | options)
    assert_resumed_is_uninterrupted(chosen, tmp_path / "checkpoint")


@pytest.mark.parametrize("stages", ["gumbel-softmax:4steps,exact:20steps", "gumbel-softmax:6steps,exact:20steps"])
def test_at_the_seam_of_two_stages_and_before_it(stages, tmp_path):
    training = assert_resumed_is_uninterrupted(config(stages), tmp_path / "checkpoint")
    assert training.state.stage == 1


@pytest.mark.usefixtures("recorded")
@pytest.mark.filterwarnings("ignore:Steps run without a recording")
@pytest.mark.parametrize(
    "networks", [{"decoder": Branching}, {"encoder": Normalized}], ids=["not recorded", "changing buffers"]
)
def test_with_other_networks(networks, tmp_path):
    def make():
        torch.manual_seed(0)
        return new_vae(**{name: network() for name, network in networks.items()})

    assert_resumed_is_uninterrupted(config("gumbel-softmax:100"), tmp_path / "checkpoint", make)


def test_stages_share_one_optimizer():
    training = advanced(begun(config("gumbel-softmax:5steps,exact:5steps,gumbel-softmax:5steps")), 12)
    assert training.stage.amount == Amount(5, "steps") and training.state.stage == 2
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {12}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"learning_rate": 0.5}, "another learning_rate"),
        ({"stages": "exact:100", "seed": 3}, "another stages, seed"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, sentence):
    content = begun(config("gumbel-softmax:100")).content()
    other = begun(TrainConfig(**{"stages": "gumbel-softmax:100", "batch_size": 5, "learning_rate": 1e-2} | change))
    with pytest.raises(ValueError, match=sentence):
        other.restore(content)


def test_a_checkpoint_of_other_data_or_networks_is_refused():
    chosen = config("gumbel-softmax:100")
    content = begun(chosen).content()
    with pytest.raises(ValueError, match="Expected the training data of the checkpoint"):
        Training(new_vae(), 1 - data(), chosen).restore(content)
    with pytest.raises(ValueError, match="Expected a checkpoint of this program"):
        begun(chosen, lambda: new_vae(learn_prior=True, decoder=Branching())).restore(content)


def test_a_run_that_was_over_stays_so(tmp_path):
    chosen = config("gumbel-softmax:3steps")
    first = fit(new_vae(), data(), chosen, output=tmp_path, progress=False)
    again = new_vae()
    done = fit(again, data(), chosen, output=tmp_path, resume=True, progress=False)
    assert done.steps == first.steps == 3 and done.history == first.history
    assert not torch.equal(again.state_dict()["encoder.0.weight"], new_vae().state_dict()["encoder.0.weight"])


class WithBaseline(SampledELBO):
    """The score function with a baseline that the loss learns, and a counter."""

    def __init__(self):
        super().__init__()
        self.own = nn.Module()
        self.own.baseline = nn.Parameter(torch.zeros(()))
        self.own.register_buffer("count", torch.zeros(()))

    def estimate(self, target):
        draws = target.draw(1)
        log_joint, log_q = draws.log_joint, draws.log_q  # (1, B)
        bound = (log_joint - log_q)[0]
        self.own.count.add_(1)
        signal = bound.detach() - self.own.baseline
        surrogate = (log_joint[0] + signal.detach() * log_q[0]).sum()
        return Estimate(bound, surrogate, signal.square().sum())


@pytest.mark.parametrize("stages", ["exact:100", "exact:3steps,gumbel-softmax:100", "gumbel-softmax:3steps,exact:100"])
def test_what_a_loss_learns_itself_is_part_of_a_checkpoint(stages, tmp_path, monkeypatch):
    learned = replace(estimator("exact"), elbo=WithBaseline, is_exact=False)
    monkeypatch.setitem(ESTIMATORS, "exact", lambda: learned)
    training = assert_resumed_is_uninterrupted(config(stages), tmp_path / "checkpoint")
    expected = training.content()
    has_own = training.stage.estimator == "exact"
    assert len(training.optimizer.param_groups) == 1 + has_own and (expected["own"] != {}) is has_own
    if has_own:
        assert (
            expected["own"]["baseline"] < 0
            and expected["own"]["count"] == training.state.step - training.state.stage_step
        )
