"""Keys and values of many rows, each at its own position, and attention over them.

Attention is registered with transformers under the name "slots". It is used for decode steps only:
a context is read with the model's own attention. What depends on what, bit by bit:
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

_watched: list[int | None] | None = None  # sliding windows of the layers that attended


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
    """Attention of one new token per row over that row's cache, the same bits in every row.

    query (rows, heads, 1, dim); key (rows, kv_heads, length, dim); value (rows, kv_heads, length,
    value dim); attention_mask (rows, 1, 1, length) float32, 0 or -inf, without gaps from the start.
    Two `bmm` around a float32 softmax: unlike the fused kernel, a row's result does not depend on
    its place. softcap: scores become softcap * tanh(scores / softcap) (Gemma 2). sliding_window:
    how many of the last positions are seen. s_aux (heads,): a logit per head that takes part in the
    softmax and has no value (attention sinks, gpt-oss).
    """
    if _watched is not None:
        _watched.append(sliding_window)
    rows, heads, _, dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    if sliding_window is not None and sliding_window < length:
        attention_mask = _last_positions(attention_mask, sliding_window)
    # The query heads that share a KV head are the rows of one small matrix: nothing is repeated.
    query = query.reshape(rows * kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(query, key.flatten(0, 1).transpose(1, 2))
    scores = scores.view(rows, kv_heads, heads // kv_heads, -1)
    if softcap is not None:
        scores, scaling = softcap * torch.tanh(scores.float() * (scaling / softcap)), 1.0
    scores = torch.add(attention_mask, scores, alpha=scaling)  # in float32, as the mask is
    if s_aux is not None:
        sinks = s_aux.float().view(1, kv_heads, -1, 1).expand(rows, -1, -1, 1)
        weights = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    weights = weights.to(value.dtype).flatten(0, 1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, value.shape[-1]), None


def _last_positions(mask: Tensor, window: int) -> Tensor:
    """Hide all but the last `window` positions that a mask shows in each row."""
    seen = (mask == 0).sum(-1, keepdim=True)
    reach = torch.arange(mask.shape[-1], device=mask.device)
    return mask.masked_fill(reach < seen - window, -torch.inf)


AttentionInterface.register("slots", slot_attention)


@cache
def is_exchangeable(kind: type) -> bool:
    """Whether the attention of a class of models can be set; to tell, its source is read."""
    return getattr(kind, "_can_set_attn_implementation", lambda: True)()


@contextmanager
def attending(model: Any, attention: str) -> Iterator[None]:
    """Have a model attend in the way of that name, and give its own back in any case.

    A model that does not take its attention from transformers' interface keeps its own.
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
    """Yield a list that grows by the sliding window (or None) of each layer that attends."""
    global _watched
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


# ------------------------------------------------------------------------------- one context


class LayerShape(NamedTuple):
    """What a layer keeps of a token: keys (heads, key width), values (heads, value width)."""

    heads: int
    key_width: int
    value_width: int
    sliding_window: int | None
    device: torch.device


@dataclass(frozen=True)
class Prefix:
    """A prefilled context: its keys and values per layer, and the logits after its last token."""

    model: Any  # that has read it
    layers: list[tuple[Tensor, Tensor]]  # each (kv_heads, length, dim); of a window: its end
    logits: Tensor  # (vocab,) float32
    length: int


def prefill(model: Any, ids: tuple[int, ...]) -> Prefix:
    """Read one context alone, at its own length, with the model's own attention."""
    logits, cache = next_logits(model, ids)
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    return Prefix(model, layers, logits[0], len(ids))


@torch.inference_mode()
def cache_layout(model: Any) -> list[LayerShape]:
    """Return what each layer of a model keeps, read off the cache that it fills itself.

    Raises BadInput naming the architecture when it keeps something else than keys and values.
    """
    _, cache = next_logits(model, [0])
    layers = getattr(cache, "layers", None)
    shapes = []
    for layer in layers or [None]:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 1:
            raise BadInput(
                f"architecture {model.config.model_type!r} keeps something else than keys and "
                "values of every token: it cannot be decoded in slots, and is refused"
            )
        window = getattr(layer, "sliding_window", None)
        sizes = keys.shape[1], keys.shape[3], values.shape[3]
        shapes.append(LayerShape(*sizes, window, keys.device))
    return shapes


class Prefixes:
    """The contexts read last, so that cells that follow one another share them."""

    def __init__(self, most: int):
        self.most = most
        self.ready: OrderedDict[Stream, Prefix] = OrderedDict()

    def take(self, stream: Stream, model: Any) -> Prefix:
        """Return the prefix of a stream, made now if it is not among the last `most` ones."""
        if stream not in self.ready:
            self.ready[stream] = prefill(model, stream.ids)
            if len(self.ready) > self.most:
                self.ready.popitem(last=False)
        self.ready.move_to_end(stream)
        return self.ready[stream]


# ------------------------------------------------------------------------------------ many rows


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, window, width); a row writes where it stands.

    There is memory for `longest` positions; the first `window` of them are in use, as one block.
    """

    def __init__(self, positions: Tensor, shape: LayerShape, longest: int, dtype: torch.dtype):
        super().__init__()
        self.positions = positions
        # A layer of a model that is split over devices may be on another one than its input.
        options = {"dtype": dtype, "device": shape.device}
        self.rows = torch.arange(len(positions), device=shape.device)
        size = (len(positions), shape.heads, longest)
        self.keys = torch.zeros(*size, shape.key_width, **options)
        self.values = torch.zeros(*size, shape.value_width, **options)
        self.memory = (self.keys.view(-1), self.values.view(-1))
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the memory is there from the start."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write one token per row at its position; return all keys and values of those rows."""
        fed = len(key_states)  # the first rows
        rows, positions = self.rows[:fed], self.positions[:fed].to(self.keys.device)
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[:fed], self.values[:fed]

    def fill(self, row: int, keys: Tensor, values: Tensor, length: int) -> None:
        """Put a prefix of `length` tokens into a row; keys and values may be of its end alone."""
        for memory, new in ((self.keys, keys), (self.values, values)):
            # Zeroed, for a NaN left there by the last generation would come through the mask.
            memory[row] = 0
            memory[row, :, length - new.shape[1] : length] = new

    def copy(self, source: int, target: int) -> None:
        """Give a row the keys and values of another."""
        for memory in (self.keys, self.values):
            memory[target] = memory[source]

    def resize(self, window: int) -> None:
        """Keep the first `window` positions of every row, or add zeros behind them."""
        more = window - self.get_max_length()
        old = [torch.nn.functional.pad(part, (0, 0, 0, more)) for part in (self.keys, self.values)]
        self.keys, self.values = (
            memory[: part.numel()].view(part.shape).copy_(part)
            for memory, part in zip(self.memory, old, strict=True)
        )

    def get_mask_sizes(self, query_length):
        """Length and offset of the keys (the mask itself is given explicitly)."""
        return self.get_max_length(), 0

    def get_seq_length(self):
        """Positions are given explicitly; transformers needs no length."""
        return 0

    def get_max_length(self):
        """The number of positions of a row."""
        return self.keys.shape[2]
