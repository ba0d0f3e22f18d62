"""Measure the speed of exact sums and training steps against alternatives, side by side in one run.

    python experiments/speed.py exact
    python experiments/speed.py step
    python experiments/speed.py estimators
    python experiments/speed.py programs
    python experiments/speed.py rows
    OMP_NUM_THREADS=1 python experiments/speed.py shard
    python experiments/speed.py commands
    python experiments/speed.py memory
    OMP_NUM_THREADS=1 python experiments/speed.py processes
    python experiments/speed.py exact --smoke

Each subcommand is a module; its docstring says what it measures, how long it takes and what was found.
"""

import tyro
from speed_commands import commands
from speed_estimators import estimators
from speed_exact import exact
from speed_memory import memory
from speed_processes import processes
from speed_programs import programs
from speed_rows import rows
from speed_shard import shard
from speed_step import step

from pyro_gvae.runtime.memory import keep_freed_memory

COMMANDS = {
    "exact": exact,
    "step": step,
    "estimators": estimators,
    "programs": programs,
    "shard": shard,
    "commands": commands,
    "memory": memory,
    "processes": processes,
    "rows": rows,
}

if __name__ == "__main__":
    keep_freed_memory()
    tyro.extras.subcommand_cli_from_dict(COMMANDS)
