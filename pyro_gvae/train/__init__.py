"""Training a program in stages."""
