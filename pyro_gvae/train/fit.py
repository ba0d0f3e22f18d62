"""fit: trains a program through its stages, with evaluations, checkpoints and resumption."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any

import pyro
import torch
from torch import Tensor

from ..config.train import TrainConfig
from ..data.columns import Data, as_data, first
from ..data.sliced import AnyDataset
from ..models.base import VAE
from ..programs.pair import HasPair
from ..runs.checkpoint import save_checkpoint, save_tensors
from ..runs.files import cut, remove, remove_unfinished
from ..runs.folder import check_own, check_writable, sole_writer
from ..runs.inside import make_folder, staying_inside
from ..runtime.distributed import from_main, is_main, largest, share
from ..runtime.exclusive import only_thread
from ..runtime.rng import derived_seed, own_randomness
from ..runtime.signals import Stop, stop_on_signal
from .described import keep_choice, keep_config, keep_length
from .files import CHECKPOINT, METRICS, WEIGHTS, check_unused, keep_weights, read_checkpoint
from .loggers import Logger, loggers_of
from .logs import Logs
from .milestones import NO_MILESTONES, Measure, Milestones, measured
from .non_finite import check_weights, first_non_finite
from .pairs import trainable
from .prune import check_prunable, prune_if_due, shrink_to
from .refit import refit_if_due
from .result import Fit, Interrupted
from .revive import check_revivable, revive_if_due
from .training import Training


def fit(
    vae: HasPair,
    data: Any,
    config: TrainConfig | None = None,
    *,
    output: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    measure: Measure | None = None,
    milestones: Milestones = NO_MILESTONES,
    loggers: Sequence[Logger] = (),
    **settings: Any,
) -> Fit:
    """Train a program in stages of estimators with one optimizer, and evaluate the discrete model during training.

    The same configuration gives the same weights, bit for bit, however often the run is interrupted and resumed. The
    run has its own random numbers: the states of torch's, NumPy's and Python's generators are restored afterwards.

    In a process group of torch's, all processes make the same call and train together; `config.shard` sets what they
    divide. Each draws its own random numbers for its share of the data. Only rank 0 writes. The group needs a CPU
    backend in addition to that of the data's device.

    Args:
        vae: a `CategoricalVAE`, or any module with `.model(x)` and `.guide(x)`, or a `Pair` of functions, whose
            parameters in `pyro.module` and `pyro.param` are all trained. It is trained in place. The configuration's
            settings of networks are ignored.
        data: a `Dataset` or a :class:`~pyro_gvae.data.sliced.SlicedDataset`; or training data alone, which give no test
            ELBO: a tensor (M, ...), an array, a torch dataset, or a `DataLoader`, whose dataset is used (the first
            element of each item). Ready-made programs of images take rows (M, D). If the programs have several
            arguments, pass a tuple `(x, y)` or a dictionary `{"x": x, "y": y}` of tensors of M rows.
        config: the configuration; the defaults if None.
        output: a folder for the run, which `load_run` and the commands read; nothing is written if None.
        resume: continue from the checkpoint in `output`, if there is one. A finished run continues only if the
            configuration has further stages or a larger budget.
        progress: show a progress bar.
        measure: a function called with the :class:`~pyro_gvae.train.training.Training` at each evaluation; its result,
            name -> number, is added to the history. It may draw random numbers, but must not change the run.
        milestones: further points at which the run is measured. The call returns at the last of them, unless training
            ends earlier; a later call continues from there with the same result as an uninterrupted run.
        loggers: where else to send evaluations, such as a :class:`~pyro_gvae.train.loggers.WandbLogger`.
        **settings: settings that replace those of the configuration: `fit(vae, x, stages="exact:5")`.

    Returns:
        The number of steps, the time, why training ended, and the history.

    Raises:
        ValueError: if data, configuration or checkpoint are unusable; if another process uses `output`, or another
            thread is in `fit`; if `config.max_skipped` steps in a row were not finite, or the weights are not.
        Interrupted: after a SIGINT, SIGTERM or SIGHUP that is not ignored, if there is an `output` to resume from.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> stages = "gumbel-softmax:30steps,exact:30steps"
        >>> done = fit(vae, torch.ones(8, 6), stages=stages, batch_size=4, progress=False)
        >>> done.steps, done.history[-1]["train_elbo"] > done.history[0]["train_elbo"]
        (60, True)
    """
    if not isinstance(config, TrainConfig | None):
        raise ValueError(f"Expected a TrainConfig, but found {config!r:.60}. Try fit(vae, data, stages='exact:5').")
    config = replace(TrainConfig() if config is None else config, **settings)
    output = None if output is None else Path(output)
    # Processes that divide the data need different random numbers; those that divide the codes need the same ones.
    rank = share().rank if config.shard == "data" else 0
    known = data if isinstance(data, AnyDataset) else as_data(data)
    if isinstance(vae, VAE) and isinstance(known, Tensor):
        known = vae.as_taken(known)
    # Before the store's scope: the values in the caller's param store are trained.
    program = trainable(vae, first(known.train if isinstance(known, AnyDataset) else known, config.batch_size))
    alone, own = only_thread("fit"), own_randomness(derived_seed("train", config.seed, rank))
    with alone, own, pyro.get_param_store().scope(), _signals_noted(output) as stop:
        training = Training(program, known, config)
        if config.revive is not None:
            check_revivable(program)
        if config.pruning is not None:
            check_prunable(program)
        with _locked(output):
            begun = _begun(training, output, resume=resume)
            if output is not None:
                from_main(lambda: keep_config(vae, known, config, output, restored=begun))
                if begun:
                    _keep_length(training, output)
                else:
                    from_main(lambda: keep_choice(output, training.compilation))
            milestones.check(training)
            with _logs(training, output, milestones, loggers, progress=progress) as logs:
                logs.begin(config)
                over = training.state.done is not None
                if not begun or (over and from_main(lambda: not logs.history)):  # a finished run whose history was lost
                    _judge(training, logs, output, measure)
                    _keep(training, output)
                if over and output is not None and is_main():
                    keep_weights(training.vae, output / WEIGHTS)
                while training.state.done is None and not milestones.are_over(training):
                    _advance(training, logs, output, measure, milestones)
                    _stop_if_asked(training, stop, output)
                reason = training.state.done or "all milestones"
                return Fit(training.state.step, training.state.seconds, reason, logs.history, training.state.milestones)


def _begun(training: Training, output: Path | None, *, resume: bool) -> bool:
    """Restore the run if it had begun; return whether it had."""
    if output is not None and not resume:
        from_main(lambda: check_unused(output))
    return resume and _restored(training, output)


def _keep_length(training: Training, output: Path) -> None:
    """Write the length of a continued run; if it had ended before, remove its final weights."""
    from_main(lambda: keep_length(output, training.config, training.state.step))
    if training.state.done is None and from_main((output / WEIGHTS).exists):
        _keep(training, output)
        if is_main():
            remove(output / WEIGHTS)


def _logs(
    training: Training, output: Path | None, milestones: Milestones, loggers: Sequence[Logger], *, progress: bool
) -> Logs:
    state = training.state
    if state.done is None:
        loggers = [*loggers_of(training.config.loggers, output), *loggers]  # in every process, so that all raise alike
    total = milestones.total(training)
    if not is_main():
        return Logs(None, total=total, step=state.step, progress=False)
    return Logs(output, total=total, step=state.step, progress=progress, loggers=loggers)


def _stop_if_asked(training: Training, stop: Stop, output: Path | None) -> None:
    """Stop if a signal asked for it, even after the last step: the caller may have more to do."""
    asked = int(largest(stop.asked or 0))
    if asked and output is not None:
        if training.state.done is None:
            _keep(training, output)
        raise Interrupted(output, Signals(asked))


def _advance(
    training: Training, logs: Logs, output: Path | None, measure: Measure | None, milestones: Milestones
) -> None:
    """Take a step, with all that is due before and after it. A checkpoint comes last: the next step starts from it."""
    state, ahead = training.state, milestones.ahead(training)
    prune_if_due(training)
    revive_if_due(training)
    refit_if_due(training)
    training.advance()
    logs.advance()
    if training.refused is not None:
        _refuse(training, *training.refused, output)
    state.done = training.budget_is_spent
    if training.stage_is_over or state.done or training.evaluation_is_due:
        _judge(training, logs, output, measure)
    is_next = training.stage_is_over and state.done is None
    if is_next:
        training.next_stage()
    if state.done:
        check_weights(training.vae, training.not_finite, training.state)
    if state.done and output is not None and is_main():
        save_tensors(output / WEIGHTS, training.vae.state_dict())
    reached = milestones.record(training, ahead)
    if state.done or is_next or reached or training.checkpoint_is_due:
        _keep(training, output)


def _judge(training: Training, logs: Logs, output: Path | None, measure: Measure | None) -> None:
    state, line = training.state, training.judge()
    if measure is not None:
        line |= measured(training, measure)
    logs.record(line)
    logs.picture(training.vae, training.data, state.step)
    if training.config.patience is not None and state.stale == 0 and output is not None and is_main():
        save_tensors(output / "best.safetensors", training.vae.state_dict())


def _keep(training: Training, output: Path | None) -> None:
    if output is None:
        return
    state = training.state
    check_weights(training.vae, training.not_finite, training.state)
    state.kept_step, state.kept_seconds = state.step, state.seconds
    content = training.content()
    if is_main():
        save_checkpoint(output / CHECKPOINT, content | {"metrics_bytes": (output / METRICS).stat().st_size})


def _restored(training: Training, output: Path | None) -> bool:
    """Restore the run from its checkpoint, if there is one; return whether there was."""
    if output is None:
        raise ValueError("Expected an output folder to resume from, but found output=None. Try output=Path(..).")
    content = from_main(lambda: read_checkpoint(output))
    if content is None:
        return False
    if training.config.pruning is not None:
        shrink_to(training.vae, content.get("vae"))
    training.restore(content)
    # Drop lines after the checkpoint; they will be written again.
    if not from_main(lambda: cut(output / METRICS, content["metrics_bytes"])):
        said = f"'{output / METRICS}' has lost evaluations of the run, which is continued."
        warnings.warn(said, RuntimeWarning, stacklevel=2)
        _keep(training, output)
    return True


def _refuse(training: Training, batch: Data, random_state: Tensor, output: Path | None) -> None:
    """Save the batch and the state of a step that was not finite; after too many in a row, say where that started."""
    state, most = training.state, training.config.max_skipped
    kept = ""
    if output is not None:
        content = training.content()
        content["random"]["torch"] = random_state  # the state before the step
        path = output / f"non-finite-step{state.step - 1}.safetensors"
        if is_main():
            save_checkpoint(path, content | {"batch": batch})
        for old in sorted(output.glob("non-finite-step*"), key=lambda path: path.stat().st_mtime_ns)[:-most]:
            remove(old)
        kept = f" The batch and the state are in '{path}'."
    if state.skipped_in_a_row >= most:
        with torch.random.fork_rng():
            torch.set_rng_state(random_state)
            found = first_non_finite(training.vae, training.estimator, batch) or "the gradient of the loss"
        raise ValueError(
            f"Expected finite losses and gradients, but found {most} steps in a row that were not. In the last, step "
            f"{state.step - 1}, the first value that is not finite is {found}.{kept} Try a lower learning rate, or "
            "clip_norm."
        )


@contextmanager
def _locked(output: Path | None) -> Iterator[None]:
    """Lock the folder against other runs in rank 0. If that fails, all processes raise."""
    with ExitStack() as stack:
        if output is not None:
            from_main(lambda: stack.enter_context(_held(output)))
        yield


@contextmanager
def _held(output: Path) -> Iterator[None]:
    make_folder(output)
    with staying_inside(output):
        check_own(output)
        check_writable(output)
        with sole_writer(output):
            remove_unfinished(output)
            yield


@contextmanager
def _signals_noted(output: Path | None) -> Iterator[Stop]:
    """Catch signals if the run can be resumed; otherwise leave them alone."""
    with stop_on_signal() if output is not None else nullcontext(Stop()) as stop:
        yield stop
