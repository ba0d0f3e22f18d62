"""The command line: all commands in one place."""
