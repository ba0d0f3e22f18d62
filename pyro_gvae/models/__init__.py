"""Ready programs and the networks that they use."""
