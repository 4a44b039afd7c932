"""The amplification rule and everything computed from logits alone, without a model."""
