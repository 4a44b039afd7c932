"""The KV cache of many rows, each at its own position, and the attention that reads it.

The attention is registered with transformers under the name "slots". It is used for decode steps
only; prefill uses the model's own attention. For which results depend on what, bit by bit, see
docs/METHODOLOGY.md, "Exactness".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import CacheLayerMixin

from ...errors import BadInput
from ..forward import next_logits
from ..interface import Stream

# ------------------------------------------------------------------------------------- attention

_watched: list[int | None] | None = None  # for `watching_attention`


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row over that row's cache, with the same bits in every row.

    query (rows, heads, 1, dim); key (rows, kv_heads, length, dim); value (rows, kv_heads, length,
    value dim); attention_mask (rows, 1, 1, length) float32, 0 or -inf, without gaps from the start.
    Returns (rows, 1, heads, value dim), and None for the attention weights.

    Computed with two `bmm` around a float32 softmax: unlike with the fused kernel, a row's result
    does not depend on its index in the batch. sliding_window: how many of the last positions are
    visible. s_aux (heads,): an extra logit per head that takes part in the softmax but has no value
    (attention sinks, gpt-oss). softcap (Gemma 2): scores become softcap * tanh(scores / softcap).
    """
    if _watched is not None:
        _watched.append(sliding_window)
    rows, heads, _, dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    if sliding_window is not None and sliding_window < length:
        attention_mask = _last_positions(attention_mask, sliding_window)
    # The query heads that share a KV head form the rows of one small matrix, so no key or value is
    # repeated.
    query = query.reshape(rows * kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(query, key.flatten(0, 1).transpose(1, 2))
    scores = scores.view(rows, kv_heads, heads // kv_heads, -1)
    if softcap is not None:
        scores, scaling = softcap * torch.tanh(scores.float() * (scaling / softcap)), 1.0
    scores = torch.add(attention_mask, scores, alpha=scaling)  # float32, because the mask is
    if s_aux is not None:
        sinks = s_aux.float().view(1, kv_heads, -1, 1).expand(rows, -1, -1, 1)
        weights = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    weights = weights.to(value.dtype).flatten(0, 1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, value.shape[-1]), None


def _last_positions(mask: Tensor, window: int) -> Tensor:
    """Mask all but the last `window` visible positions of each row."""
    seen = (mask == 0).sum(-1, keepdim=True)
    reach = torch.arange(mask.shape[-1], device=mask.device)
    return mask.masked_fill(reach < seen - window, -torch.inf)


AttentionInterface.register("slots", slot_attention)


@cache
def is_exchangeable(kind: type) -> bool:
    """Whether a model class lets its attention be replaced.

    Cached, because transformers reads the source of the class to answer.
    """
    return getattr(kind, "_can_set_attn_implementation", lambda: True)()


@contextmanager
def attending(model: Any, attention: str) -> Iterator[None]:
    """Let a model use the named attention inside the block, and restore its own in any case.

    A model that does not take its attention from transformers' interface keeps its own throughout.
    """
    own = model.config._attn_implementation
    if own == attention or not is_exchangeable(type(model)):
        yield
        return
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@contextmanager
def watching_attention() -> Iterator[list[int | None]]:
    """Yield a list to which each layer that attends adds its sliding window (or None)."""
    global _watched
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


# ------------------------------------------------------------------------------- one context


class LayerShape(NamedTuple):
    """What a layer caches per token: keys (heads, key_width) and values (heads, value_width)."""

    heads: int
    key_width: int
    value_width: int
    sliding_window: int | None
    device: torch.device


@dataclass(frozen=True)
class Prefix:
    """A prefilled context: its keys and values per layer, and the logits after its last token."""

    model: Any  # the model that has read it
    layers: list[tuple[Tensor, Tensor]]  # each (kv_heads, length, dim); with a window: its end
    logits: Tensor  # (vocab,) float32
    length: int


def prefill(model: Any, ids: tuple[int, ...]) -> Prefix:
    """Read one context by itself, without padding, with the model's own attention."""
    logits, cache = next_logits(model, ids)
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    return Prefix(model, layers, logits[0], len(ids))


@torch.inference_mode()
def cache_layout(model: Any) -> list[LayerShape]:
    """Return what each layer of a model caches, taken from the cache the model itself creates.

    Raises BadInput naming the architecture when it caches anything other than keys and values.
    """
    _, cache = next_logits(model, [0])
    layers = getattr(cache, "layers", None)
    shapes = []
    for layer in layers or [None]:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 1:
            raise BadInput(
                f"architecture {model.config.model_type!r} stores something other than keys "
                "and values of every token, so it cannot be decoded in slots and is refused"
            )
        window = getattr(layer, "sliding_window", None)
        sizes = keys.shape[1], keys.shape[3], values.shape[3]
        shapes.append(LayerShape(*sizes, window, keys.device))
    return shapes


class Prefixes:
    """The most recently used prefilled contexts, so that consecutive cells can share them."""

    def __init__(self, most: int):
        self.most = most
        self.ready: OrderedDict[Stream, Prefix] = OrderedDict()

    def take(self, stream: Stream, model: Any) -> Prefix:
        """Return the prefix of a stream; prefill it unless it is among the last `most` used."""
        if stream not in self.ready:
            self.ready[stream] = prefill(model, stream.ids)
            if len(self.ready) > self.most:
                self.ready.popitem(last=False)
        self.ready.move_to_end(stream)
        return self.ready[stream]


# ------------------------------------------------------------------------------------ many rows


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, window, width), each row at its own position.

    Memory is allocated for `longest` positions; the first `window` of them are in use, as one
    contiguous block.
    """

    def __init__(self, positions: Tensor, shape: LayerShape, longest: int, dtype: torch.dtype):
        super().__init__()
        self.positions = positions
        # In a model split over devices, a layer may be on another device than the model's input.
        options = {"dtype": dtype, "device": shape.device}
        self.rows = torch.arange(len(positions), device=shape.device)
        size = (len(positions), shape.heads, longest)
        self.keys = torch.zeros(*size, shape.key_width, **options)
        self.values = torch.zeros(*size, shape.value_width, **options)
        self.memory = (self.keys.view(-1), self.values.view(-1))
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states):
        """Do nothing: the memory is allocated from the start."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write one token per row at its position; return all keys and values of those rows."""
        fed = len(key_states)  # only the first rows may be fed
        rows, positions = self.rows[:fed], self.positions[:fed].to(self.keys.device)
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[:fed], self.values[:fed]

    def fill(self, row: int, keys: Tensor, values: Tensor, length: int) -> None:
        """Put a prefix of `length` tokens into a row; keys and values may cover only its end."""
        for memory, new in ((self.keys, keys), (self.values, values)):
            # Zero first: a NaN left there by the last generation would get through the mask.
            memory[row] = 0
            memory[row, :, length - new.shape[1] : length] = new

    def copy(self, source: int, target: int) -> None:
        """Copy the keys and values of one row to another."""
        for memory in (self.keys, self.values):
            memory[target] = memory[source]

    def resize(self, window: int) -> None:
        """Keep the first `window` positions of every row, or pad with zeros if there were fewer."""
        more = window - self.get_max_length()
        old = [torch.nn.functional.pad(part, (0, 0, 0, more)) for part in (self.keys, self.values)]
        self.keys, self.values = (
            memory[: part.numel()].view(part.shape).copy_(part)
            for memory, part in zip(self.memory, old, strict=True)
        )

    def get_mask_sizes(self, query_length):
        """Return length and offset of the keys (the mask itself is passed explicitly)."""
        return self.get_max_length(), 0

    def get_seq_length(self):
        """Return 0: positions are passed explicitly, so transformers needs no length."""
        return 0

    def get_max_length(self):
        """Return the number of positions per row."""
        return self.keys.shape[2]
