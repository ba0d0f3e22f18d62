"""The command line. It imports torch only when a command runs, so `--help` is instant."""

import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config.commands import ResumeConfig
from ..config.compare import CompareConfig
from ..config.train import TrainConfig
from ..runs.files import remove_unfinished
from ..runs.inside import staying_inside
from ..runtime.progress import hidden_progress
from .arguments import COMMANDS, PLANS, parse
from .early import check_early
from .errors import PartlyFailedError
from .said import Said
from .terminal import open_streams, say, warnings_as_sentences
from .typed import as_typed
from .words import DRY_RUN, GENERAL

#: Settings of `resume` that set the length of the run.
LENGTH = {"more", "steps", "seconds"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: it succeeded. 1: training diverged, or cells of a comparison failed, or other processes train them. 2: an
    argument or a file was invalid, or memory ran out; one sentence says which. 130 (Ctrl-C), 143 (SIGTERM)
    or 129 (SIGHUP): a signal stopped the command.
    """
    open_streams()
    config = None
    words = list(sys.argv[1:] if arguments is None else arguments)
    manner = {word for word in words if word in (*GENERAL, DRY_RUN)}
    if words in (["--version"], ["-V"]):
        say(f"pyro-gvae {version('pyro-gvae')}", sys.stdout)
        return 0
    as_json = "--json" in manner
    try:
        config = parse([word for word in words if word not in manner])
        with warnings_as_sentences(), hidden_progress() if "--quiet" in manner else nullcontext():
            said = _run(config, is_dry=DRY_RUN in manner)
        _print(said, as_json=as_json)
    except PartlyFailedError as failed:
        _print(failed.report, as_json=as_json)
        say(f"pyro-gvae: {failed}", sys.stderr)
        return 1
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise
        if words and words[0] in COMMANDS:
            is_of_codes = _is_of_too_many_codes(error)
            sentence = as_typed(sentence, COMMANDS[words[0]].config, is_of_too_many_codes=is_of_codes)
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


def _print(said: Said, *, as_json: bool) -> None:
    if as_json and said.content:
        say(said.as_json(), sys.stdout)
    elif not as_json and said.text:
        say(f"\n{said.text}", sys.stdout)


def _resume_by(config: Any, run: Path) -> str:
    """Return the command that resumes a run, with the settings that the run folder does not keep.

    The folder keeps the memory limit, unless a resumption has changed it, and the length of the run.
    """
    words = ["pyro-gvae", "resume", str(run)]
    for field in (field for field in fields(ResumeConfig)[1:] if field.name not in LENGTH):
        value = getattr(config, field.name, field.default)
        is_kept = field.name == "max_memory" and not isinstance(config, ResumeConfig)
        if value != field.default and not is_kept:
            name = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _run(config: Any, *, is_dry: bool = False) -> Said:
    """Run the command of a configuration, or say what it would do."""
    name, command = next((name, command) for name, command in COMMANDS.items() if command.config is type(config))
    function_name = command.plan if is_dry else command.function
    if function_name is None:
        planned = " and ".join(name for name, command in COMMANDS.items() if command.plan is not None)
        raise ValueError(f"Expected {DRY_RUN} with {planned}, but found it with {name}. Try {name} without it.")
    if isinstance(config, TrainConfig | CompareConfig):
        config.check_estimators()
    with ExitStack() as until_the_end:
        for name in ("run", "output"):
            folder = getattr(config, name, None)
            if folder is not None and folder.is_dir():
                until_the_end.enter_context(staying_inside(folder))
                remove_unfinished(folder)
        check_early(config)
        commands = import_module(f".{PLANS if is_dry else command.module}", __package__)
        function: Callable[[Any], Said] = getattr(commands, function_name)
        if not command.needs_torch:
            return function(config)
        import_module("..runtime.memory", __package__).keep_freed_memory()
        with import_module("..runtime.signals", __package__).raise_on_signal():
            return function(config)


def _sentence(error: Exception) -> str | None:
    """Return a sentence for an error that the user can fix; None for any other error.

    It is the first line of the message: Pyro appends the shapes of its trace on further lines.
    """
    if not isinstance(error, ValueError | FileNotFoundError) and _is_out_of_memory(error):
        tried = "Try a smaller max_memory, fewer data at once, or fewer workers."
        return f"Expected enough memory for this command, but found that it ran out. {tried}"
    if not isinstance(error, ValueError | OSError):
        return None
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"Expected a usable file, but found that '{error.filename}' cannot be used: {error.strerror}."
    return str(error).split("\n")[0] or type(error).__name__


def _is_of_too_many_codes(error: Exception) -> bool:
    """Tell whether a sum over too many codes was refused; the module of that error may not be imported yet."""
    latents = sys.modules.get("pyro_gvae.programs.latents")
    return latents is not None and isinstance(error, latents.TooManyJointCodesError)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; there may not even be enough to import the check, which needs torch."""
    try:
        return bool(import_module("..runtime.memory", __package__).is_out_of_memory(error))
    except (ImportError, MemoryError):
        return isinstance(error, ImportError | MemoryError)
