"""Define ready-made programs and the networks that they use."""
