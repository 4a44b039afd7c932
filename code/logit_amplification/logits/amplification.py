"""The rule: what becomes of two rows of logits and a strength.

Logits are (..., vocab), float32; alpha is a number or a tensor that broadcasts against them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Rule = Callable[[Tensor, Tensor, "Tensor | float"], Tensor]


def amplify(logits_a, logits_b, alpha):
    """Push A's logits further away from B's, over the whole vocabulary: a + alpha * (a - b).

    alpha = 0 is A alone, alpha = -1 is B alone, and Hugging Face's guidance_scale is 1 + alpha.
    """
    return logits_a + alpha * (logits_a - logits_b)
