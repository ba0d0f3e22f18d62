"""Training in several processes: two real ones, over gloo, against one process."""

import contextlib
import json
import math
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch import multiprocessing, nn

from pyro_gvae.cli.main import main
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.elbos.exact import ExactELBO, ExactEvidence
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import log_evidence
from pyro_gvae.exact.plan import make_plan
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.runtime.distributed import (
    ALONE,
    Share,
    copy_from_main,
    from_main,
    gathered,
    largest,
    log_sum_exp,
    own_device,
    processes,
    share,
    summed,
)
from pyro_gvae.runtime.plain import pack, unpack
from pyro_gvae.train.fit import fit
from pyro_gvae.train.setup import initial_model, load_data
from pyro_gvae.train.step import make_step
from pyro_gvae.train.training import Training

ROOT = Path(__file__).parents[2]
D = 8


def new_vae(num_latents=2, num_categories=3, sharpness=1.0):
    torch.manual_seed(0)
    vae = CategoricalVAE(D, num_latents, num_categories, (6,))
    with torch.no_grad():
        for network in (vae.encoder, vae.decoder):
            last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            last.weight.mul_(sharpness)
    return vae


def data():
    """Return 13 images for batches of 5: shares of 3 and 2, and of 2 and 1 at the end of an epoch."""
    return torch.rand(13, D, generator=torch.Generator().manual_seed(1)).round()


def config(stages="gumbel-softmax:100", **options):
    return TrainConfig(stages=stages, batch_size=5, learning_rate=1e-2, **options)


# Without a group.


def test_a_process_without_a_group_is_alone():
    x = torch.tensor([1.0, 2.0])
    assert share() == ALONE == Share(0, 1)
    assert from_main(lambda: 3) == 3 and gathered("a") == ["a"] and largest(2.5) == 2.5
    assert summed([x])[0] is x and log_sum_exp(x) is x
    copy_from_main([x])
    with processes("cpu"):
        assert not dist.is_initialized()


def test_torchrun_gives_each_process_a_gpu(monkeypatch):
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(device) for device in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


@pytest.mark.parametrize(("num_latents", "num_categories"), [(2, 3), (3, 4), (11, 2)])
@pytest.mark.parametrize("world_size", [1, 2, 4, 7, 9])
def test_shares_have_every_code_once_and_are_of_one_size(num_latents, num_categories, world_size):
    vae = new_vae(num_latents, num_categories)
    plans = [
        make_plan(bind_pair(vae, data()), slice_size=5, share=Share(rank, world_size)) for rank in range(world_size)
    ]
    numbers = [torch.cat([*plan.numbers()]) for plan in plans]
    assert torch.cat(numbers).sort().values.tolist() == list(range(num_categories**num_latents))
    assert {len(mine) for mine in numbers} <= {len(numbers[-1]) + extra for extra in (-1, 0, 1)}
    assert [len(mine) for mine in numbers] == [plan.num_shared for plan in plans]
    assert [len([*plan.numbers()]) for plan in plans] == [plan.num_slices for plan in plans]


def test_codes_that_are_alike_go_to_different_processes():
    """Each of two processes has about half of the codes that share a category of one latent."""
    vae = new_vae(10, 2)
    plan = make_plan(bind_pair(vae, data()), share=Share(0, 2))
    codes = plan.codes(torch.cat([*plan.numbers()]))["z"]  # (512, 10, 2)
    assert (codes.mean(0) - 0.5).abs().max() < 0.06  # one standard error of a random half is 0.016
    assert torch.arange(0, 1024, 2).remainder(2).float().mean() == 0  # the control: taking every second code would fail


@pytest.mark.parametrize("sharpness", [1.0, 300.0])
def test_parts_of_the_elbo_add_up(sharpness):
    vae, x = new_vae(11, 2, sharpness).double(), data().double()
    model, guide, whole = estimator("exact").bind(vae)
    expected = whole.loss_and_grads(model, guide, x)
    gradients = [parameter.grad for parameter in vae.parameters()]
    vae.zero_grad()
    parts = [ExactELBO(share=Share(rank, 3), slice_size=100).loss_and_grads(model, guide, x) for rank in range(3)]
    assert sum(parts) == pytest.approx(expected, rel=1e-12)
    for parameter, gradient in zip(vae.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Training(new_vae(), data(), config(shard="codes")),
            "sum over codes for shard='codes', but found 'gumbel-soft",
        ),
        (lambda: make_plan(bind_pair(new_vae(), data()), share=Share(0, 10)), "found 10 processes for 9 codes"),
        (
            lambda: ExactEvidence(share=Share(0, 2)).differentiable_loss(new_vae().model, None, data()),
            "Expected a call of loss_and_grads",
        ),
    ],
)
def test_each_mistake_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_more_processes_than_data_are_refused(monkeypatch):
    monkeypatch.setattr("pyro_gvae.train.checks.share", lambda: Share(0, 4))
    with pytest.raises(ValueError, match="each of 4 processes in every batch, but found a last batch of 3"):
        Training(new_vae(), data(), config())


def test_a_run_keeps_its_number_of_processes():
    training = Training(new_vae(), data(), config())
    content = training.content()
    with pytest.raises(ValueError, match=r"checkpoint of 1 process\(es\), but found one of 2"):
        training.restore(content | {"random_of_others": [content["random"]]})


def test_a_run_that_is_to_be_found_again_needs_a_name(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train"]) == 2
    assert "Expected an output folder, so that processes can find their run" in capsys.readouterr().err


def test_a_restart_goes_on_only_with_its_own_configuration(monkeypatch, capsys, tmp_path):
    arguments = ["train", "--stages", "exact:2steps", "--num-latents", "1"]
    arguments += ["--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main(arguments) == 2  # there is no restart, so no run overwrites another
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "1"]) == 2
    assert "Expected a run with this configuration" in capsys.readouterr().err


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_what_another_process_tells_is_never_unpickled(tmp_path):
    """Bytes of a pickle are refused, and no function of torch that sends objects is called."""
    mark = tmp_path / "exploded"
    with pytest.raises(ValueError, match="Expected plain data with tensors, but found other bytes"):
        unpack(pickle.dumps(Bomb(str(mark))))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(str(mark)))).close()  # the negative control
    assert mark.exists()
    source = (ROOT / "pyro_gvae" / "runtime" / "distributed.py").read_text()
    assert "object" not in source.replace("would send objects as pickles", "")


@pytest.mark.parametrize("value", [None, 3, [1, True], {"a": torch.ones(2), 3: [torch.zeros(0), "x"]}, float("inf")])
def test_plain_data_come_back(value):
    found = unpack(pack(value))
    assert str(found) == str(value)


# Two processes: both run each job, and a test checks the results by rank.


def outcome(vae, chosen, x, *, shard, steps=1, optimizer="SGD"):
    """Return the losses of steps that change no weights, and the last gradients."""
    step = make_step(vae, chosen, lr=0.0, optimizer=optimizer, shard=shard)
    losses = [step(x).item() for _ in range(steps)]
    return losses, [parameter.grad for parameter in vae.parameters()]


CODES = {
    "9 codes in one slice": ((2, 3), {}),
    "81 codes in slices of 7": ((4, 3), {"slice_size": 7}),
    "2048 codes": ((11, 2), {}),
    "2048 codes, most of them negligible": ((11, 2, 300.0), {"slice_size": 300}),
}


#: `exact` in all cases; evidence and wake, which differ from it only with several slices, in those cases.
DIVIDED = [("exact", case) for case in CODES]
DIVIDED += [
    (name, case)
    for name in ("exact-evidence", "exact-wake")
    for case in CODES
    if "slices" in case or "negligible" in case
]


def codes_divided(name, case):
    sizes, options = CODES[case]
    return outcome(new_vae(*sizes), estimator(name, share=share(), **options), data(), shard="codes")


def evidence_together():
    vae, x = new_vae(), data()
    return ExactEvidence(share=share()).loss(vae.model, vae.guide, x)


def trained(stages, **options):
    vae = new_vae()
    done = fit(vae, data(), config(stages, **options), progress=False)
    return dict(vae.state_dict()), [line["train_objective"] for line in done.history]


def unbiased():
    vae, x = new_vae(), data()
    torch.manual_seed(10 + share().rank)
    step = make_step(vae, estimator("reinforce-loo"), lr=0.0, optimizer="SGD", shard="data")
    summed_up, own = [], []
    for _ in range(300):
        step(share().rows(x))
        summed_up.append(next(vae.encoder.parameters()).grad.flatten().clone())
    step = make_step(vae, estimator("reinforce-loo"), lr=0.0, optimizer="SGD")
    for _ in range(300):
        step(share().rows(x))
        own.append(next(vae.encoder.parameters()).grad.flatten().clone())
    return torch.stack(summed_up), torch.stack(own)


def averages():
    """Return what a moving average has learned in ten steps."""
    training = Training(
        new_vae(), data(), TrainConfig(stages="reinforce-baseline:100", batch_size=13, learning_rate=1e-2)
    )
    torch.manual_seed(share().rank)
    for _ in range(10):
        training.advance()
    return dict(training.step.own.state_dict()), dict(training.vae.state_dict())


def resumed(folder):
    """Train for 2k steps, and for k + k steps with a checkpoint between them."""

    def begun():
        training = Training(new_vae(), data(), config())
        torch.manual_seed(share().rank)
        return training

    def advanced(training, steps):
        for _ in range(steps):
            training.advance()
        return training

    expected = advanced(begun(), 14)
    content = advanced(begun(), 7).content()
    if share().rank == 0:
        save_checkpoint(Path(folder) / "halfway", content)
    dist.barrier()
    again = begun()
    again.restore(load_checkpoint(Path(folder) / "halfway"))
    advanced(again, 7)
    return [(dict(t.vae.state_dict()), torch.get_rng_state()) for t in (expected, again)]


def not_finite():
    """Train with a NaN in the data of rank 1; then let rank 1 fail."""
    vae = new_vae()
    step = make_step(vae, estimator("exact"), skip_non_finite=True, shard="data")
    weights = next(vae.parameters())
    first = weights.detach().clone()
    x = share().rows(data()).clone()
    step(x)
    before = weights.detach().clone()
    of_nan = step(x if share().rank == 0 else torch.full_like(x, torch.nan)).item()
    try:
        of_failure = step(x if share().rank == 0 else x[:, :3]).item()
    except ValueError as error:
        of_failure = type(error).__name__
    return not torch.equal(first, before), torch.equal(before, weights), of_nan, of_failure


DIGITS = ["--stages", "gumbel-softmax:12", "--num-latents", "2", "--num-categories", "4", "--hidden", "16"]
DIGITS += ["--batch-size", "100", "--checkpoint-every", "7steps", "--seed", "5"]


def undisturbed():
    """Return the weights that two undisturbed processes train."""
    chosen = TrainConfig(
        stages="gumbel-softmax:12",
        num_latents=2,
        num_categories=4,
        hidden=(16,),
        batch_size=100,
        checkpoint_every="7steps",
        seed=5,
    )
    loaded = load_data(chosen)
    vae = initial_model(chosen, loaded)
    fit(vae, loaded, chosen, progress=False)
    return dict(vae.state_dict())


JOBS = {
    **{f"{name}, {case}": lambda folder, name=name, case=case: codes_divided(name, case) for name, case in DIVIDED},
    "evidence": lambda folder: evidence_together(),
    "data": lambda folder: trained("exact:4,exact-evidence:3", clip_norm=0.5),
    "codes": lambda folder: trained("exact:4,exact-evidence:3", clip_norm=0.5, shard="codes"),
    "sampled": lambda folder: trained("gumbel-softmax:3"),
    "unbiased": lambda folder: unbiased(),
    "averages": lambda folder: averages(),
    "resumed": resumed,
    "not finite": lambda folder: not_finite(),
    "digits": lambda folder: undisturbed(),
}


#: Jobs whose steps are recorded; the others take fewer steps than a recording is worth.
RECORDED = ("data", "codes", "unbiased")


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    record, found = TracedELBO.outcome, {}
    for name, job in JOBS.items():
        TracedELBO.outcome = record if name in RECORDED else lambda *_, **__: None  # as in `conftest.unrecorded`
        found[name] = job(folder)
    torch.save(found, f"{folder}/rank{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(server, tmp_path_factory):
    """Return the results of two processes by the name of the job: [rank 0, rank 1]."""
    folder = tmp_path_factory.mktemp("both")
    done = server.run(str(folder), script=__file__)
    assert done.code == 0, done.err
    found = [torch.load(folder / f"rank{rank}") for rank in (0, 1)]
    return {name: [of_rank[name] for of_rank in found] for name in JOBS}


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), DIVIDED)
def test_divided_codes_are_one_sum(both, name, case):
    sizes, _ = CODES[case]
    (losses, gradients), other = both[f"{name}, {case}"]
    assert_equal(other, (losses, gradients))
    expected, expected_gradients = outcome(new_vae(*sizes), estimator(name), data(), shard=None)
    assert losses == pytest.approx(expected, rel=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.slow
def test_the_evidence_of_divided_codes_counts_once(both):
    expected = -log_evidence(new_vae(), data()).sum().item()
    assert sum(both["evidence"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["data", "codes"])
def test_two_processes_train_as_one_where_nothing_is_sampled(both, shard):
    (weights, objectives), other = both[shard]
    assert_equal(other, (weights, objectives))
    expected_weights, expected = trained("exact:4,exact-evidence:3", clip_norm=0.5)
    assert objectives[1:] == pytest.approx(expected[1:], rel=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_sampled_steps_have_noise_of_their_own_and_common_weights(both):
    (weights, objectives), other = both["sampled"]
    assert_equal(other, (weights, objectives))
    expected_weights, expected = trained("gumbel-softmax:3")
    assert objectives[1:] != expected[1:]
    torch.testing.assert_close(weights, expected_weights, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_summed_estimates_have_the_mean_of_one_process(both):
    (estimates, own), (others, _) = both["unbiased"]
    assert_equal(estimates, others)
    vae = new_vae()
    outcome(vae, estimator("exact"), data(), shard=None)
    exact = next(p.grad for p in vae.encoder.parameters()).flatten()

    def errors(found):
        error = found.std(0) / len(found) ** 0.5
        return ((found.mean(0) - exact).abs() / error.clamp_min(1e-12))[exact.abs() > 1e-6].max()

    assert errors(estimates) < 5
    assert errors(own) > 5  # the negative control: one part is not the sum


@pytest.mark.slow
def test_running_averages_are_those_of_all_data(both):
    (averages, weights), other = both["averages"]
    assert averages
    assert_equal(other, (averages, weights))


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(both):
    for expected, again in both["resumed"]:
        assert_equal(again, expected)
    (_, (_, one)), (_, (_, other)) = both["resumed"]
    assert not torch.equal(one, other)  # their noise is their own


@pytest.mark.slow
def test_a_step_that_is_not_finite_in_one_process_is_left_out_in_all(both):
    for moved, stayed, of_nan, _ in both["not finite"]:
        assert moved and stayed and math.isnan(of_nan)
    assert math.isnan(both["not finite"][0][3])  # at the step in which the other one failed
    assert both["not finite"][1][3] == "ValueError"


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_nothing_is_lost(both, server, tmp_path):
    """The kill is in the middle of training; the weights equal those of an undisturbed run, bit for bit."""
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m", "pyro_gvae", "train", *DIGITS]
    launcher = server.start(*words, "--output", str(tmp_path / "run"), script=ROOT / "tests" / "forked_torchrun.py")
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert psutil.pid_exists(launcher), server.end().err
            time.sleep(0.01)
        ranks = sorted(psutil.Process(launcher).children(), key=lambda process: process.create_time())
        assert len(ranks) == 2
        # In the middle of training, so that the run would not end without a restart.
        assert len(metrics.read_text().splitlines()) < 10
        ranks[1].send_signal(signal.SIGKILL)
        done = server.end()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGTERM)
    assert done.code == 0, done.err
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert_equal(weights, both["digits"][0])
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 12 * steps[1]
    assert (done.out + done.err).count("discrete ELBO (exact") == 1  # only rank 0 prints


if __name__ == "__main__":  # in a process with one thread, which forks
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
