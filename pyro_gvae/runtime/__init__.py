"""The machine and the process: memory, random states, signals, other processes."""
