"""Logit-difference amplification: logits_a + alpha * (logits_a - logits_b), at every token."""
