"""Single forward passes: next-token logits with a KV cache, whole-text logits without one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..logits.alpha_profile import ALPHAS, AlphaProfile, profile


def cached_forward(model: Any, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
    """Run one forward pass with a KV cache (None: a new one); return the logits and the cache.

    Argument and result are called `cache` from transformers 5.24 on, and `past_key_values` before
    that and in code that ships with a model's weights.
    """
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(**inputs, **{name: cache}, use_cache=True)
    return output.logits, output.get(name)


def next_logits(model: Any, ids: Sequence[int], cache: Any = None) -> tuple[Tensor, Any]:
    """Feed `ids` after the contents of `cache`; return the logits after the last id, and the cache.

    One row, no padding. The logits are (1, vocab) float32: the rule must subtract in float32.
    """
    inputs = torch.tensor([list(ids)], device=model.device)
    # An index tensor rather than the number 1: the slice that the number selects is not contiguous,
    # and on a CPU the output head then copies its whole weight (4 times slower on the demo model).
    last = torch.tensor([-1], device=model.device)
    logits, cache = cached_forward(model, cache, input_ids=inputs, logits_to_keep=last)
    return logits[:, -1].float(), cache


def text_logits(model: Any, ids: Sequence[int], text_ids: Sequence[int]) -> Tensor:
    """Return the logits of every token of a text that follows `ids`, from one pass without a cache.

    Shape (len(text_ids), vocab), float32: row i predicts text_ids[i] given ids + text_ids[:i]. Both
    lists must hold at least one id; raises ValueError if `ids` is empty.
    """
    return texts_logits(model, ids, [text_ids])[0]


def texts_logits(model: Any, ids: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return `text_logits` for several texts that follow the same `ids`, from one forward pass."""
    return rows_logits(model, [(ids, text) for text in texts])


@torch.inference_mode()
def rows_logits(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Return `text_logits` for several texts, each following its own ids, from one forward pass.

    rows: (ids, text_ids) pairs. Shorter rows are padded on the right, where none of their own
    tokens attends to the padding. Raises ValueError if a row has no ids.
    """
    longest = max(len(ids) + len(text) - 1 for ids, text in rows)
    inputs = torch.tensor(
        [[*(row := [*ids, *text[:-1]]), *[0] * (longest - len(row))] for ids, text in rows],
        device=model.device,
    )
    first = min(len(ids) for ids, _ in rows) - 1
    if first < 0:
        raise ValueError("a text has nothing in front of it")
    # An index tensor rather than a number: see `next_logits`.
    kept = torch.arange(first, longest, device=model.device)
    logits = model(inputs, use_cache=False, logits_to_keep=kept).logits
    starts = [len(ids) - 1 - first for ids, _ in rows]
    return [
        one[start : start + len(text)].float()
        for one, start, (_, text) in zip(logits, starts, rows, strict=True)
    ]


def text_nll(model: Any, ids: Sequence[int], text_ids: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of a text that follows `ids`, in nats per token."""
    log_p = text_logits(model, ids, text_ids).log_softmax(-1)
    return -float(log_p[range(len(text_ids)), list(text_ids)].mean())


def profile_text(
    model: Any,
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    text_ids: Sequence[int],
    alphas: Sequence[float] | Tensor = ALPHAS,
) -> AlphaProfile:
    """Return the `profile` of a text under two contexts, from two forward passes for any alphas."""
    logits = (text_logits(model, ids, text_ids) for ids in (ids_a, ids_b))
    return profile(*logits, text_ids, alphas)
