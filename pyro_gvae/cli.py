"""The command line: `pyro-gvae compare`. Torch is imported only when a command runs, so that `--help` is instant."""

import sys

import tyro

from .config import CompareConfig


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it succeeded, 2 with one sentence if it was asked for something that cannot be."""
    try:
        _run(_parse(arguments))
    except (ValueError, OSError) as error:
        print(f"pyro-gvae: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyro-gvae: interrupted; what was finished is in the run folder.", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> CompareConfig:
    return tyro.extras.subcommand_cli_from_dict(
        {"compare": CompareConfig},
        args=arguments,
        prog="pyro-gvae",
        description="Categorical VAEs in Pyro: relaxed sampling and exact enumeration on one program.",
    )


def _run(config: CompareConfig) -> None:
    from .compare import compare, results_table  # here, so that --help imports no torch

    run = compare(config)
    print(f"\n{results_table(run)}\n\nreport: {run / 'report.html'}")


def _sentence(error: Exception) -> str:
    """The error's own words; Pyro appends the shapes of its trace on further lines."""
    return str(error).split("\n")[0] or type(error).__name__
