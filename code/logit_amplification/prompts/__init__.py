"""Prompt pairs: reading, validating and rendering them with the model's chat template."""
