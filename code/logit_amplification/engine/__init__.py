"""The engine interface, the batched and vLLM engines, and the reference loop they must match."""
