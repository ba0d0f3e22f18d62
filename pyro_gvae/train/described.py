"""Describe a program and its data in the run folder of `fit`, and rebuild both from there."""

from pathlib import Path
from typing import Any

import torch

from ..config.json import fits
from ..config.train import TrainConfig
from ..data.columns import Data, mapped
from ..data.dataset import Dataset
from ..data.sliced import AnyDataset
from ..models.base import VAE
from ..models.bernoulli_vae import BernoulliVAE
from ..models.categorical_vae import CategoricalVAE
from ..models.conditional_vae import ConditionalVAE
from ..models.gaussian_mixture_vae import GaussianMixtureVAE
from ..models.hidden_markov_model import HiddenMarkovModel
from ..models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from ..models.joint_vae import JointVAE
from ..models.observations import OBSERVATIONS
from ..models.pairwise_priors import MarkovPrior, TreePrior
from ..models.priors import AutoregressivePrior, JointPrior, MixturePrior
from ..models.semi_supervised_vae import SemiSupervisedVAE
from ..models.table import Column, TableObservation
from ..runs.config import CONFIG, read_config, typed, write_config
from ..runs.files import write_json
from ..runs.records import ProgramRecord
from ..runtime.arguments import rebuilt
from ..runtime.distributed import own_device
from .compilation import Choice
from .files import LENGTH
from .kept_data import keep_data, read_data
from .setup import check_size, initial_model
from .source import check_source, read_again

#: The ready-made programs by class name; a run folder may name only these.
READY: dict[str, type[VAE]] = {
    kind.__name__: kind
    for kind in (
        CategoricalVAE,
        BernoulliVAE,
        HierarchicalCategoricalVAE,
        JointVAE,
        GaussianMixtureVAE,
        HiddenMarkovModel,
        SemiSupervisedVAE,
        ConditionalVAE,
    )
}


_KINDS: tuple[type, ...] = (
    *OBSERVATIONS.values(),
    TableObservation,
    Column,
    JointPrior,
    MarkovPrior,
    TreePrior,
    AutoregressivePrior,
    MixturePrior,
)
#: The classes of their constructors' arguments, by name.
PARTS = {kind.__name__: kind for kind in _KINDS}


def keep_config(program: Any, data: AnyDataset | Data, config: TrainConfig, output: Path, *, restored: bool) -> None:
    """Write config.json and the data into a folder of `fit`, unless a command has written its own.

    Args:
        program: the program.
        data: its data.
        config: the configuration.
        output: the folder.
        restored: whether the run continues from a checkpoint, so that both may exist already.
    """
    if (output / CONFIG).exists() and (restored or "program" not in read_config(output)):
        return
    shape = data.image_shape if isinstance(data, AnyDataset) else None
    described = {"program": describe(program), "data": keep_data(output, data)}
    write_config(output, {"train": config.as_json(), "image_shape": shape, **described})


def keep_length(output: Path, config: TrainConfig, step: int) -> None:
    """Write the new length of a continued run into config.json, with the previous one and the command.

    Args:
        output: the folder.
        config: the new configuration.
        step: the number of steps taken.
    """
    written = read_config(output)
    own, now = written.get("train"), config.as_json()
    if not isinstance(own, dict):  # of another command
        return
    new = {name: now[name] for name in sorted(LENGTH) if own.get(name) != now[name]}
    if new:
        before = {name: own.get(name) for name in new}
        extended = [*written.get("extended", []), {"at_step": step, "before": before, "command": typed()}]
        write_json(output / CONFIG, written | {"train": own | new, "extended": extended})


def keep_choice(output: Path, compilation: Choice) -> None:
    """Write into config.json whether the run compiles its steps, and why."""
    write_json(output / CONFIG, read_config(output) | {"compilation": compilation._asdict()})


def describe(program: Any) -> dict[str, Any]:
    """Describe a program by its class and, if that is enough to build it again, the arguments of its constructor.

    Example:
        >>> describe(CategoricalVAE(6, 2, hidden=(5,)))["arguments"]
        {'data_dim': 6, 'num_latents': 2, 'hidden': [5]}
        >>> describe(torch.nn.Linear(2, 2))
        {'name': 'Linear', 'arguments': None, 'dtype': None}
    """
    name = type(program).__name__
    unknown = {"name": name, "arguments": None, "dtype": None}
    arguments = getattr(program, "arguments", None)
    if READY.get(name) is not type(program) or arguments is None:
        return unknown
    kinds = {weight.dtype for weight in program.parameters()}
    if len(kinds) != 1:
        return unknown
    with torch.device("meta"):
        alike = _made(name, arguments)
    weights, others = program.state_dict(), alike.state_dict()
    shapes = [{key: tuple(weight.shape) for key, weight in state.items()} for state in (weights, others)]
    # Networks that were replaced after construction differ in their shapes or in their modules' repr or arguments.
    modules = [{key: _said(child) for key, child in one.named_children()} for one in (program, alike)]
    if shapes[0] != shapes[1] or modules[0] != modules[1]:
        return unknown
    return {"name": name, "arguments": arguments, "dtype": str(kinds.pop()).removeprefix("torch.")}


def _made(name: str, arguments: dict[str, Any]) -> VAE:
    return READY[name](**{key: rebuilt(value, PARTS) for key, value in arguments.items()})


def _said(module: torch.nn.Module) -> tuple[str, Any]:
    """Return the repr of a module, and its constructor's arguments if it keeps them."""
    return repr(module), getattr(module, "arguments", None)


def program_of(run: Path) -> dict[str, Any] | None:
    """Return the description of a program that `fit` wrote; None in a run folder of a command, which needs none.

    Raises:
        ValueError: if it is not a run folder, or the description is invalid.
    """
    written = read_config(run)
    if "program" not in written:
        return None
    program = written["program"]
    if not fits(ProgramRecord, program):
        raise ValueError(f"Expected the program of a run in the config.json of '{run}', but found {program!r:.60}.")
    return dict(program)


def is_of_code(run: Path) -> bool:
    """Tell whether the program of a run folder is the caller's own code, which commands cannot build."""
    try:
        program = program_of(run)
    except ValueError:
        return False
    return program is not None and program.get("arguments") is None


def untrained(run: Path, config: TrainConfig) -> tuple[VAE, AnyDataset | Data]:
    """Build the program of a run folder, without its weights, and read its data, both on the configured device.

    Args:
        run: the folder of `train`, of a cell of `compare`, or of `fit`.
        config: its configuration, with the settings of this machine.

    Raises:
        ValueError: if the program is the caller's own code, or folder, data or device are unusable.
        OSError: if data files are missing.
    """
    program = program_of(run)
    if program is None:
        check_source(run, config)
        data = read_again(run, config)
        return initial_model(config, data), data
    vae, read = _built(run, program), read_data(run, config.data_dir)
    device = own_device(config.device)
    try:
        if isinstance(read, Dataset):
            return vae.to(device), read.mapped(lambda x: x.to(device))
        return vae.to(device), mapped(lambda column: column.to(device), read)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise ValueError(f"Expected a device of this machine, but found '{config.device}'. Try 'cpu'.") from error


def _built(run: Path, program: dict[str, Any]) -> VAE:
    name, arguments = program["name"], program["arguments"]
    if arguments is None:
        raise ValueError(
            f"Expected a program that the package can build, but found that of '{run}' is '{name}', which is code of "
            f"yours. Try Python: pyro_gvae.load_run('{run}').load_into(program) gives yours its weights, and "
            f"pyro_gvae.report.explorer.write_explorer('{run}', program=program) writes its explorer; report shows its "
            "curves."
        )
    dtype = getattr(torch, str(program["dtype"]), None)
    if name not in READY or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"Expected a program among {', '.join(READY)}, but found '{name}' in the config.json of '{run}'."
        )
    try:
        check_size(lambda: _made(name, arguments))
        with torch.random.fork_rng():
            return _made(name, arguments).to(dtype)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"Expected arguments of {name} in the config.json of '{run}', but found others.") from error
