"""vLLM as an engine, running in a process and a Python environment of its own."""
