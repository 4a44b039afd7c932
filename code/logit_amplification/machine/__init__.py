"""What this machine offers (memory, GPUs, dtypes), and how much memory a model needs."""
