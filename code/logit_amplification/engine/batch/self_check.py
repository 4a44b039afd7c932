"""Check once per model that decoding in slots gives the model's own logits.

A model may use its own attention, cache something other than keys and values, or take positions
from elsewhere. Decoding it in slots would then give wrong results without any error.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ...models.adapters import without_adapter
from ..forward import next_logits
from .cache import cache_layout, prefill, watching_attention
from .slots import Slots
from .step import text_config

STEPS = 4
LENGTHS = (5, 11)  # of the two contexts; unequal, so that the rows differ in position
# Largest mean KL to the model's own distribution, in nats. Rounding causes about a hundred times
# less (docs/METHODOLOGY.md, Precision), attention that misses a part far more.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
ALLOWED_IN_8_BIT = 0.5  # in LLM.int8 the rows of one forward pass shift each other by up to 0.1
_passed: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def refuse_if_unlike(model: Any, step: str = "eager") -> None:
    """Raise BadInput, naming the architecture, when slots do not give the model's own logits.

    step: the kind of step to check. A model that has passed is not checked again.
    """
    if step in _passed.setdefault(model, set()):
        return
    kind = model.config.model_type
    try:
        slides = {layer.sliding_window for layer in cache_layout(model)} - {None}
        apart, windows = divergence(model, step)
    except (BadInput, torch.OutOfMemoryError):
        raise
    except Exception as error:  # model code that expects another cache may raise anything
        raise BadInput(
            f"architecture {kind!r} cannot be decoded in slots "
            f"({type(error).__name__}: {error}), and is refused"
        ) from error
    if slides - set(windows):
        raise BadInput(
            f"architecture {kind!r}: its sliding window of {min(slides)} tokens does not reach the "
            "attention; it cannot be decoded in slots, and is refused"
        )
    in_8_bit = getattr(model, "is_loaded_in_8bit", False)
    allowed = ALLOWED_IN_8_BIT if in_8_bit else ALLOWED[model.dtype]
    if not apart < allowed:
        raise BadInput(
            f"architecture {kind!r}: decoded in slots, it differs from the model's own forward "
            f"by {apart:.2g} nats per token; rounding explains {allowed:g}, so it is refused"
        )
    _passed[model].add(step)


@torch.inference_mode()
def divergence(model: Any, step: str = "eager") -> tuple[float, list[int | None]]:
    """Return the mean KL(by itself || in slots) in nats, and each layer's sliding window in a step.

    Two contexts of random tokens are continued greedily, each by itself and as rows of one forward
    pass. If the model has an adapter with a gate, the second context bypasses it.
    """
    models = [model, without_adapter(model)]
    random = torch.Generator().manual_seed(0)
    vocabulary = text_config(model).vocab_size
    contexts = [
        tuple(torch.randint(vocabulary, (length,), generator=random).tolist()) for length in LENGTHS
    ]
    slots = Slots(models, 1, max(LENGTHS) + STEPS, kind=step)
    slots.fill(0, [prefill(own, ids) for own, ids in zip(models, contexts, strict=True)])
    caches: list[Any] = [None, None]
    fed: list[list[int]] = [list(ids) for ids in contexts]
    found: list[Tensor] = []
    for _ in range(STEPS):
        own = []
        for number, ids in enumerate(fed):
            logits, caches[number] = next_logits(models[number], ids, caches[number])
            own.append(logits)
        found += [_kl(*both) for both in zip(own, slots.logits(), strict=True)]
        token = own[0].argmax(-1)
        fed = [token.tolist()] * 2
        with watching_attention() as windows:
            slots.forward(token)
    return float(torch.stack(found).mean()), windows


def _kl(own: Tensor, other: Tensor) -> Tensor:
    own, other = own[0].log_softmax(-1), other[0].log_softmax(-1)
    return (own.exp() * (own - other)).sum()
