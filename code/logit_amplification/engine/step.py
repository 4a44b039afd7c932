"""One step of many rows: one token more in each, eagerly or as a captured CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..models.sizes import STEP, round_up
from .cache import Prefix, SlotLayer, attending_in_slots, cache_layout
from .forward import cached_forward

# Where a row's memory follows what is in use, and where a step is captured as a CUDA graph, which
# needs memory that never moves.
MOVING = {"cpu"}
CAPTURED = {"cuda"}


class Rows:
    """The rows of one forward: their tokens, positions, keys and values, and next logits.

    The memory of all rows is `window` positions long. On the CPU it follows the row that stands
    furthest: a third of a step goes into reading it. Elsewhere it is as long as a row can get.
    """

    def __init__(self, model: Any, rows: int, longest: int):
        rows = whole_blocks(rows)
        self.model = model
        self.window = round_up(longest)
        self.lengths = [0] * rows  # how many positions a row has filled; 0 when it is idle
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.growing = torch.zeros_like(self.positions)  # 1 where a row is in use
        self.layers = [
            SlotLayer(self.positions, shape, self.window, model.dtype)
            for shape in cache_layout(model)
        ]
        self.cache = Cache(layers=self.layers)
        self.logits = torch.zeros(rows, text_config(model).vocab_size, device=model.device)
        self.uncaptured = model.device.type in CAPTURED  # until the first step
        self.graph: torch.cuda.CUDAGraph | None = None

    def fill(self, row: int, prefix: Prefix) -> None:
        """Put a prefilled context into a row."""
        self.lengths[row] = prefix.length
        self._move_window()
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            layer.fill(row, keys, values, prefix.length)
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
        if self.graph:
            self.graph.replay()
        else:
            # Between steps the model attends in its own way, which contexts are read with.
            with attending_in_slots(self.model):
                self._first_or_eager()
        self.positions.add_(self.growing)

    def _first_or_eager(self) -> None:
        if self.uncaptured:
            self.graph, self.uncaptured = capture(self._step), False
        if self.graph:
            self.graph.replay()
        else:
            self._step()

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


def text_config(model: Any) -> Any:
    """The configuration of the language model inside `model`."""
    return model.config.get_text_config()


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
