"""Which model, where it is, and loading it."""
