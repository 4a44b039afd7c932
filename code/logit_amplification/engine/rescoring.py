"""How likely a finished text is at every alpha: one forward of each context, no decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..logits.amplification import Rule
from ..logits.arms import Arm
from ..logits.sampling import drawn_logprobs
from .forward import text_logits


@torch.inference_mode()
def logprobs_at_alphas(
    model: Any,
    contexts: tuple[Sequence[int], Sequence[int]],
    text_ids: Sequence[int],
    alphas: Sequence[float],
    *,
    rule: Rule,
    arm: Arm,
    sampling: dict[str, Any],
) -> Tensor:
    """Return the log-probability of every token of a text at every alpha, (alphas, tokens) float64.

    Under the distribution that the sweep draws from: amplified, after temperature and truncation;
    -inf where a token is truncated away. sampling: temperature (not 0), top_k and top_p. In 16 bit
    decoding and this forward round otherwise.
    """
    logits_a, logits_b = (text_logits(model, ids, text_ids) for ids in contexts)
    tokens = torch.tensor(list(text_ids), device=logits_a.device)
    choices = {name: sampling[name] for name in ("temperature", "top_k", "top_p")}
    found = [
        drawn_logprobs(arm(rule, logits_a, logits_b, alpha), tokens, **choices).cpu()
        for alpha in alphas
    ]
    return torch.stack(found)
