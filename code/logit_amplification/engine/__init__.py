"""Cells in, generations out: many generations side by side, and the loop they are held to."""
