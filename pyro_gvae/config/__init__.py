"""Configurations of the commands; imports no torch."""
