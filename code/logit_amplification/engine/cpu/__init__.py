"""What makes a step fast on a CPU: prepared products, compiled layers, the number of threads."""
