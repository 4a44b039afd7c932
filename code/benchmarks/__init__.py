"""The measurements of code/benchmark.py, one file per family of tables in the docs."""
