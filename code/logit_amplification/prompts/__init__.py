"""Prompt pairs: read them, check them, render them with the model's chat template."""
