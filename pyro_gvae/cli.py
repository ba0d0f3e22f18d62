"""The command line. Torch is imported only when a command runs, so that `--help` is instant."""

import sys
from importlib import import_module
from typing import Any, NamedTuple

import tyro

from .config import CompareConfig, EncodeConfig, EvaluateConfig, GapsConfig, ReconstructConfig, SampleConfig
from .laboratory_config import AdviseConfig, GradientsConfig


class Command(NamedTuple):
    """A configuration, and the function that takes it and returns what is said in the end: "module:function"."""

    config: type[Any]
    function: str


COMMANDS = {
    "compare": Command(CompareConfig, "compare:compare_command"),
    "gaps": Command(GapsConfig, "gaps:gaps_command"),
    "gradients": Command(GradientsConfig, "laboratory:gradients_command"),
    "advise": Command(AdviseConfig, "advice:advise_command"),
    "evaluate": Command(EvaluateConfig, "commands:evaluate_command"),
    "encode": Command(EncodeConfig, "commands:encode_command"),
    "reconstruct": Command(ReconstructConfig, "commands:reconstruct_command"),
    "sample": Command(SampleConfig, "commands:sample_command"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it succeeded, 2 with one sentence if it was asked for something that cannot be."""
    try:
        print(f"\n{_run(_parse(arguments))}")
    except (ValueError, OSError) as error:
        print(f"pyro-gvae: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyro-gvae: interrupted; what was finished is in the run folder.", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> Any:
    return tyro.extras.subcommand_cli_from_dict(
        {name: command.config for name, command in COMMANDS.items()},
        args=arguments,
        prog="pyro-gvae",
        description="Categorical VAEs in Pyro: relaxed sampling and exact enumeration on one program.",
    )


def _run(config: Any) -> str:
    function = next(command.function for command in COMMANDS.values() if command.config is type(config))
    module, _, name = function.partition(":")
    said: str = getattr(import_module(f".{module}", __package__), name)(config)
    return said


def _sentence(error: Exception) -> str:
    """The error's own words; Pyro appends the shapes of its trace on further lines."""
    return str(error).split("\n")[0] or type(error).__name__
