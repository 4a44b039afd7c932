"""Compile the layers of a decode step with torch.compile, around packed products.

Layers of one kind share one compiled graph: what distinguishes them is passed in as tensors.
Attention is a custom operator, so neither the length of the memory nor the layer becomes part of
the graph. Compiled code is cached in `.cache/inductor` (or TORCHINDUCTOR_CACHE_DIR).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from ...locations import ROOT
from ..batch.cache import SlotLayer, is_exchangeable, slot_attention
from .packed import packed_copy

COMPILERS = ("g++", "clang++", "cl")
_layers: Sequence[SlotLayer] = ()  # of the rows being fed, set by CompiledCache.attended


def has_compiler() -> bool:
    """Whether a C++ compiler is installed, which torch.compile needs on a CPU."""
    return any(map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS))))


def can_compile(model: Any) -> bool:
    """Whether the attention can be replaced by the operator below, and there is no adapter."""
    adapted = getattr(model, "peft_config", None)  # the compiler does not know an adapter's gate
    return is_exchangeable(type(model)) and bool(_attentions(model)) and not adapted


def compiled_copy(model: Any) -> Any:
    """Return a `packed_copy` whose repeated layers are compiled on their first call."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".cache" / "inductor"))
    copied = packed_copy(model)
    for attention in _attentions(copied):
        attention.slot_layer = torch.tensor(attention.layer_idx)
    copied.set_attn_implementation("slots_compiled")
    for module in copied.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.compile(dynamic=False)
    return copied


class CompiledCache(Cache):
    """Passes the keys and values of new tokens on to the attention, which stores them in memory."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Return the arguments unchanged: a compiled graph must not hold on to the memory."""
        return key_states, value_states

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Let the attention use this memory inside the block."""
        global _layers
        _layers = self.layers
        try:
            yield
        finally:
            _layers = ()


def _attentions(model: Any) -> list[Any]:
    """Return the attention modules: those that transformers has numbered with `layer_idx`."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "scaling")
    ]


def compiled_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """`slot_attention` as the compiler sees it: key and value are those of the new token alone."""
    taken = [options.get(name) for name in ("softcap", "sliding_window", "s_aux")]
    given = query, key, value, attention_mask, scaling, *taken, module.slot_layer
    return torch.ops.logit_amplification.attend(*given), None


AttentionInterface.register("slots_compiled", compiled_attention)


@torch.library.custom_op("logit_amplification::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
    s_aux: Tensor | None,
    layer: Tensor,
) -> Tensor:
    keys, values = _layers[int(layer)].update(key, value)
    options = {"softcap": softcap, "sliding_window": sliding_window, "s_aux": s_aux}
    return slot_attention(None, query, keys, values, attention_mask, scaling, **options)[0]


@_attend.register_fake
def _(query, key, value, attention_mask, scaling, softcap, sliding_window, s_aux, layer):
    return query.new_empty(query.shape[0], 1, query.shape[1], value.shape[-1])
