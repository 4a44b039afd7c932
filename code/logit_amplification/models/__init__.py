"""Which model, where it is, whether it fits this machine, and loading it."""
