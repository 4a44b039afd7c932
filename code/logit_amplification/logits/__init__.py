"""The rule and what is computed from logits alone: pure tensors, nothing of ours."""
