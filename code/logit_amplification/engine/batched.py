"""Cells in, generations out: all pairs, alphas, samples and arms together in one batch of slots.

When a generation ends, the next cell takes its slot at once; the last, half-empty batch keeps its
shape. The engine knows token ids, not text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from ..logits.amplification import Rule, amplify
from ..logits.arms import ARMS
from ..logits.measures import PER_TOKEN, measure_step
from ..logits.sampling import Sampler, uniforms
from .slots import Ids, Prefixes, Slots, attending_in_slots

# To be raised with every change that can change a token or a measure: it is part of a run's name.
VERSION = 3
# Rows that rule, draw and measures take at once. On a CPU what lies between them stays in its cache
# (docs/LOG.md); a GPU wants all of them.
ROWS_AT_ONCE = {"cpu": 8}
LARGEST = PER_TOKEN.index("logit_max")


@dataclass(frozen=True)
class Cell:
    """One generation to make."""

    pair_id: str
    alpha: float
    sample: int
    arm: str = "full"
    origin: str = ""  # the pair whose random numbers it shares, if not its own


@dataclass
class Generation:
    """A cell's tokens and, per token, its measures in the order of `measures.PER_TOKEN`."""

    cell: Cell
    slots: int  # how many were decoded side by side
    token_ids: list[int] = field(default_factory=list)
    per_token: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None  # "eos", "length" or "error" when finished
    error: str | None = None  # why it ended with "error"; the other cells go on


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
    forwards: int = 1,
    on_step: Callable[[int], None] = lambda tokens: None,
    on_out_of_memory: Callable[[int], None] = lambda slots: None,
) -> Iterator[Generation]:
    """Yield each cell's generation as soon as it is finished.

    contexts maps a pair's id to the token ids of its A and B. forwards: 1 runs A's and B's rows
    together, 2 apart. on_step is told how many tokens each step has made. When the device runs out
    of memory, what is finished stays finished, the other cells are made with half as many slots,
    and on_out_of_memory is told how many. A cell whose logits become NaN or infinite ends with
    finish_reason `error`. Raises BadInput when one slot is too many, and when the rule returns
    something else than logits.
    """
    pending = deque(cells)
    with attending_in_slots(model):
        while pending:
            batch = None
            try:
                batch = Batch(model, pending, contexts, slots, forwards, max_new_tokens, seed)
                while batch.refill(pending):
                    drawn = len(batch.active)
                    finished = batch.draw(rule, sampler, stop_ids)
                    on_step(drawn)
                    yield from finished
                    batch.forward()
            except torch.OutOfMemoryError:
                pending.extendleft(reversed(batch.unfinished() if batch else []))
                slots = _half(slots, model)
                on_out_of_memory(slots)
            batch = None  # its memory is free before the next attempt
            if model.device.type == "cuda":
                torch.cuda.empty_cache()


def cell_uniforms(cell: Cell, seed: int, count: int) -> Tensor:
    """Return the random numbers of a cell, the same for every alpha and arm (`uniforms`)."""
    return uniforms(seed, cell.origin or cell.pair_id, cell.sample, count)


class Batch:
    """The slots, and the generations in them: what each is being given, and what it has."""

    def __init__(
        self,
        model: Any,
        cells: Iterable[Cell],
        contexts: Mapping[str, tuple[Ids, Ids]],
        slots: int,
        forwards: int,
        max_new_tokens: int,
        seed: int,
    ):
        device = model.device
        longest = max(len(ids) for pair in contexts.values() for ids in pair) + max_new_tokens
        self.contexts, self.new_tokens, self.seed = contexts, max_new_tokens, seed
        self.prefixes = Prefixes(model, (ids for c in cells for ids in contexts[c.pair_id]))
        self.slots = Slots(model, slots, longest, forwards=forwards)
        self.active: dict[int, Generation] = {}
        at_once = ROWS_AT_ONCE.get(device.type, slots)
        self.parts = [slice(first, first + at_once) for first in range(0, slots, at_once)]
        self.arms: list[str | None] = [None] * slots  # None: idle
        self.alphas = torch.zeros(slots, 1, device=device)
        self.tokens = torch.zeros(slots, dtype=torch.long, device=device)
        self.made = torch.zeros(slots, 1, dtype=torch.long, device=device)
        wide = "cpu" if device.type == "mps" else device  # Apple's GPU has no float64
        self.numbers = torch.zeros(slots, max_new_tokens, dtype=torch.float64, device=wide)

    def refill(self, pending: deque[Cell]) -> bool:
        """Put the next cells into the idle slots; return whether any slot is in use."""
        for slot, arm in enumerate(self.arms):
            if arm is None and pending:
                self._fill(slot, pending[0])
                self.active[slot] = Generation(pending.popleft(), slots=len(self.arms))
        return bool(self.active)

    def draw(self, rule: Rule, sampler: Sampler, stop_ids: frozenset[int]) -> list[Generation]:
        """Draw the next token of every slot; return the generations that it finishes."""
        rows = self._draw(rule, sampler).tolist()
        finished = []
        for slot, generation in list(self.active.items()):
            _append(generation, rows[slot], self.new_tokens, stop_ids)
            if generation.finish_reason:
                finished.append(self.active.pop(slot))
                self.slots.clear(slot)
                self.arms[slot] = None
        return finished

    def forward(self) -> None:
        """Append the drawn tokens to both contexts of every slot."""
        if self.active:
            self.slots.forward(self.tokens)

    def unfinished(self) -> list[Cell]:
        """The cells in the slots, which will have to be made again."""
        return [generation.cell for generation in self.active.values()]

    def _fill(self, slot: int, cell: Cell) -> None:
        self.slots.fill(slot, *map(self.prefixes.take, self.contexts[cell.pair_id]))
        self.numbers[slot] = cell_uniforms(cell, self.seed, self.new_tokens)
        self.alphas[slot] = cell.alpha
        self.arms[slot] = cell.arm
        self.made[slot] = 0

    def _draw(self, rule: Rule, sampler: Sampler) -> Tensor:
        """Return (slots, 14) float32, a token's measures and its id; idle rows mean nothing.

        One tensor, so that the GPU is waited for once. Ids below 2^24 are exact in float32.
        """
        numbers = self.numbers.gather(1, self.made.to(self.numbers.device))[:, 0]
        self.made.add_(1).clamp_(max=self.new_tokens - 1)  # idle slots go on with the last number
        logits_a, logits_b = self.slots.logits
        rows = logits_a.new_zeros(len(logits_a), len(PER_TOKEN) + 1)
        for part in self.parts:
            if any(self.arms[part]):
                a, b = logits_a[part], logits_b[part]
                amplified = self._amplified(rule, a, b, part)
                self.tokens[part] = tokens = sampler(amplified, numbers[part])
                rows[part, :-1] = measure_step(a, b, amplified, tokens)
                rows[part, -1] = tokens
        return rows

    def _amplified(self, rule: Rule, logits_a: Tensor, logits_b: Tensor, part: slice) -> Tensor:
        arms = [arm or "full" for arm in self.arms[part]]
        alphas = self.alphas[part]
        if len(set(arms)) == 1:
            return _apply(arms[0], rule, logits_a, logits_b, alphas)
        amplified = torch.empty_like(logits_a)
        for arm in set(arms):
            rows = [row for row, name in enumerate(arms) if name == arm]
            amplified[rows] = _apply(arm, rule, logits_a[rows], logits_b[rows], alphas[rows])
        return amplified


def _append(
    generation: Generation, row: list[float], max_new_tokens: int, stop_ids: frozenset[int]
) -> None:
    *measures, token = row
    if not math.isfinite(measures[LARGEST]):
        number = len(generation.token_ids) + 1
        generation.finish_reason = "error"
        generation.error = f"the amplified logits of token {number} are NaN or infinite"
        return
    generation.token_ids.append(int(token))
    generation.per_token.append(measures)
    if generation.token_ids[-1] in stop_ids:
        generation.finish_reason = "eos"
    elif len(generation.token_ids) == max_new_tokens:
        generation.finish_reason = "length"


def _apply(arm: str, rule: Rule, logits_a: Tensor, logits_b: Tensor, alphas: Tensor) -> Tensor:
    """Amplify, holding a rule that was edited in the notebook to the form of logits."""
    shape = tuple(logits_a.shape)
    try:
        amplified = ARMS[arm](rule, logits_a, logits_b, alphas)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise BadInput(
            f"the rule raised {type(error).__name__}: {error}; it was given logits_a and logits_b "
            f"of shape {shape} and alpha of shape {tuple(alphas.shape)}"
        ) from error
    if not isinstance(amplified, Tensor) or amplified.shape != logits_a.shape:
        got = tuple(amplified.shape) if isinstance(amplified, Tensor) else type(amplified).__name__
        raise BadInput(f"the rule returned {got}; it must return logits of shape {shape}")
    if amplified.dtype != torch.float32:
        raise BadInput(f"the rule returned {amplified.dtype}; it must return torch.float32")
    return amplified


def _half(slots: int, model: Any) -> int:
    if slots == 1:
        raise BadInput(
            f"SLOTS = 1: out of memory on {model.device}; what may help: shorter prompts, a "
            "smaller MAX_NEW_TOKENS, QUANTIZATION = 8bit or 4bit"
        )
    return slots // 2
