"""The files of a training run: what a new one may start from, and what a finished one keeps."""

from pathlib import Path
from typing import Any

from ..runs.checkpoint import load_checkpoint, load_tensors, save_tensors
from ..runs.files import read_records, remove

CHECKPOINT, WEIGHTS, METRICS = "checkpoint.safetensors", "weights.safetensors", "metrics.jsonl"


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
    """Write the weights of a run that is over again, where they were lost or damaged."""
    try:
        load_tensors(path)
    except ValueError:
        save_tensors(path, vae.state_dict())
