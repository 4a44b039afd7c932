"""Score finished texts at many alphas: one forward pass per context, no decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..logits.amplification import Rule
from ..logits.arms import Arm
from ..logits.sampling import drawn_logprobs
from .batch.drawing import anchor_and_reference
from .forward import texts_logits
from .interface import Contrast


@torch.inference_mode()
def logprobs_at_alphas(
    sources: Mapping[str, Any],
    contrast: Contrast,
    texts: Sequence[Sequence[int]],
    alphas: Sequence[float],
    *,
    rule: Rule,
    arm: Arm,
    sampling: dict[str, Any],
) -> list[Tensor]:
    """Return the log-probability of every token of several texts at every alpha.

    sources: weights by source name. texts: token ids that follow the contexts of `contrast`.
    sampling: temperature (not 0), top_k and top_p. Returns one (alphas, tokens) float64 tensor per
    text, in nats, under the distribution that the sweep draws from: amplified, after temperature
    and truncation. Truncated tokens get -inf. In 16 bit, decoding and this forward pass round
    differently.
    """
    streams = [texts_logits(sources[one.source], one.ids, texts) for one in contrast.streams]
    choices = {name: sampling[name] for name in ("temperature", "top_k", "top_p")}
    found = []
    for text, *logits in zip(texts, *streams, strict=True):
        a, b = anchor_and_reference(logits)
        tokens = torch.tensor(list(text), device=a.device)
        rows = [drawn_logprobs(arm(rule, a, b, alpha), tokens, **choices) for alpha in alphas]
        found.append(torch.stack([row.cpu() for row in rows]))
    return found
