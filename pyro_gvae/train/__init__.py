"""Training of a program in stages."""
