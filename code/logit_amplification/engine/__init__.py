"""Cells in, generations out: the interface, and the loop that every engine is held to."""
