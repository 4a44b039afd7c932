"""One decode step: append one token to each of many rows in a single forward pass.

On a CPU the step uses packed products, compiled layers, or the model as it is (eager). On a GPU it
runs eagerly or as a captured CUDA graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...errors import BadInput
from ...machine.devices import is_split
from ...machine.sizes import STEP, round_up
from ...models.adapters import gate_of
from ..cpu.compiled import CompiledCache, can_compile, compiled_copy, has_compiler
from ..cpu.packed import can_pack, packed_copy
from ..forward import cached_forward
from .cache import Prefix, SlotLayer, attending, cache_layout

KINDS = ("eager", "packed", "compiled")

# Device types where the rows' memory is resized to what is in use, and those where a step is
# captured as a CUDA graph, which needs memory that never moves.
MOVING = {"cpu"}
CAPTURED = {"cuda"}


def kind_of_step(asked: str, models: Sequence[Any]) -> str:
    """Return the kind of step to use with these weights; `auto` is packed if possible, else eager.

    Raises BadInput when the requested kind is not available for these weights or on this machine.
    """
    packed = all(map(can_pack, models))
    if asked == "auto":
        return "packed" if packed else "eager"
    if asked != "eager" and not packed:
        raise BadInput(
            f"STEP = {asked}: it needs unquantised weights on a CPU with oneDNN, and memory for "
            "two copies of them; allowed here: auto, eager"
        )
    if asked == "compiled" and not (has_compiler() and all(map(can_compile, models))):
        missing = "a model of the usual kind" if has_compiler() else "a C++ compiler, as g++"
        raise BadInput(f"STEP = compiled: it needs {missing}; allowed here: auto, eager, packed")
    return asked


def model_of_step(model: Any, kind: str) -> Any:
    """Return the model in the form that this kind of step runs, built once for given weights.

    It shares the parameters of `model`; if those are changed in place, they are packed again.
    """
    if kind == "eager":
        return model
    weights = tuple(0 if one.is_inference() else one._version for one in model.parameters())
    ready = _ready.setdefault(model, {})
    if ready.get(kind, (None,))[0] != weights:
        ready[kind] = weights, {"packed": packed_copy, "compiled": compiled_copy}[kind](model)
    return ready[kind][1]


_ready: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


class Rows:
    """The rows of one forward pass: their tokens, positions, keys, values and next-token logits.

    All rows have memory for `window` positions. On a CPU the window follows the row that is
    furthest along, because reading the memory takes a third of a step; elsewhere it is the maximum
    length of a row. Rows in use come first, and idle rows are left out of the forward pass where
    that changes no bit. If the model has an adapter with a gate, single rows can bypass the
    adapter.
    """

    def __init__(self, model: Any, logits: Tensor, longest: int, kind: str = "eager"):
        """Allocate rows of up to `longest` positions.

        logits: (rows, vocab) float32, memory that each step overwrites with the rows' next-token
        logits.
        """
        rows, self.logits = len(logits), logits
        self.source, self.model = model, model_of_step(model, kind)
        self.window = round_up(longest)
        self.lengths = [0] * rows  # filled positions of each row; 0 when it is idle
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.growing = torch.zeros_like(self.positions)  # 1 where a row is in use
        self.adapted = torch.ones_like(self.positions, dtype=torch.bool)
        self.layers = [
            SlotLayer(self.positions, shape, self.window, model.dtype)
            for shape in cache_layout(model)
        ]
        compiled = kind == "compiled"
        self.attention = "slots_compiled" if compiled else "slots"
        self.cache = CompiledCache(self.layers) if compiled else Cache(self.layers)
        # Whether the next step is to be captured. Weights that move between devices cannot be.
        self.uncaptured = model.device.type in CAPTURED and not is_split(model)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.fed = rows  # how many rows a step feeds
        self.fewer = fewer_rows(rows) if can_be_fewer(model, kind) else []
        # By number of rows fed: whether their logits have the same bits as when all rows are fed.
        self.same_bits: dict[int, bool] = {}

    def reads(self, model: Any) -> bool:
        """Whether rows of this model can be among these."""
        gate = gate_of(self.source)
        return model is self.source or (gate is not None and model is gate.base)

    def fill(self, prefix: Prefix) -> int:
        """Put a prefilled context into an idle row; return the row's number."""
        row = self._begin(prefix.length)
        self.adapted[row] = prefix.model is self.source
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            layer.fill(row, keys, values, prefix.length)
        self.positions[row] = prefix.length
        self.growing[row] = 1
        self.logits[row] = prefix.logits
        return row

    def copy(self, source: int) -> int:
        """Copy the context of a row, as long as it is now, into an idle row; return the new row."""
        row = self._begin(self.lengths[source])
        for layer in self.layers:
            layer.copy(source, row)
        for state in (self.positions, self.growing, self.logits, self.adapted):
            state[row] = state[source]
        return row

    def clear(self, row: int) -> None:
        """Mark a row as idle: it stays at position 0, and its logits are ignored."""
        self.lengths[row] = 0
        self.positions[row] = 0
        self.growing[row] = 0

    def close_gaps(self) -> dict[int, int]:
        """Move the last rows into idle ones before them if fewer can then be fed: {from: to}."""
        used = [row for row, length in enumerate(self.lengths) if length]
        enough = next((n for n in self._allowed() if n >= len(used)), len(self.lengths))
        moved = {}
        for row in used:
            if row >= enough:
                moved[row] = self.copy(row)
                self.clear(row)
        return moved

    def forward(self, tokens: Tensor) -> None:
        """Append one token to every row: tokens (rows,) int64."""
        self.grow()
        self.tokens[: len(tokens), 0] = tokens
        if self.graph:
            self.graph.replay()
        else:
            # Outside steps the model keeps its own attention, which prefill uses.
            with attending(self.model, self.attention):
                self._feed_few()
                self._first_or_eager()
        self.positions.add_(self.growing)

    def _begin(self, length: int) -> int:
        row = self.lengths.index(0)
        self.lengths[row] = length
        self._move_window()
        return row

    def _allowed(self) -> list[int]:
        return [number for number in self.fewer if self.same_bits.get(number, True)]

    def _feed_few(self) -> None:
        """Set `fed` to the smallest number that covers the rows in use and gives the same bits.

        Whether a row's bits depend on the number of rows is up to the processor and its libraries.
        So each number is tried once against feeding all rows.
        """
        used = [row for row, length in enumerate(self.lengths) if length] or [0]
        for number in self._allowed():
            if number > used[-1]:
                if number not in self.same_bits:
                    self.fed = len(self.lengths)
                    whole = self.feed()[used]
                    self.fed = number
                    self.same_bits[number] = torch.equal(self.feed()[used], whole)
                if self.same_bits[number]:
                    self.fed = number
                    return
        self.fed = len(self.lengths)

    def _first_or_eager(self) -> None:
        if self.uncaptured:
            self.graph, self.uncaptured = capture(self._step), False
        if self.graph:
            self.graph.replay()
        else:
            self._step()

    def grow(self) -> None:
        """Make room for one more position in every row in use."""
        self.lengths = [length and length + 1 for length in self.lengths]
        self._move_window()

    def _step(self) -> None:
        self.logits[: self.fed].copy_(self.feed())

    def feed(self) -> Tensor:
        """Feed `tokens` at `positions`; return the logits that follow, (fed rows, vocab).

        Repeating the call repeats the same computation at the same memory addresses.
        """
        tokens, positions = self.tokens[: self.fed], self.positions[: self.fed, None]
        reach = torch.arange(self.window, device=positions.device)
        hidden = (reach > positions)[:, None, None]
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        gate = gate_of(self.model)
        with (
            self.cache.attended() if isinstance(self.cache, CompiledCache) else nullcontext(),
            gate.open_to(self.adapted[: self.fed]) if gate else nullcontext(),
        ):
            logits, _ = cached_forward(
                self.model,
                self.cache,
                input_ids=tokens,
                position_ids=positions,
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
    """Return the configuration of the language model inside `model`."""
    return model.config.get_text_config()


def whole_blocks(rows: int) -> int:
    """Return the number of rows that a forward pass of `rows` rows is padded to.

    On CPUs without AVX-512, float32 products process rows in blocks of four and round the rows of a
    smaller last block differently (5 to 11 rows, docs/LOG.md), so idle rows fill that block.
    """
    return rows if rows <= 4 else -(-rows // 4) * 4


def fewer_rows(rows: int) -> list[int]:
    """Return the numbers of rows that may be fed while the others are idle, ascending: quarters."""
    return sorted({whole_blocks(rows * part // 4) for part in (1, 2, 3)} - {0, 1, rows})


def can_be_fewer(model: Any, kind: str) -> bool:
    """Whether a step may feed fewer rows than there are.

    It may not on a GPU, whose graph contains all rows; with quantised weights, where the rows of a
    forward pass can influence each other; or with compiled layers, which would have to be compiled
    again.
    """
    fixed = kind == "compiled" or getattr(model, "is_quantized", False)
    return model.device.type == "cpu" and not fixed


def capture(step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """Return `step` as a CUDA graph, or None where it cannot be captured.

    `step` must read and write the same memory every time and must not wait for the GPU. LLM.int8
    does wait (it looks for outliers), so it runs uncaptured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # warm-up: libraries choose kernels and allocate workspace
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
