"""From a configuration to a run folder: data, networks, fit."""

import json
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config.train import ResumeConfig, TrainConfig
from ..data.dataset import Dataset
from ..data.datasets import load
from ..models.categorical_vae import CategoricalVAE
from ..models.networks import NETWORKS, relu_logits
from ..runs.checkpoint import load_checkpoint
from ..runs.files import new_run_folder, write_json
from ..runtime.distributed import from_main, is_main, may_restart, own_device, processes, restarts, share
from .fit import CHECKPOINT, WEIGHTS, Fit, Interrupted, fit
from .training import Training


def train(config: TrainConfig) -> tuple[Path, Fit]:
    """Train as a configuration says, in a new run folder.

    The processes of a group train together. Where torchrun has started them again, because one has died, they go on in
    the run folder from its last checkpoint.

    Returns:
        The run folder, and what was done.

    Raises:
        ValueError: if a setting, the data or the run folder is unusable; nothing has been written then.
        OSError: if data files are absent or the folder cannot be written.
    """
    if may_restart() and config.output is None:
        raise ValueError(
            "Expected an output folder, where processes find their run again when torchrun restarts them, but found "
            "none. Try --output NAME."
        )
    data = load_data(config)
    vae = initial_model(config, data)
    Training(vae, data, config)  # what cannot be is refused before a folder is made
    again = restarts() > 0
    folder, begun = from_main(lambda: _run_folder(config, data, again))
    run = Path(folder)
    return run, fit(vae, data, config, output=run, resume=begun)


def _run_folder(config: TrainConfig, data: Dataset, again: bool) -> tuple[str, bool]:
    """Where a run is kept, and whether it had begun before torchrun restarted its processes."""
    output = config.output
    if again and output is not None and (output / "config.json").exists():
        if read_config(output) != config:
            raise ValueError(f"Expected the run of this configuration, but found that '{output}' has another.")
        return str(output), True
    run = new_run_folder(output, prefix="train")
    write_json(run / "config.json", {"train": config.as_json()} | provenance(data))
    return str(run), False


def resume(run: Path) -> tuple[Path, Fit]:
    """Go on with a run that was interrupted, as if nothing had happened.

    Raises:
        ValueError: if there is no such run, or its checkpoint is unusable; the folder is as it was then.
    """
    config = read_config(run)
    data = load_data(config)
    return run, fit(initial_model(config, data), data, config, output=run, resume=True)


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run folder of `train`.

    Raises:
        ValueError: if there is none.
    """
    try:
        written = json.loads((run / "config.json").read_text(encoding="utf-8"))["train"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a run folder of pyro-gvae train, but found that '{run}' is not one. Try what its --output named."
        ) from error
    return TrainConfig.from_json(written)


def is_train_run(run: Path) -> bool:
    """Whether a folder is one of `train`; what is no run folder at all is none."""
    try:
        written = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and "train" in written


def load_trained(run: Path) -> tuple[CategoricalVAE, Dataset]:
    """The model of a run folder of `train` on the CPU, and its data; of an unfinished run as its checkpoint has it.

    Raises:
        ValueError: if there are no weights, or damaged ones.
        OSError: if the data files are absent.
    """
    config = replace(read_config(run), device="cpu")
    path = run / WEIGHTS
    try:
        weights = load_file(path) if path.exists() else load_checkpoint(run / CHECKPOINT)["vae"]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"Expected whole weights, but found that '{path}' is damaged. Try a copy of it.") from error
    data = load_data(config)
    vae = initial_model(config, data)
    try:
        vae.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"Expected the weights in '{run}' to fit its config.json, but found others.") from error
    return vae, data


def load_data(config: TrainConfig) -> Dataset:
    """The data set of a configuration, on its device."""

    def loaded(download: bool) -> Dataset:
        return load(config.dataset, data_dir=config.data_dir, download=download, binarize=config.binarize)

    if config.download and share().world_size > 1:
        from_main(lambda: bool(loaded(True)))  # once
    data, device = loaded(config.download), own_device(config.device)
    try:
        return replace(data, train=data.train.to(device), test=data.test.to(device))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"Expected a device of this machine, but found '{config.device}'. Try cpu.") from error


def initial_model(config: TrainConfig, data: Dataset) -> CategoricalVAE:
    """The networks of a configuration, with the initial weights of its seed."""
    sizes = config.num_latents, config.num_categories
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        encoder, decoder = NETWORKS[config.networks](data.image_shape, *sizes, hidden=config.hidden)
        vae = CategoricalVAE(
            data.train.shape[1],
            *sizes,
            observation=config.observation,
            learn_prior=config.learn_prior,
            encoder=relu_logits(encoder) if config.relu_logits else encoder,
            decoder=decoder,
        )
    return vae.to(own_device(config.device))


def provenance(data: Dataset) -> dict[str, Any]:
    """What else a run folder's config.json says: the command, the versions, the shape of an image."""
    packages = ("pyro-gvae", "torch", "pyro-ppl", "numpy")
    return {
        "image_shape": data.image_shape,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def train_command(config: TrainConfig) -> str:
    """`pyro-gvae train`; returns what is said in the end."""
    with _together(config.device):
        return _said(*train(config))


def resume_command(config: ResumeConfig) -> str:
    """`pyro-gvae resume`; returns what is said in the end."""
    with _together(read_config(config.run).device):
        return _said(*resume(config.run))


@contextmanager
def _together(device: str) -> Iterator[None]:
    """The processes of torchrun as a group, of which rank 0 says what there is to say."""
    with processes(device):
        try:
            yield
        except Interrupted as interrupt:
            if is_main():
                raise
            sys.exit(128 + interrupt.signal)


def _said(run: Path, done: Fit) -> str:
    if not is_main():
        return ""
    last = done.history[-1]
    elbos = (f"{part} {last[f'{part}_elbo']:.2f}" for part in ("train", "test") if last[f"{part}_elbo"] is not None)
    return (
        f"discrete ELBO ({last['elbo_is']}, nats per datum): {', '.join(elbos) or 'unknown'}\n"
        f"{done.steps} steps in {done.seconds:.1f} s, the end of {done.reason}\n\nrun: {run}"
    )
