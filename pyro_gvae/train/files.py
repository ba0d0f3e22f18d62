"""The files of a training run: checkpoint, weights and metrics, and the checks before they are used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.stages import Stage, parse_stages
from ..config.train import OUTSIDE
from ..runs.checkpoint import load_checkpoint, load_tensors, save_tensors
from ..runs.config import different_settings
from ..runs.files import read_records, remove

CHECKPOINT, WEIGHTS, METRICS = "checkpoint.safetensors", "weights.safetensors", "metrics.jsonl"
#: Settings that may differ between a run and its continuation: they change the result by rounding at most.
FREE = OUTSIDE | {"tensorboard", "checkpoint_every", "max_memory"}
#: Settings of a run's length: a run may be continued for longer than first configured.
LENGTH = frozenset({"stages", "steps", "seconds"})


def read_checkpoint(output: Path) -> Any:
    """Return the content of the checkpoint to resume from, or None if there is none yet."""
    path, metrics = output / CHECKPOINT, output / METRICS
    if path.exists():
        content = load_checkpoint(path)
        size = content.get("metrics_bytes") if isinstance(content, dict) else None
        if not isinstance(size, int) or size < 0:
            raise ValueError(
                f"Expected the checkpoint of a run, but found other content in '{path}'. Try a copy of it."
            )
        return content
    history = len(read_records(metrics)[0]) if metrics.exists() else 0
    if history > 1 or (output / WEIGHTS).exists():
        raise ValueError(
            f"Expected a checkpoint of the run in '{output}', but found only its history or weights, which are left as "
            "they are. Try pyro-gvae evaluate, or another folder for a new run."
        )
    remove(metrics)  # left by a run that was killed before its first checkpoint
    return None


def check_unused(output: Path) -> None:
    """Refuse to start in a folder with files of another run, so that no run overwrites another."""
    kept = [name for name in (CHECKPOINT, WEIGHTS, METRICS) if (output / name).exists()]
    if kept:
        raise ValueError(
            f"Expected a folder without a run, but found '{kept[0]}' in '{output}'. Try resume=True to continue it, "
            "or another folder."
        )


def keep_weights(vae: Any, path: Path) -> None:
    """Write the weights of a finished run again if they were lost or damaged."""
    try:
        load_tensors(path)
    except ValueError:
        save_tensors(path, vae.state_dict())


def is_longer(plan: Sequence[Stage], before: Sequence[Stage]) -> bool:
    """Tell whether a plan continues another one: with further stages, or with more of its last stage.

    Example:
        >>> plans = [parse_stages(text) for text in ("exact:5", "exact:8", "exact:5,exact:3", "exact:3")]
        >>> [is_longer(plan, plans[0]) for plan in plans]
        [True, True, True, False]
    """
    if len(plan) < len(before):
        return False
    last, old = plan[len(before) - 1], before[-1]
    has_more = last.amount.unit == old.amount.unit and last.amount.number >= old.amount.number
    return has_more and [*plan[: len(before) - 1], last._replace(amount=old.amount)] == list(before)


def check_same_run(content: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run. The run that continues may have further stages, or more of its last one.

    Args:
        content: the content of the checkpoint.
        own: the content that the run would write now.

    Raises:
        ValueError: if parts are missing, or configuration, data or number of processes differ.
    """
    absent = own.keys() - content.keys()
    if absent:
        raise ValueError(f"Expected a complete checkpoint, but found one without {', '.join(sorted(absent))}.")
    plan, before = (parse_stages(one["config"]["stages"]) for one in (own, content))
    free = FREE | (LENGTH if is_longer(plan, before) else LENGTH - {"stages"})
    different = different_settings(own["config"], content["config"], free=free)
    if different:
        raise ValueError(
            f"Expected a checkpoint of this configuration, but found one with another {', '.join(different)}. Try the "
            "same settings, or another output."
        )
    if content["data"] != own["data"]:
        raise ValueError(
            "Expected the training data of the checkpoint, but found other data. Try the same data, or another output."
        )
    here, there = (len(one["random_of_others"]) + 1 for one in (own, content))
    if there != here:
        raise ValueError(
            f"Expected a checkpoint of {here} process(es), but found one of {there}. Try torchrun --nproc-per-node."
        )
