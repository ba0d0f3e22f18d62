"""The main job: a grid of estimators, settings and seeds, trained and judged."""
