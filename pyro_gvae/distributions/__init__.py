"""Distributions: one-hots, their Concrete relaxation, surrogates, and exponential families of observations."""
