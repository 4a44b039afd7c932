"""What this machine has: memory, GPUs, number formats, and what a model would take of them."""
