"""fit: a program through its stages, with evaluations, checkpoints and an end that can be resumed."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple, final

import torch
from safetensors.torch import save
from torch import Tensor

from ..config.train import TrainConfig
from ..data.dataset import Dataset, as_tensor
from ..runs.checkpoint import load_checkpoint, save_checkpoint
from ..runs.files import replacing
from ..runs.folder import sole_writer
from ..runtime.distributed import from_main, is_main, largest, share
from ..runtime.rng import derived_seed, own_randomness
from ..runtime.signals import Stop, stop_on_signal
from .logs import Logs
from .milestones import NO_MILESTONES, Measure, Milestones, measured
from .non_finite import first_non_finite
from .step import TrainableProgram
from .training import Training

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"


class Fit(NamedTuple):
    """What `fit` did.

    Attributes:
        steps: batches taken, those of skipped steps included.
        seconds: of training, without evaluations.
        reason: why it ended.
        history: one dictionary for each evaluation; see `Training.judge`.
        milestones: one dictionary for each that was measured, also by earlier calls; see `Milestones`.
    """

    steps: int
    seconds: float
    reason: str
    history: list[dict[str, Any]]
    milestones: list[dict[str, Any]]


@final
class Interrupted(KeyboardInterrupt):
    """A signal stopped a run after a step; its checkpoint is written.

    Attributes:
        run: the run folder.
        signal: which one it was.
    """

    def __init__(self, run: Path, number: Signals) -> None:
        super().__init__(f"stopped by {number.name}; resume with: pyro-gvae resume {run}")
        self.run = run
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (self.run, self.signal)  # from one process to another


def fit(
    vae: TrainableProgram,
    data: Any,
    config: TrainConfig | None = None,
    *,
    output: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    measure: Measure | None = None,
    milestones: Milestones = NO_MILESTONES,
) -> Fit:
    """Train a program in stages of estimators, with one optimizer, and judge the discrete model on the way.

    The same configuration gives the same weights, bit for bit, however often the run is interrupted and resumed. Random
    numbers are the run's own: torch's, NumPy's and Python's generators are afterwards as they were.

    In a process group of torch's, all processes call this alike and train together, dividing what `config.shard` says;
    each draws random numbers of its own for its share of the data. Rank 0 alone writes. The group needs a backend for
    the CPU besides that for the data's device.

    Args:
        vae: a `CategoricalVAE`, or any module with `.model(x)` and `.guide(x)`; trained in its place. What the
            configuration says about networks is not looked at.
        data: a data set; or, without a test ELBO, data alone: a tensor (M, D) as it is, an array, a dataset of
            torch's or a `DataLoader`, whose dataset is taken.
        config: the defaults if None.
        output: a folder for metrics.jsonl, checkpoint.safetensors, at the end weights.safetensors; nothing is
            written if None.
        resume: go on from the checkpoint in `output` where there is one; a run that was over stays so.
        progress: show a progress bar.
        measure: called at each evaluation with the :class:`~pyro_gvae.train.training.Training`; what it returns,
            name -> number, stands in the history too. It may draw random numbers, and changes nothing.
        milestones: where the run is measured besides. The call returns at the last of them, if the run is not over
            before, and a later one goes on from there, as if nothing had happened.

    Returns:
        What was done.

    Raises:
        ValueError: if data, configuration or checkpoint are unusable, if another process works in `output`, or if
            `config.max_skipped` steps in a row were not finite.
        Interrupted: after a SIGINT or SIGTERM, if there is an `output` to resume from.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> config = TrainConfig(stages="gumbel-softmax:30steps,exact:30steps", batch_size=4)
        >>> done = fit(vae, torch.ones(8, 6), config, progress=False)
        >>> done.steps, done.history[-1]["train_elbo"] > done.history[0]["train_elbo"]
        (60, True)
    """
    config = TrainConfig() if config is None else config
    # Data that processes divide have their own noise each; who sums some of the codes has the others' data.
    rank = share().rank if config.shard == "data" else 0
    with own_randomness(derived_seed("train", config.seed, rank)), _asked_to_stop(output) as stop:
        training = Training(vae, data if isinstance(data, Dataset) else as_tensor(data), config)
        with _alone_in(output):
            begun = _begun(training, output, resume=resume)
            milestones.check(training)
            with _logs(training, output, milestones, progress=progress) as logs:
                if not begun:
                    _judge(training, logs, output, measure)
                    _keep(training, output)
                while training.state.done is None and not milestones.are_over(training):
                    _advance(training, logs, output, measure, milestones)
                    _stop_if_asked(training, stop, output)
                reason = training.state.done or "all milestones"
                return Fit(training.state.step, training.state.seconds, reason, logs.history, training.state.milestones)


def _begun(training: Training, output: Path | None, *, resume: bool) -> bool:
    """Whether the run had begun; then it is where its checkpoint was."""
    if output is not None and not resume:
        from_main(lambda: _check_unused(output))
    return resume and _restored(training, output)


def _logs(training: Training, output: Path | None, milestones: Milestones, *, progress: bool) -> Logs:
    options = {
        "progress": progress and is_main(),
        "tensorboard": training.config.tensorboard and output is not None and training.state.done is None,
    }
    folder = output if is_main() else None
    return Logs(folder, total=milestones.total(training), step=training.state.step, **options)


def _stop_if_asked(training: Training, stop: Stop, output: Path | None) -> None:
    asked = int(largest(stop.asked or 0))
    if asked and output is not None and training.state.done is None:
        _keep(training, output)
        raise Interrupted(output, Signals(asked))


def _advance(
    training: Training, logs: Logs, output: Path | None, measure: Measure | None, milestones: Milestones
) -> None:
    """A step, and what is due after it. A checkpoint comes last: it is the state in which the next step begins."""
    state, ahead = training.state, milestones.ahead(training)
    training.advance()
    logs.advance()
    if training.refused is not None:
        _refuse(training, *training.refused, output)
    state.done = training.budget_is_spent
    if training.stage_is_over or state.done or training.evaluation_is_due:
        _judge(training, logs, output, measure)
    if training.stage_is_over and state.done is None:
        training.next_stage()
    if state.done and output is not None and is_main():
        _write_weights(training.vae, output / WEIGHTS)
    reached = milestones.record(training, ahead)
    if state.done or reached or training.checkpoint_is_due:
        _keep(training, output)


def _judge(training: Training, logs: Logs, output: Path | None, measure: Measure | None) -> None:
    state, line = training.state, training.judge()
    if measure is not None:
        line |= measured(training, measure)
    logs.record(line)
    logs.picture(training.vae, training.data, state.step)
    if training.config.patience is not None and state.stale == 0 and output is not None and is_main():
        _write_weights(training.vae, output / "best.safetensors")


def _keep(training: Training, output: Path | None) -> None:
    if output is None:
        return
    state = training.state
    state.kept_step, state.kept_seconds = state.step, state.seconds
    content = training.content()
    if is_main():
        save_checkpoint(output / CHECKPOINT, content | {"metrics_bytes": (output / "metrics.jsonl").stat().st_size})


def _restored(training: Training, output: Path | None) -> bool:
    """Whether there was a checkpoint to go on from."""
    if output is None:
        raise ValueError("Expected an output folder to resume from, but found none. Try output=Path(..).")
    content = from_main(lambda: _checkpoint(output))
    if content is None:
        return False
    training.restore(content)
    if not is_main():
        return True
    for torn in output.glob(".*.tmp"):  # of a write in which the run was killed
        torn.unlink()
    # What was written after the checkpoint is written again.
    metrics = output / "metrics.jsonl"
    os.truncate(metrics, min(content["metrics_bytes"], metrics.stat().st_size))
    return True


def _checkpoint(output: Path) -> Any:
    """What a run goes on from; None where there is none yet."""
    if (output / CHECKPOINT).exists():
        return load_checkpoint(output / CHECKPOINT)
    metrics = output / "metrics.jsonl"
    history = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    if history > 1 or (output / WEIGHTS).exists():
        raise ValueError(
            f"Expected the checkpoint of the run in '{output}', but found its history and weights without one. They "
            "stay as they are. Try pyro-gvae evaluate, or another folder for another run."
        )
    metrics.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    return None


def _check_unused(output: Path) -> None:
    """Refuse to begin where another run has left anything: no run ever writes over another."""
    kept = [name for name in (CHECKPOINT, WEIGHTS, "metrics.jsonl") if (output / name).exists()]
    if kept:
        raise ValueError(
            f"Expected a folder without a run, but found '{kept[0]}' in '{output}'. Try resume=True to go on with "
            "it, or another folder."
        )


def _check_writable(output: Path) -> None:
    if not os.access(output, os.W_OK):
        raise ValueError(f"Expected a run folder that can be written, but found that '{output}' cannot.")


def _refuse(training: Training, x: Tensor, random_state: Tensor, output: Path | None) -> None:
    """Keep what made a step not finite; after too many in a row, say where that began."""
    state, most = training.state, training.config.max_skipped
    kept = ""
    if output is not None:
        content = training.content()
        content["random"]["torch"] = random_state  # as it was before the step
        path = output / f"non-finite-step{state.step - 1}.safetensors"
        if is_main():
            save_checkpoint(path, content | {"batch": x})
        for old in sorted(output.glob("non-finite-step*"), key=lambda path: path.stat().st_mtime_ns)[:-most]:
            old.unlink(missing_ok=True)
        kept = f" The batch and the state are in '{path}'."
    if state.skipped_in_a_row >= most:
        with torch.random.fork_rng():
            torch.set_rng_state(random_state)
            found = first_non_finite(training.vae, training.estimator, x) or "the gradient of the loss"
        raise ValueError(
            f"Expected finite losses and gradients, but found {most} steps in a row without, the last of them step "
            f"{state.step - 1}, where the first that is not finite is {found}.{kept} Try a lower learning rate, or "
            "clip_norm."
        )


def _write_weights(vae: Any, path: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in vae.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(weights))


@contextmanager
def _alone_in(output: Path | None) -> Iterator[None]:
    """Rank 0 holds the folder against other runs; if it cannot, all processes say so."""
    with ExitStack() as stack:
        if output is not None:
            from_main(lambda: stack.enter_context(_held(output)))
        yield


@contextmanager
def _held(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    _check_writable(output)
    with sole_writer(output):
        yield


@contextmanager
def _asked_to_stop(output: Path | None) -> Iterator[Stop]:
    """Signals are noted where a run can be resumed; elsewhere they do what they do."""
    with stop_on_signal() if output is not None else nullcontext(Stop()) as stop:
        yield stop
