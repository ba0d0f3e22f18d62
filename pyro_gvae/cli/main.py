"""The command line. Torch is imported only when a command runs, so that `--help` is instant."""

import shlex
import signal
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Union

import tyro

from ..config.commands import (
    EncodeConfig,
    EvaluateConfig,
    GapsConfig,
    ReconstructConfig,
    ReportConfig,
    ResumeConfig,
    SampleConfig,
)
from ..config.compare import CompareConfig
from ..config.gradients import AdviseConfig, GradientsConfig
from ..config.presets import PRESETS
from ..config.train import TrainConfig
from .errors import CellsFailedError
from .terminal import check_letters, discard, open_streams, say


class Command(NamedTuple):
    """A configuration, and the name of the function in `cli/commands.py` that takes it and returns what to print."""

    config: type[Any]
    function: str


COMMANDS = {
    "train": Command(TrainConfig, "train_command"),
    "resume": Command(ResumeConfig, "resume_any_command"),
    "report": Command(ReportConfig, "report_command"),
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
    """Run one command; 0 if it succeeded, 2 with one sentence if it was asked for something that cannot be.

    1 if cells of a comparison failed or are held; what a signal stopped ends with 130 (Ctrl-C), 143 (SIGTERM) or 129
    (SIGHUP), as shells expect.
    """
    open_streams()
    try:
        if said := _run(_parse(list(sys.argv[1:] if arguments is None else arguments))):
            say(f"\n{said}", sys.stdout)
    except CellsFailedError as failed:
        say(f"\n{failed.said}", sys.stdout)
        say(f"pyro-gvae: {failed}", sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not import_module("..runtime.memory", __package__).is_out_of_memory(error):
            raise
        said = "Expected memory for this command, but found that there is no more of it. Try a smaller max_memory, "
        say(f"pyro-gvae: {said}fewer data at a time, or fewer workers.", sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        say(f"pyro-gvae: {_sentence(error)}", sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        run = getattr(interrupt, "run", None)
        if run is None:
            say("pyro-gvae: interrupted; what was finished is in the run folder.", sys.stderr)
            return 128 + int(getattr(interrupt, "signal", signal.SIGINT))
        say(f"\npyro-gvae: stopped; resume with: pyro-gvae resume {shlex.quote(str(run))}", sys.stderr)
        return 128 + int(interrupt.signal)  # type: ignore[attr-defined]
    return 0


def _parse(arguments: list[str]) -> Any:
    check_letters(arguments)
    defaults = {"train": _preset(arguments)} if arguments[:1] == ["train"] else {}
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


def _preset(arguments: list[str]) -> TrainConfig:
    """The settings that `--preset NAME` begins with, taken out of the arguments; those that follow override them."""
    for index, word in enumerate(arguments):
        option, equals, name = word.partition("=")
        if option == "--preset":
            if not equals:
                name = arguments.pop(index + 1) if index + 1 < len(arguments) else ""
            del arguments[index]
            if name not in PRESETS:
                raise ValueError(f"Expected a preset among {', '.join(PRESETS)}, but found '{name}'.")
            return PRESETS[name]
    return TrainConfig()


def _run(config: Any) -> str:
    name = next(command.function for command in COMMANDS.values() if command.config is type(config))
    commands = import_module(".commands", __package__)  # with torch
    import_module("..runtime.memory", __package__).keep_freed_memory()
    with import_module("..runtime.signals", __package__).raise_on_signal():
        said: str = getattr(commands, name)(config)
    return said


def _sentence(error: Exception) -> str:
    """The error's own words; Pyro appends the shapes of its trace on further lines."""
    return str(error).split("\n")[0] or type(error).__name__
