"""The command line, one place for all commands."""
