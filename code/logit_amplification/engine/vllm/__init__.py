"""vLLM as an engine: it runs in a process and an environment of its own."""
