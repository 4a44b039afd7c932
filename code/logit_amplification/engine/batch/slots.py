"""A fixed number of slots, each holding the rows (one per stream) of one generation.

Each step is one forward pass over all rows that are read with the same weights (or one per stream).
Every row has its own position and writes its keys and values there; no row attends to another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...machine import sizes
from ...models.adapters import gate_of, without_adapter
from .cache import Prefix, cache_layout
from .step import Rows, text_config, whole_blocks


class Slots:
    """`slots` generations side by side; each slot has one row for each of `models`.

    A stream takes a row that reads with its weights. Identical streams in a slot (as in a null
    pair) share one row.
    """

    def __init__(
        self,
        models: Sequence[Any],
        slots: int,
        longest: int,
        *,
        streams: int | None = None,
        together: bool = True,
        kind: str = "eager",
    ):
        """Allocate the rows. together: rows that share weights also share a forward pass.

        models: the weights of the rows in each slot. A model with and one without its adapter share
        weights if the adapter has a gate. longest: the maximum number of positions per row.
        streams: the number per slot, by default one for each of the models. kind: the kind of step.
        """
        self.slots = slots
        groups: dict[Any, list[Any]] = {}  # the models that share each forward pass
        for place, model in enumerate(models):
            groups.setdefault(id(without_adapter(model)) if together else place, []).append(model)
        counts = [whole_blocks(slots * len(sharing)) for sharing in groups.values()]
        # Rows are numbered through all forward passes; each pass starts at its offset.
        self.offsets = [sum(counts[:place]) for place in range(len(counts))]
        device = models[0].device
        self.all_logits = torch.zeros(sum(counts), text_config(models[0]).vocab_size, device=device)
        self.batches = []
        for sharing, logits in zip(groups.values(), self.all_logits.split(counts), strict=True):
            adapted = next((model for model in sharing if gate_of(model)), sharing[0])
            self.batches.append(Rows(adapted, logits, longest, kind))
        self.at = torch.zeros(streams or len(models), slots, dtype=torch.long, device=device)
        self.slot_of = torch.zeros(sum(counts), dtype=torch.long, device=device)

    def fill(self, slot: int, prefixes: Sequence[Prefix]) -> None:
        """Put one prefilled context per stream into a slot."""
        used: set[int] = set()

        def put(prefix: Prefix) -> int:
            fitting = [n for n, rows in enumerate(self.batches) if rows.reads(prefix.model)]
            # With separate forward passes, each stream of a slot goes to a pass of its own,
            # preferably its own model's: a pass with an adapter can also read without it, but not
            # the other way round.
            own = [self.batches[n].source is prefix.model for n in range(len(self.batches))]
            place = min(fitting, key=lambda n: (n in used, not own[n]))
            used.add(place)
            return self.offsets[place] + self.batches[place].fill(prefix)

        self._occupy(slot, prefixes, put)

    def copy(self, source: int, target: int) -> None:
        """Copy the contexts of a slot to another one; from there on the two continue separately."""

        def put(row: int) -> int:
            rows, offset = self._home(row)
            return offset + rows.copy(row - offset)

        self._occupy(target, self.at[:, source].tolist(), put)

    def _occupy(self, slot: int, contexts: Sequence[Any], put: Callable[[Any], int]) -> None:
        made: dict[Any, int] = {}
        for stream, context in enumerate(contexts):
            # Equal contexts are the same object, or the same row number.
            key = context if isinstance(context, int) else id(context)
            if key not in made:
                made[key] = put(context)
                self.slot_of[made[key]] = slot
            self.at[stream, slot] = made[key]

    def _home(self, row: int) -> tuple[Rows, int]:
        """Return the `Rows` that a row belongs to, and the number of its first row."""
        place = max(n for n, offset in enumerate(self.offsets) if offset <= row)
        return self.batches[place], self.offsets[place]

    def clear(self, slot: int) -> None:
        """Mark a slot as idle."""
        for row in self.at[:, slot].tolist():
            rows, offset = self._home(row)
            rows.clear(row - offset)

    def forward(self, tokens: Tensor) -> None:
        """Append one token per slot, tokens (slots,) int64, to all of its streams."""
        for rows, offset in zip(self.batches, self.offsets, strict=True):
            for source, target in rows.close_gaps().items():
                self.slot_of[offset + target] = self.slot_of[offset + source]
                self.at.masked_fill_(self.at == offset + source, offset + target)
            rows.forward(tokens[self.slot_of[offset : offset + len(rows.lengths)]])

    def logits(self, slots: slice | int = slice(None)) -> tuple[Tensor, ...]:
        """Return the next-token logits of these slots: for each stream, (slots, vocab) float32."""
        return tuple(self.all_logits[at[slots]] for at in self.at)


def slot_bytes(models: Sequence[Any], length: int) -> dict[str, int]:
    """Return the memory of one slot of `length` positions in bytes: one row for each of the models.

    The keys are `keys_and_values` and `logits`.
    """
    held = 0
    for model in models:
        widths = sum(s.heads * (s.key_width + s.value_width) for s in cache_layout(model))
        held += sizes.round_up(length) * widths * model.dtype.itemsize
    vocabulary = text_config(models[0]).vocab_size
    return {"keys_and_values": held, "logits": sizes.LOGITS_ROWS * 4 * vocabulary}
