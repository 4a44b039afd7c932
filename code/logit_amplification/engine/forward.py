"""One context through one model: logits with a cache, and of a whole text without one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..logits.alpha_profile import ALPHAS, AlphaProfile, profile


def cached_forward(model: Any, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
    """Run one forward with a cache (None: a new one); return its logits and the cache.

    From transformers 5.24 on, argument and result are called `cache`; before, and in code that
    comes with a model's weights, `past_key_values`.
    """
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(**inputs, **{name: cache}, use_cache=True)
    return output.logits, output.get(name)


def next_logits(model: Any, ids: Sequence[int], cache: Any = None) -> tuple[Tensor, Any]:
    """Feed `ids` behind what `cache` holds; return the logits after the last one, and the cache.

    One row, no padding. The logits are (1, vocab), float32: any subtraction comes after.
    """
    inputs = torch.tensor([list(ids)], device=model.device)
    # As an index, not as the number 1: the slice that 1 takes is not contiguous, and on CPU the
    # output head then copies its whole weight (4 times slower on the demo model).
    last = torch.tensor([-1], device=model.device)
    logits, cache = cached_forward(model, cache, input_ids=inputs, logits_to_keep=last)
    return logits[:, -1].float(), cache


def text_logits(model: Any, ids: Sequence[int], text_ids: Sequence[int]) -> Tensor:
    """Return the logits of every token of a text behind `ids`, from one forward without cache.

    (len(text_ids), vocab) float32: row i predicts text_ids[i] given ids + text_ids[:i]. Both
    lists hold at least one id.
    """
    return texts_logits(model, ids, [text_ids])[0]


def texts_logits(model: Any, ids: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return `text_logits` of several texts behind the same `ids`, from one forward."""
    return rows_logits(model, [(ids, text) for text in texts])


@torch.inference_mode()
def rows_logits(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Return `text_logits` of texts, each behind ids of its own, from one forward.

    What fills up shorter rows stands behind them, where no token of theirs looks.
    """
    longest = max(len(ids) + len(text) - 1 for ids, text in rows)
    inputs = torch.tensor(
        [[*(row := [*ids, *text[:-1]]), *[0] * (longest - len(row))] for ids, text in rows],
        device=model.device,
    )
    first = min(len(ids) for ids, _ in rows) - 1
    if first < 0:
        raise ValueError("a text has nothing in front of it")
    # An index, not a number: see `next_logits`.
    kept = torch.arange(first, longest, device=model.device)
    logits = model(inputs, use_cache=False, logits_to_keep=kept).logits
    starts = [len(ids) - 1 - first for ids, _ in rows]
    return [
        one[start : start + len(text)].float()
        for one, start, (_, text) in zip(logits, starts, rows, strict=True)
    ]


def text_nll(model: Any, ids: Sequence[int], text_ids: Sequence[int]) -> float:
    """Return the mean of -log p over the tokens of a text behind `ids`, in nats."""
    log_p = text_logits(model, ids, text_ids).log_softmax(-1)
    return -float(log_p[range(len(text_ids)), list(text_ids)].mean())


def profile_text(
    model: Any,
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    text_ids: Sequence[int],
    alphas: Sequence[float] | Tensor = ALPHAS,
) -> AlphaProfile:
    """Return the `profile` of a text behind two contexts: two forwards, whatever the alphas."""
    logits = (text_logits(model, ids, text_ids) for ids in (ids_a, ids_b))
    return profile(*logits, text_ids, alphas)
