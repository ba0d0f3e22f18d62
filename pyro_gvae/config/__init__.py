"""What a command is told; imports no torch."""
