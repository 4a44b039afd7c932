"""Find, download and load models and adapters."""
