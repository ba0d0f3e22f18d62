"""The command line. It imports torch only when a command runs, so `--help` is instant."""

import shlex
import signal
import sys
from contextlib import ExitStack
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

import tyro

from ..config.commands import (
    EncodeConfig,
    EvaluateConfig,
    ExploreConfig,
    GapsConfig,
    ReconstructConfig,
    ReportConfig,
    ResumeConfig,
    SampleConfig,
)
from ..config.compare import CompareConfig
from ..config.gradients import AdviseConfig, GradientsConfig
from ..config.models import MODELS, OF_CATEGORICAL
from ..config.presets import PRESETS
from ..config.train import TrainConfig
from ..runs.files import remove_unfinished
from ..runs.inside import staying_inside
from .errors import PartlyFailedError
from .terminal import check_letters, discard, open_streams, say


class Command(NamedTuple):
    """A configuration, and the name of the function in `cli/commands.py` that takes it and returns what to print."""

    config: type[Any]
    function: str


#: Commands that build a program.
WITH_MODEL = frozenset({"train", "compare", "gradients", "advise"})
COMMANDS = {
    "train": Command(TrainConfig, "train_command"),
    "resume": Command(ResumeConfig, "resume_any_command"),
    "report": Command(ReportConfig, "report_command"),
    "explore": Command(ExploreConfig, "explore_command"),
    "compare": Command(CompareConfig, "compare_command"),
    "gaps": Command(GapsConfig, "gaps_command"),
    "gradients": Command(GradientsConfig, "gradients_command"),
    "advise": Command(AdviseConfig, "advise_command"),
    "evaluate": Command(EvaluateConfig, "evaluate_command"),
    "encode": Command(EncodeConfig, "encode_command"),
    "reconstruct": Command(ReconstructConfig, "reconstruct_command"),
    "sample": Command(SampleConfig, "sample_command"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: it succeeded. 1: training diverged, or cells of a comparison failed, or other processes train them. 2: an
    argument or a file was invalid, or there was no more memory; one sentence says which. 130 (Ctrl-C), 143 (SIGTERM)
    or 129 (SIGHUP): a signal stopped the command.
    """
    open_streams()
    config = None
    try:
        config = _parse(list(sys.argv[1:] if arguments is None else arguments))
        if text := _run(config):
            say(f"\n{text}", sys.stdout)
    except PartlyFailedError as failed:
        say(f"\n{failed.report}", sys.stdout)
        say(f"pyro-gvae: {failed}", sys.stderr)
        return 1
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise
        say(f"pyro-gvae: {sentence}", sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        run = getattr(interrupt, "run", None)
        if run is None:
            say("pyro-gvae: interrupted; finished work is in the run folder.", sys.stderr)
            return 128 + int(getattr(interrupt, "signal", signal.SIGINT))
        say(f"\npyro-gvae: stopped; resume with: {_resume_by(config, run)}", sys.stderr)
        return 128 + int(interrupt.signal)  # type: ignore[attr-defined]
    return 0


def _parse(arguments: list[str]) -> Any:
    check_letters(arguments)
    defaults = _defaults(arguments)
    kinds = (
        Annotated[command.config, tyro.conf.subcommand(name, default=defaults[name], prefix_name=False)]
        if name in defaults
        else Annotated[command.config, tyro.conf.subcommand(name, prefix_name=False)]
        for name, command in COMMANDS.items()
    )
    union: Any = Union[tuple(kinds)]  # noqa: UP007 (of as many as there are)
    try:
        return tyro.cli(
            union,
            args=arguments,
            prog="pyro-gvae",
            description="Categorical VAEs in Pyro: relaxed sampling and exact enumeration on one program.",
        )
    except BrokenPipeError:  # of help that goes on where its reader has read enough
        discard(sys.stdout)
        sys.exit(0)


def _defaults(arguments: list[str]) -> dict[str, Any]:
    """Return the settings that a command begins with, by its name, and remove `--preset NAME` from its arguments."""
    [name] = arguments[:1] or [""]
    if name not in WITH_MODEL:
        return {}
    preset = _preset(arguments) if name == "train" else None
    return {name: _of_model(preset or COMMANDS[name].config(), arguments, is_preset=preset is not None)}


def _of_model(config: Any, arguments: list[str], *, is_preset: bool) -> Any:
    """Return a configuration with the model of `--model NAME` and the sizes that it begins with.

    Of a preset, only that changes which the model cannot have.
    """
    index = _place(arguments, "--model")
    name = None if index is None else _value(arguments, index)
    if name not in MODELS:
        return config  # a name that there is not is refused with all others
    facts = MODELS[name]
    kept = {"num_latents", "num_categories"} - facts.fixed.keys() if is_preset else set()
    new: dict[str, Any] = {size: value for size, value in facts.sizes.items() if size not in kept}
    new["kl"] = facts.soft_kl
    if name != "categorical":
        new |= OF_CATEGORICAL
    if isinstance(config, TrainConfig) and not is_preset:
        new["stages"] = config.stages.replace("gumbel-softmax", facts.soft)
    return replace(config, model=name, **{key: value for key, value in new.items() if hasattr(config, key)})


def _preset(arguments: list[str]) -> TrainConfig | None:
    """Remove `--preset NAME` from the arguments and return its settings, which the other arguments override."""
    index = _place(arguments, "--preset")
    if index is None:
        return None
    name = _value(arguments, index)
    if name not in PRESETS:
        raise ValueError(f"Expected a preset among {', '.join(PRESETS)}, but found '{name}'.")
    del arguments[index : index + (1 if "=" in arguments[index] else 2)]
    return PRESETS[name]


def _place(arguments: list[str], option: str) -> int | None:
    return next((index for index, word in enumerate(arguments) if word.partition("=")[0] == option), None)


def _value(arguments: list[str], index: int) -> str:
    """Return the value of the option there, which follows it or its equals sign; nothing if it has none."""
    _, equals, value = arguments[index].partition("=")
    return value if equals else "".join(arguments[index + 1 : index + 2])


def _resume_by(config: Any, run: Path) -> str:
    """The command that goes on, with what reaches out of the folder, which says nothing of that.

    The folder does say how much memory sums may use, unless a resumption has changed that.
    """
    words = ["pyro-gvae", "resume", str(run)]
    for field in fields(ResumeConfig)[1:]:
        value = getattr(config, field.name, field.default)
        is_told = field.name == "max_memory" and not isinstance(config, ResumeConfig)
        if value != field.default and not is_told:
            option = f"--{field.name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def _run(config: Any) -> str:
    if isinstance(config, TrainConfig | CompareConfig):
        config.check_estimators()
    with ExitStack() as until_the_end:
        for name in ("run", "output"):
            folder = getattr(config, name, None)
            if folder is not None and folder.is_dir():
                until_the_end.enter_context(staying_inside(folder))
                remove_unfinished(folder)
        name = next(command.function for command in COMMANDS.values() if command.config is type(config))
        commands = import_module(".commands", __package__)  # with torch
        import_module("..runtime.memory", __package__).keep_freed_memory()
        with import_module("..runtime.signals", __package__).raise_on_signal():
            text: str = getattr(commands, name)(config)
    return text


def _sentence(error: Exception) -> str | None:
    """Return what to tell of an error that the caller can mend; None of any other.

    It is the first line of the message: Pyro appends the shapes of its trace on further lines.
    """
    if not isinstance(error, ValueError) and _is_out_of_memory(error):
        tried = "Try a smaller max_memory, fewer data at once, or fewer workers."
        return f"Expected enough memory for this command, but found that there is no more. {tried}"
    if not isinstance(error, ValueError | OSError):
        return None
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"Expected a usable file, but found that '{error.filename}' cannot be used: {error.strerror}."
    return str(error).split("\n")[0] or type(error).__name__


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether there is no memory left; perhaps not even for the module that knows, with torch."""
    try:
        return bool(import_module("..runtime.memory", __package__).is_out_of_memory(error))
    except (ImportError, MemoryError):
        return isinstance(error, ImportError | MemoryError)
