"""What a trained pair of model and guide is worth as a discrete model."""
