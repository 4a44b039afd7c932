"""The batch: a fixed number of slots, each a row for context A and a row for context B.

Every step is one forward of all rows (or two, A and B apart). Each row has its own position and
writes its keys and values there; no row sees another. Attention is registered with transformers
under the name "slots". What depends on what, bit by bit: docs/METHODOLOGY.md, "Exactness".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from ..models import sizes
from ..models.loading import cached_forward, next_logits
from ..models.sizes import STEP, round_up

Ids = Sequence[int]
# Where a row's memory follows what is in use, and where a step is captured as a CUDA graph, which
# needs memory that never moves.
MOVING = {"cpu"}
CAPTURED = {"cuda"}


def slot_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention of one new token per row over that row's cache, the same bits in every row.

    query (rows, heads, 1, dim); key, value (rows, kv_heads, length, dim); attention_mask
    (rows, 1, 1, length) float32, 0 or -inf. Two `bmm` around a float32 softmax: unlike the fused
    kernel, a row's result does not depend on its place. Without a mask (the prefill of one prompt)
    the fused kernel does it.
    """
    if attention_mask is None:
        fused = AttentionInterface()["sdpa"]
        return fused(module, query, key, value, None, dropout, scaling, **kwargs)
    rows, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    # The query heads that share a KV head are the rows of one small matrix: nothing is repeated.
    query = query.reshape(rows * kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(query, key.flatten(0, 1).transpose(1, 2))
    scores = scores.view(rows, kv_heads, heads // kv_heads, -1)
    scores = torch.add(attention_mask, scores, alpha=scaling)  # in float32, as the mask is
    weights = torch.softmax(scores, -1).to(value.dtype).flatten(0, 1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, dim), None


AttentionInterface.register("slots", slot_attention)


@contextmanager
def attending_in_slots(model: Any) -> Iterator[None]:
    """Have a model attend as `slot_attention` does, and give its own way back in any case."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("slots")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


# ----------------------------------------------------------------------------------------- cache


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, kv_heads, window, dim); a row writes where it stands.

    There is memory for `longest` positions; the first `window` of them are in use, as one block.
    """

    def __init__(self, positions: Tensor, heads: int, longest: int, dim: int, dtype: torch.dtype):
        super().__init__()
        self.positions = positions
        self.rows = torch.arange(len(positions), device=positions.device)
        shape = (len(positions), heads, longest, dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=positions.device)
        self.values = torch.zeros_like(self.keys)
        self.memory = (self.keys.view(-1), self.values.view(-1))
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the memory is there from the start."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write one token per row at its position; return all keys and values."""
        self.keys[self.rows, :, self.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.keys, self.values

    def fill(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Put a prefix, each (kv_heads, length, dim), into a row."""
        for memory, new in ((self.keys, keys), (self.values, values)):
            memory[row, :, : new.shape[1]] = new
            # Zeroed, for a NaN left there by the last generation would come through the mask.
            memory[row, :, new.shape[1] :] = 0

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


# -------------------------------------------------------------------------------------- prefixes


@dataclass(frozen=True)
class Prefix:
    """A prefilled context: its keys and values per layer, and the logits after its last token."""

    layers: list[tuple[Tensor, Tensor]]  # each (kv_heads, length, dim)
    logits: Tensor  # (vocab,) float32
    length: int


def prefill(model: Any, ids: Ids) -> Prefix:
    """Run one context alone, at its own length: no padding, no neighbour."""
    logits, cache = next_logits(model, ids)
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    return Prefix(layers, logits[0], len(ids))


class Prefixes:
    """Each distinct context is prefilled once, for its first cell, and dropped after its last."""

    def __init__(self, model: Any, contexts: Iterable[Ids]):
        self.model = model
        self.uses_left = Counter(tuple(ids) for ids in contexts)
        self.ready: dict[tuple[int, ...], Prefix] = {}

    def take(self, ids: Ids) -> Prefix:
        """Return the prefix of `ids`, made now if this is its first use."""
        key = tuple(ids)
        prefix = self.ready.pop(key, None) or prefill(self.model, key)
        self.uses_left[key] -= 1
        if self.uses_left[key]:
            self.ready[key] = prefix
        return prefix


# ------------------------------------------------------------------------------------------ rows


class Rows:
    """The rows of one forward: their tokens, positions, keys and values, and next logits.

    The memory of all rows is `window` positions long. On the CPU it follows the row that stands
    furthest: a third of a step goes into reading it. Elsewhere it is as long as a row can get.
    """

    def __init__(self, model: Any, rows: int, longest: int):
        layers, heads, dim = cache_shape(model)
        rows = whole_blocks(rows)
        self.model = model
        self.window = round_up(longest)
        self.lengths = [0] * rows  # how many positions a row has filled; 0 when it is idle
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.growing = torch.zeros_like(self.positions)  # 1 where a row is in use
        shape = (heads, self.window, dim, model.dtype)
        self.layers = [SlotLayer(self.positions, *shape) for _ in range(layers)]
        self.cache = Cache(layers=self.layers)
        self.logits = torch.zeros(rows, text_config(model).vocab_size, device=model.device)
        self.uncaptured = model.device.type in CAPTURED  # until the first step
        self.graph: torch.cuda.CUDAGraph | None = None

    def fill(self, row: int, prefix: Prefix) -> None:
        """Put a prefilled context into a row."""
        self.lengths[row] = prefix.length
        self._move_window()
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            layer.fill(row, keys, values)
        self.positions[row] = prefix.length
        self.growing[row] = 1
        self.logits[row] = prefix.logits

    def copy(self, source: int, target: int) -> None:
        """Give a row the context of another one, as far as that has come."""
        self.lengths[target] = self.lengths[source]
        for layer in self.layers:
            layer.copy(source, target)
        for state in (self.positions, self.growing, self.logits):
            state[target] = state[source]

    def clear(self, row: int) -> None:
        """Leave a row idle: it stays at position 0, and nobody looks at it."""
        self.lengths[row] = 0
        self.positions[row] = 0
        self.growing[row] = 0

    def forward(self, tokens: Tensor) -> None:
        """Append one token to every row: tokens (rows,)."""
        self.grow()
        self.tokens[: len(tokens), 0] = tokens
        if self.uncaptured:
            self.graph, self.uncaptured = capture(self._step), False
        if self.graph:
            self.graph.replay()
        else:
            self._step()
        self.positions.add_(self.growing)

    def grow(self) -> None:
        """Make room for one position more in every row that is in use."""
        self.lengths = [length and length + 1 for length in self.lengths]
        self._move_window()

    def _step(self) -> None:
        self.logits.copy_(self.feed())

    def feed(self) -> Tensor:
        """Feed `tokens` at `positions`; return the logits behind them, (rows, vocab).

        Done again it does the same again; addresses never move.
        """
        reach = torch.arange(self.window, device=self.positions.device)
        hidden = (reach > self.positions[:, None])[:, None, None]
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        logits, _ = cached_forward(
            self.model,
            self.cache,
            input_ids=self.tokens,
            position_ids=self.positions[:, None],
            attention_mask=mask,
        )
        return logits[:, -1]

    def _move_window(self) -> None:
        window = max(STEP, round_up(max(self.lengths)))
        if self.model.device.type in MOVING and window != self.window:
            for layer in self.layers:
                layer.resize(window)
            self.window = window


def whole_blocks(rows: int) -> int:
    """Return the number of rows that a forward of `rows` rows is made with.

    float32 products on CPUs without AVX-512 take rows in blocks of four, and round the rows of a
    last, smaller block otherwise (5 to 11 rows, docs/LOG.md): idle rows fill it.
    """
    return rows if rows <= 4 else -(-rows // 4) * 4


def capture(step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """Return `step` as a CUDA graph, or None where that cannot be.

    `step` must read and write the same memory every time and must not wait for the GPU: LLM.int8
    does (it looks for outliers), so it runs uncaptured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose their kernels and take their workspace
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


# ----------------------------------------------------------------------------------------- slots


class Slots:
    """`slots` generations side by side: the rows of their contexts A, then those of their B."""

    def __init__(self, model: Any, slots: int, longest: int, *, forwards: int = 1):
        self.slots = slots
        self.rows_each = 2 * slots // forwards
        self.batches = [Rows(model, self.rows_each, longest) for _ in range(forwards)]

    def _places(self, slot: int) -> Iterable[tuple[Rows, int]]:
        for row in (slot, self.slots + slot):
            batch, inside = divmod(row, self.rows_each)
            yield self.batches[batch], inside

    def fill(self, slot: int, prefix_a: Prefix, prefix_b: Prefix) -> None:
        """Put two prefilled contexts into a slot."""
        prefixes = (prefix_a, prefix_b)
        for (rows, row), prefix in zip(self._places(slot), prefixes, strict=True):
            rows.fill(row, prefix)

    def copy(self, source: int, target: int) -> None:
        """Give a slot both contexts of another one: from here on they go different ways."""
        for (rows, here), (_, there) in zip(
            self._places(source), self._places(target), strict=True
        ):
            rows.copy(here, there)

    def clear(self, slot: int) -> None:
        """Leave a slot idle."""
        for rows, row in self._places(slot):
            rows.clear(row)

    def forward(self, tokens: Tensor) -> None:
        """Append one token per slot, tokens (slots,), to both of its contexts."""
        for rows, part in zip(self.batches, tokens.repeat(2).split(self.rows_each), strict=True):
            rows.forward(part)

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        """What comes next under A and under B, each (slots, vocab) float32."""
        first, last = self.batches[0].logits, self.batches[-1].logits
        in_b = self.rows_each - self.slots  # where B's rows begin in the last batch
        return first[: self.slots], last[in_b : self.rows_each]


# ---------------------------------------------------------------------------------------- memory


def slot_bytes(model: Any, length: int) -> dict[str, int]:
    """Return what one slot of `length` positions takes, in bytes."""
    vocabulary = text_config(model).vocab_size
    return sizes.slot_bytes(cache_shape(model), vocabulary, length, model.dtype.itemsize)


def text_config(model: Any) -> Any:
    """The configuration of the language model inside `model`."""
    return model.config.get_text_config()


def cache_shape(model: Any) -> tuple[int, int, int]:
    """Layers, key-value heads and head size of a model, under whatever names it keeps them."""
    config = text_config(model)
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    named = {name: getattr(config, name, None) for name in (*names, "head_dim")}
    return sizes.cache_shape(named)
