"""The command line: `pyro-gvae compare`. Torch is imported only when a command runs, so that `--help` is instant."""

import sys

import tyro

from .config import CompareConfig, GapsConfig


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


def _parse(arguments: list[str] | None) -> CompareConfig | GapsConfig:
    return tyro.extras.subcommand_cli_from_dict(
        {"compare": CompareConfig, "gaps": GapsConfig},
        args=arguments,
        prog="pyro-gvae",
        description="Categorical VAEs in Pyro: relaxed sampling and exact enumeration on one program.",
    )


def _run(config: CompareConfig | GapsConfig) -> None:
    # Imports stand here so that --help imports no torch.
    if isinstance(config, GapsConfig):
        from .gaps import gaps_table, run_gaps

        max_memory = None if config.max_memory is None else config.max_memory * 1e9
        table = run_gaps(
            config.run, num_data=config.num_data, num_particles=config.num_particles, max_memory=max_memory
        )
        print(f"\n{gaps_table(table)}\n\nfigure: {config.run / 'figures' / 'gaps.png'}")
    else:
        from .compare import compare, results_table

        run = compare(config)
        print(f"\n{results_table(run)}\n\nreport: {run / 'report.html'}")


def _sentence(error: Exception) -> str:
    """The error's own words; Pyro appends the shapes of its trace on further lines."""
    return str(error).split("\n")[0] or type(error).__name__
