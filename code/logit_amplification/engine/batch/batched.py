"""The default engine: all pairs, alphas, samples and arms are decoded in one batch of slots.

When a generation ends, the next cell takes its slot immediately; the last, partly empty batch keeps
its shape. The engine works on token ids, not text.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ..cpu.threads import Threads
from ..interface import MODEL, Cell, Contrast, Generation, Request
from .cache import Prefixes
from .drawing import ROWS_AT_ONCE, append_row, draw_rows, most_likeliest, row_width
from .self_check import refuse_if_unlike
from .slots import Slots
from .step import kind_of_step

# Raise this with every change that can alter a token or a measure: it is part of a run's name.
VERSION = 6


def described(forwards: int, step: str) -> dict[str, Any]:
    """Return what `BatchedEngine.describe` would return, without building an engine."""
    return {"name": "batched", "version": VERSION, "forwards": forwards, "step": step}


class BatchedEngine:
    """Decodes all pairs, alphas, samples and arms together in one batch of slots.

    model: the weights, or a mapping from source names to weights that share a vocabulary and a
    device. slots: the number of generations decoded side by side. forwards: 1 runs all rows that
    share weights in one forward pass, 2 runs each stream separately. step: `auto`, `eager`,
    `packed` or `compiled` (see `kind_of_step`). When the device runs out of memory, finished
    generations are kept, the other cells are decoded with half as many slots, and on_out_of_memory
    is called with the new number. Raises BadInput if a model cannot be decoded in slots, or cannot
    run the requested kind of step.
    """

    def __init__(
        self,
        model: Any,
        slots: int = 16,
        *,
        forwards: int = 1,
        step: str = "auto",
        on_out_of_memory: Callable[[int], None] = lambda slots: None,
    ):
        self.sources = model if isinstance(model, Mapping) else {MODEL: model}
        self.slots, self.forwards = slots, forwards
        self.on_out_of_memory = on_out_of_memory
        self.threads: Threads | None = None  # of the last `generate`, on a CPU
        self.kind = kind_of_step(step, tuple(self.sources.values()))
        for source in self.sources.values():
            refuse_if_unlike(source, self.kind)

    def describe(self) -> dict[str, Any]:
        """Return what can change a token in this engine."""
        return described(self.forwards, self.kind)

    def capacity(self) -> int:
        """Return how many cells are decoded side by side."""
        return self.slots

    def generate(
        self, cells: Iterable[Cell | None], contexts: Mapping[str, Contrast], request: Request
    ) -> Iterator[Generation]:
        """Yield each cell's generation as soon as it is finished.

        Cells are taken as slots come free; a None means that none is available now. The longest
        context at the start determines the length of the slots. A cell whose logits become NaN or
        infinite ends with finish_reason `error`. Raises BadInput when not even one slot fits in
        memory, and when the rule does not return valid logits.
        """
        pending = Pending(cells)
        device = next(iter(self.sources.values())).device
        self.threads = Threads() if device.type == "cpu" else None
        while pending:
            batch = None
            try:
                batch = Batch(self, contexts, request)
                yield from self._run(batch, pending, request)
            except torch.OutOfMemoryError:
                pending.put_back(batch.unfinished() if batch else [])
                self.slots = _half(self.slots, device)
                self.on_out_of_memory(self.slots)
            batch = None  # frees its memory before the next attempt
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def _run(self, batch: Batch, pending: Pending, request: Request) -> Iterator[Generation]:
        while True:
            with torch.inference_mode():
                if not batch.refill(pending):
                    return
                drawn = len(batch.active)
                with self.threads.at_work() if self.threads else nullcontext():
                    finished = batch.step()
            yield from finished
            # Last, because it may raise: what is finished has been yielded by then.
            request.on_step(drawn)


class Pending:
    """The cells still to be made: taken one by one, and some of them put back in front."""

    def __init__(self, cells: Iterable[Cell | None]):
        self.cells, self.front = iter(cells), deque()

    def __bool__(self) -> bool:
        if not self.front:
            self.front.extend(cell for cell in islice(self.cells, 1) if cell is not None)
        return bool(self.front)

    def take(self) -> Cell:
        """Return the next cell; call it only when this object is true."""
        return self.front.popleft()

    def put_back(self, cells: Sequence[Cell]) -> None:
        """Put cells in front of all others."""
        self.front.extendleft(reversed(cells))


class Batch:
    """The slots, and for each slot its generation, request, alpha, arm and random numbers."""

    def __init__(self, engine: BatchedEngine, contexts: Mapping[str, Contrast], request: Request):
        self.contexts, self.request, self.sources = contexts, request, engine.sources
        models = rows_of_a_slot(engine.sources, contexts.values())
        device, slots, new_tokens = models[0].device, engine.slots, request.max_new_tokens
        longest = max(
            len(stream.ids) + request.of_pair.get(name, request).max_new_tokens
            for name, contrast in contexts.items()
            for stream in contrast.streams
        )
        self.prefixes = Prefixes(most=slots * len(models))
        self.slots = Slots(
            models,
            slots,
            longest,
            streams=_streams(contexts),
            together=engine.forwards == 1,
            kind=engine.kind,
        )
        self.active: dict[int, Generation] = {}
        at_once = ROWS_AT_ONCE.get(device.type, slots)
        self.parts = [slice(first, first + at_once) for first in range(0, slots, at_once)]
        self.arms: list[str | None] = [None] * slots  # None: idle
        self.requests = [request] * slots
        self.alphas = torch.zeros(slots, 1, device=device)
        self.tokens = torch.zeros(slots, dtype=torch.long, device=device)
        self.made = torch.zeros(slots, 1, dtype=torch.long, device=device)
        wide = "cpu" if device.type == "mps" else device  # Apple's GPU has no float64
        self.numbers = torch.zeros(slots, new_tokens, dtype=torch.float64, device=wide)

    def refill(self, pending: Pending) -> bool:
        """Put the next cells into the idle slots; return whether any slot is in use."""
        for slot, arm in enumerate(self.arms):
            if arm is None and pending:
                cell = pending.take()
                # Before `_fill`, which may run out of memory: `unfinished` then has the cell.
                self.active[slot] = Generation(cell, slots=len(self.arms))
                self._fill(slot, cell)
        return bool(self.active)

    def draw(self) -> list[Generation]:
        """Draw the next token of every slot; return the generations that this finishes."""
        rows = self._draw().tolist()
        finished = []
        for slot, generation in list(self.active.items()):
            append_row(generation, rows[slot], self.requests[slot])
            if generation.finish_reason:
                finished.append(self.active.pop(slot))
                self.slots.clear(slot)
                self.arms[slot] = None
        return finished

    def step(self) -> list[Generation]:
        """Draw a token in every slot and append it; return the generations that this finishes."""
        finished = self.draw()
        if self.active:
            self.slots.forward(self.tokens)
        return finished

    def unfinished(self) -> list[Cell]:
        """Return the cells in the slots, which have to be made again."""
        return [generation.cell for generation in self.active.values()]

    def _fill(self, slot: int, cell: Cell) -> None:
        streams = self.contexts[cell.pair_id].streams
        taken = [self.prefixes.take(one, self.sources[one.source]) for one in streams]
        self.slots.fill(slot, taken)
        self.requests[slot] = self.request.of_cell(cell)
        numbers = self.requests[slot].uniforms(cell)
        self.numbers[slot, : len(numbers)] = numbers
        self.alphas[slot] = cell.alpha
        self.arms[slot] = cell.arm
        self.made[slot] = 0

    def _draw(self) -> Tensor:
        """Return the output of `draw_rows` for every slot, (slots, width); ignore idle slots."""
        numbers = self.numbers.gather(1, self.made.to(self.numbers.device))[:, 0]
        # The clamp is for idle slots: they keep using the last number.
        self.made.add_(1).clamp_(max=self.request.max_new_tokens - 1)
        requests = [self.requests[slot] for slot in self.active]
        most = most_likeliest(requests)
        rows = torch.zeros(len(self.tokens), row_width(most), device=self.tokens.device)
        for part in self.parts:
            if any(self.arms[part]):
                self.tokens[part], rows[part] = draw_rows(
                    self.slots.logits(part),
                    [arm or "full" for arm in self.arms[part]],
                    self.alphas[part],
                    numbers[part],
                    self.requests[part],
                    self.request.rule,
                    most,
                )
        return rows


def rows_of_a_slot(sources: Mapping[str, Any], contexts: Iterable[Contrast]) -> list[Any]:
    """Return the weights of the rows that a slot needs to hold any of these contrasts."""
    most: Counter[str] = Counter()
    for contrast in contexts:
        most |= Counter(stream.source for stream in set(contrast.streams))
    return [sources[name] for name in sources for _ in range(most[name])]


def _streams(contexts: Mapping[str, Contrast]) -> int:
    """Return the number of streams per contrast. Raises BadInput when the contrasts disagree."""
    numbers = {len(contrast.streams) for contrast in contexts.values()}
    if len(numbers) > 1:
        raise BadInput("some pairs of a run have a base and some have none; allowed: all or none")
    return numbers.pop()


def _half(slots: int, device: torch.device) -> int:
    if slots == 1:
        raise BadInput(
            f"SLOTS = 1: out of memory on {device}; what may help: shorter prompts, a "
            "smaller MAX_NEW_TOKENS, QUANTIZATION = 8bit or 4bit"
        )
    return slots // 2
