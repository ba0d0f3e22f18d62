"""Compare estimators: train and evaluate a grid of estimators, settings and seeds."""
