"""Losses for `SVI`: sums over all codes, and any loss recorded once and replayed."""
