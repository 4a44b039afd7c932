"""What makes a decode step fast on a CPU: packed weights, compiled layers, thread count."""
