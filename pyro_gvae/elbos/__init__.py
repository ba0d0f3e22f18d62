"""Losses for `SVI`: sums over all codes, samples of them, and any loss recorded once and replayed."""
