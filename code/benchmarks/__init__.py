"""What code/benchmark.py measures: a file per family of tables of docs/PERFORMANCE.md."""
