"""Cells in, generations out: all pairs, alphas, samples and arms together in one batch of slots.

A slot is one generation in the making: a row for context A and a row for context B. Every step is
one forward of all 2 x slots rows; when a generation ends, the next cell takes its slot. Shapes
never change during a run, each row has its own position, and no row sees another: with the same
number of slots a cell comes out the same whatever else is in the batch (docs/METHODOLOGY.md,
"Exactness").

The engine knows token ids, not text.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from .amplification import ARMS, Rule, amplify
from .measures import measure_step
from .models import next_logits
from .sampling import Sampler, uniforms
from .settings import BadInput

Ids = Sequence[int]
MOST_AUTO_SLOTS = 48  # more did not pay on two cores (docs/LOG.md)


@dataclass(frozen=True)
class Cell:
    """One generation to make."""

    pair_id: str
    alpha: float
    sample: int
    arm: str = "full"


@dataclass
class Generation:
    """A cell's tokens and, per token, its measures in the order of `measures.PER_TOKEN`."""

    cell: Cell
    token_ids: list[int] = field(default_factory=list)
    per_token: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None  # "eos" or "length" when finished


# ------------------------------------------------------------------------------------- attention


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
    scores = torch.bmm(query, key.flatten(0, 1).transpose(1, 2)).float() * scaling
    scores = scores.view(rows, kv_heads, heads // kv_heads, -1) + attention_mask
    weights = torch.softmax(scores, -1).to(value.dtype).flatten(0, 1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, dim), None


AttentionInterface.register("slots", slot_attention)


# ----------------------------------------------------------------------------------------- cache


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, kv_heads, length, dim); a row writes where it stands."""

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor):
        super().__init__()
        self.keys, self.values, self.positions = keys, values, positions
        self.rows = torch.arange(len(positions), device=positions.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the memory is there from the start."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write one token per row at its position; return all keys and values."""
        self.keys[self.rows, :, self.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.keys, self.values

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


# ----------------------------------------------------------------------------------------- slots


class Slots:
    """The batch: row `slot` holds context A of a generation, row `slots + slot` its context B."""

    def __init__(self, model: Any, slots: int, length: int):
        layers, heads, dim = _cache_shape(model)
        rows, device = 2 * slots, model.device
        shape = (rows, heads, length, dim)
        self.model, self.slots = model, slots
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.layers = [
            SlotLayer(
                torch.zeros(shape, dtype=model.dtype, device=device),
                torch.zeros(shape, dtype=model.dtype, device=device),
                self.positions,
            )
            for _ in range(layers)
        ]
        self.cache = Cache(layers=self.layers)
        self.rows = torch.arange(rows, device=device)
        self.mask = torch.full((rows, 1, 1, length), -torch.inf, device=device)
        self.logits = torch.zeros(rows, _text_config(model).vocab_size, device=device)
        self.alphas = torch.zeros(slots, 1, device=device)
        self.arms = ["full"] * slots

    def fill(self, slot: int, cell: Cell, prefix_a: Prefix, prefix_b: Prefix) -> None:
        """Put a cell's two prefilled contexts into the rows of `slot`."""
        for row, prefix in ((slot, prefix_a), (self.slots + slot, prefix_b)):
            for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
                # The rest is zeroed: a NaN left there by the last generation would come through.
                for memory, new in ((layer.keys, keys), (layer.values, values)):
                    memory[row, :, : prefix.length] = new
                    memory[row, :, prefix.length :] = 0
            self.positions[row] = prefix.length
            self.mask[row] = -torch.inf
            self.mask[row, :, :, : prefix.length] = 0
            self.logits[row] = prefix.logits
        self.alphas[slot] = cell.alpha
        self.arms[slot] = cell.arm

    def clear(self, slot: int) -> None:
        """Leave a slot idle: its rows go on at position 0, and nobody looks at them."""
        for row in (slot, self.slots + slot):
            self.positions[row] = 0
        self.arms[slot] = "full"

    def amplified(self, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits_a, logits_b, amplified), each (slots, vocab) float32."""
        logits_a, logits_b = self.logits[: self.slots], self.logits[self.slots :]
        if len(set(self.arms)) == 1:
            return logits_a, logits_b, ARMS[self.arms[0]](rule, logits_a, logits_b, self.alphas)
        amplified = torch.empty_like(logits_a)
        for arm in set(self.arms):
            rows = [slot for slot, name in enumerate(self.arms) if name == arm]
            amplified[rows] = ARMS[arm](rule, logits_a[rows], logits_b[rows], self.alphas[rows])
        return logits_a, logits_b, amplified

    def forward(self, tokens: Tensor) -> None:
        """Append one token per slot to both of its contexts."""
        self.mask[self.rows, 0, 0, self.positions] = 0
        output = self.model(
            input_ids=tokens.repeat(2)[:, None],
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            attention_mask=self.mask,
            use_cache=True,
        )
        self.logits = output.logits[:, -1].float()
        self.positions += 1
        self.positions.clamp_(max=self.mask.shape[-1] - 1)  # idle rows stay inside


# ---------------------------------------------------------------------------------------- engine


@torch.inference_mode()
def generate(
    model: Any,
    cells: Iterable[Cell],
    contexts: Mapping[str, tuple[Ids, Ids]],
    *,
    sampler: Sampler,
    seed: int,
    max_new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    rule: Rule = amplify,
    slots: int = 16,
    on_step: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Generation]:
    """Yield each cell's generation as soon as it is finished.

    contexts maps a pair's id to the token ids of its A and B. The memory of a row is as long as the
    longest context of *all* pairs and its answer, so that leaving cells out changes no shape.
    `on_step` is told how many tokens each step has made.
    """
    pending = deque(cells)
    if not pending:
        return
    length = max(len(ids) for pair in contexts.values() for ids in pair) + max_new_tokens
    prefixes = Prefixes(model, (ids for cell in pending for ids in contexts[cell.pair_id]))
    batch = Slots(model, slots, -(-length // 16) * 16)
    active: dict[int, Generation] = {}
    numbers = torch.zeros(slots, max_new_tokens, dtype=torch.float64)
    attention = model.config._attn_implementation
    model.set_attn_implementation("slots")
    try:
        while True:
            for slot in range(slots):
                if slot not in active and pending:
                    cell = pending.popleft()
                    prefix_a, prefix_b = map(prefixes.take, contexts[cell.pair_id])
                    batch.fill(slot, cell, prefix_a, prefix_b)
                    numbers[slot] = uniforms(seed, cell.pair_id, cell.sample, max_new_tokens)
                    active[slot] = Generation(cell)
            if not active:
                return
            logits_a, logits_b, amplified = batch.amplified(rule)
            _check(amplified, logits_a, active)
            steps = [len(active[s].token_ids) if s in active else 0 for s in range(slots)]
            tokens = sampler(amplified, numbers[torch.arange(slots), steps])
            measured = measure_step(logits_a, logits_b, amplified, tokens).tolist()
            on_step(len(active))
            finished = []
            for slot, token in enumerate(tokens.tolist()):
                if slot in active:
                    generation = active[slot]
                    generation.token_ids.append(token)
                    generation.per_token.append(measured[slot])
                    if token in stop_ids:
                        generation.finish_reason = "eos"
                    elif len(generation.token_ids) == max_new_tokens:
                        generation.finish_reason = "length"
                    if generation.finish_reason:
                        finished.append(active.pop(slot))
                        batch.clear(slot)
            yield from finished
            if active:
                batch.forward(tokens)
    finally:
        model.set_attn_implementation(attention)


def _check(amplified: Any, logits: Tensor, active: Mapping[int, Generation]) -> None:
    """Hold what a rule edited in the notebook returns to logits that a token can be drawn from."""
    if not isinstance(amplified, Tensor) or amplified.shape != logits.shape:
        got = tuple(amplified.shape) if isinstance(amplified, Tensor) else type(amplified).__name__
        raise BadInput(
            f"the rule returned {got}; it must return logits of shape {tuple(logits.shape)}"
        )
    if amplified.dtype != torch.float32:
        raise BadInput(f"the rule returned {amplified.dtype}; it must return torch.float32")
    usable = amplified.amax(-1).isfinite().tolist()
    if bad := [active[slot].cell for slot in active if not usable[slot]]:
        raise BadInput(f"the logits became NaN or infinite at {bad[0]}; they must stay finite")


def choose_slots(model: Any, length: int, free_bytes: int) -> int:
    """Return how many slots of `length` positions fit into half of `free_bytes`, at most 48.

    A slot takes two rows of keys and values in every layer, and some 12 float32 rows of logits
    (A, B, amplified, their probabilities and what the measures hold for a moment).
    """
    position = 2 * math.prod(_cache_shape(model)) * model.dtype.itemsize
    slot = 2 * length * position + 12 * 4 * _text_config(model).vocab_size
    return max(1, min(MOST_AUTO_SLOTS, free_bytes // 2 // slot))


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _cache_shape(model: Any) -> tuple[int, int, int]:
    """Layers, key-value heads and head size of a model."""
    config = _text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, dim
