"""ELBOs as losses for `SVI`: exact sums over all codes, and estimates from samples of them."""
