"""Data sets in memory, and batches of them."""
