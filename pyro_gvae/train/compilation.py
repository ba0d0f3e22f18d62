"""Decide whether a run compiles its steps: if that saves more counted operations than it costs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch

from ..config.stages import Amount
from ..config.train import TrainConfig
from ..data.columns import Data, columns
from ..estimators import Estimator
from ..programs.batches import arguments
from ..programs.modes import judging
from ..programs.tensor_elbo import TensorELBO
from ..runtime.compilers import has_compiler
from ..runtime.distributed import from_main
from ..runtime.rng import own_randomness
from ..runtime.work import OPERATIONS_PER_SECOND, count_operations

#: The longest compilation, a minute, in operations.
COMPILATION = 60 * OPERATIONS_PER_SECOND
#: Python's overhead in a step, a millisecond, in operations.
PYTHON = 1e-3 * OPERATIONS_PER_SECOND
#: The share of a step that compilation saves, on two cores of two machines: 10 to 25 %.
SAVED = 0.1
#: Compilation saves a share of at most this many operations of a step: longer ones are mostly matrix products.
MOST = 30e-3 * OPERATIONS_PER_SECOND


class Choice(NamedTuple):
    """Whether a run compiles its steps, and why."""

    is_compiled: bool
    why: str


def choose(vae: Any, estimators: Sequence[Estimator], batch: Data, config: TrainConfig, per_epoch: int) -> Choice:
    """Choose whether a run compiles its steps: as configured, or as rank 0 chooses.

    The choice depends on counted operations and not on a clock: compiled steps round differently, and the same
    configuration must give the same weights on a busier machine.

    Args:
        vae: the program.
        estimators: the estimators of the stages.
        batch: the data of one step.
        config: the configuration.
        per_epoch: number of steps in an epoch.
    """
    if config.compile is not None:
        return Choice(config.compile, "as configured")
    return Choice(*from_main(lambda: _chosen(vae, estimators, batch, config, per_epoch)))


def again(before: bool, config: TrainConfig, device: torch.device) -> bool:
    """Return whether a resumed run compiles its steps: as configured, or as it did before, if that is possible."""
    if config.compile is not None:
        return config.compile
    return before and has_compiler(device)


def _chosen(
    vae: Any, estimators: Sequence[Estimator], batch: Data, config: TrainConfig, per_epoch: int
) -> tuple[bool, str]:
    amounts = [stage.amount for stage in config.plan]
    if _worth(amounts, [MOST] * len(amounts), config, per_epoch) < COMPILATION:
        return False, "there are too few steps for a compilation"  # even if steps are long
    if not has_compiler(columns(batch)[0].device):
        return False, "there is no compiler"
    try:
        operations = [operations_of_step(vae, chosen, batch) for chosen in estimators]
    except (ValueError, RuntimeError, NotImplementedError):
        return False, "the program's operations could not be counted"
    saved = _worth(amounts, operations, config, per_epoch)
    return saved > COMPILATION, f"it saves {saved:.1e} operations, and takes as long as {COMPILATION:.1e}"


def _worth(amounts: Sequence[Amount], operations: Sequence[float], config: TrainConfig, per_epoch: int) -> float:
    """Return the operations that compilation saves in all stages, given the operations per step of each."""
    most_steps, most_seconds = config.steps, config.seconds
    saved = 0.0
    for amount, each in zip(amounts, operations, strict=True):
        if not each:
            continue
        in_steps = amount.steps(per_epoch)
        step = each + PYTHON
        bounds = [
            amount.number * OPERATIONS_PER_SECOND / step if in_steps is None else in_steps,
            *([] if most_steps is None else [most_steps]),
            *([] if most_seconds is None else [most_seconds * OPERATIONS_PER_SECOND / step]),
        ]
        saved += SAVED * min(step, MOST) * min(bounds)
    return saved


@judging
@own_randomness(0)
@torch.no_grad()
def operations_of_step(vae: Any, chosen: Estimator, batch: Data) -> float:
    """Return the operations of a step by an estimator; 0 if the step is not recorded, as for sums in slices."""
    model, guide, elbo = chosen.bind(vae)
    given = arguments(batch)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        if isinstance(elbo, TensorELBO) and elbo.why_not_recordable(model, guide, *given.args, **given.kwargs):
            return 0.0
        # A backward pass takes twice as many as a forward pass.
        return 3 * count_operations(lambda: elbo.loss(model, guide, *given.args, **given.kwargs))
