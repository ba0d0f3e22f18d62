"""The Concrete, the factorized one-hot, and observations as exponential families."""
