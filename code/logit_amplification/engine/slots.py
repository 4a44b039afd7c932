"""A fixed number of slots: in each, the rows of one generation's streams, side by side.

Every step is one forward of all rows that are read with the same weights (or one for each stream).
Each row has its own position and writes its keys and values there; no row sees another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import sizes
from .cache import Prefix, cache_layout
from .step import Rows, text_config


class Slots:
    """`slots` generations side by side; stream n of all of them is read with `models[n]`.

    Streams of one slot that are the same (a null pair's) are one row.
    """

    def __init__(
        self,
        models: Sequence[Any],
        slots: int,
        longest: int,
        *,
        together: bool = True,
        kind: str = "eager",
    ):
        """Take a model per stream; together: those of one model are the rows of one forward."""
        self.slots = slots
        groups: dict[Any, list[int]] = {}  # the streams of each forward
        for stream, model in enumerate(models):
            groups.setdefault(id(model) if together else stream, []).append(stream)
        self.batches = []
        self.rows: list[Rows] = [None] * len(models)  # of each stream
        for streams in groups.values():
            rows = Rows(models[streams[0]], slots * len(streams), longest, kind)
            self.batches.append((rows, streams))
            for stream in streams:
                self.rows[stream] = rows
        device = models[0].device
        self.at = torch.zeros(len(models), slots, dtype=torch.long, device=device)
        self.slot_of = {id(rows): torch.zeros_like(rows.positions) for rows, _ in self.batches}

    def fill(self, slot: int, prefixes: Sequence[Prefix]) -> None:
        """Put a prefilled context per stream into a slot."""
        self._occupy(slot, prefixes, Rows.fill)

    def copy(self, source: int, target: int) -> None:
        """Give a slot the contexts of another one: from here on they go different ways."""
        self._occupy(target, self.at[:, source].tolist(), Rows.copy)

    def _occupy(self, slot: int, contexts: Sequence[Any], put: Callable[[Rows, Any], int]) -> None:
        made: dict[Any, int] = {}
        for stream, (rows, context) in enumerate(zip(self.rows, contexts, strict=True)):
            # Equal contexts are one object, or one row.
            key = id(rows), context if isinstance(context, int) else id(context)
            if key not in made:
                made[key] = put(rows, context)
                self.slot_of[id(rows)][made[key]] = slot
            self.at[stream, slot] = made[key]

    def clear(self, slot: int) -> None:
        """Leave a slot idle."""
        for rows, row in zip(self.rows, self.at[:, slot].tolist(), strict=True):
            rows.clear(row)

    def forward(self, tokens: Tensor) -> None:
        """Append one token per slot, tokens (slots,), to all of its streams."""
        for rows, streams in self.batches:
            slot_of = self.slot_of[id(rows)]
            for source, target in rows.close_gaps().items():
                slot_of[target] = slot_of[source]
                for stream in streams:
                    self.at[stream].masked_fill_(self.at[stream] == source, target)
            rows.forward(tokens[slot_of])

    def logits(self, slots: slice | int = slice(None)) -> tuple[Tensor, ...]:
        """What comes next in each stream of these slots, each (slots, vocab) float32."""
        return tuple(rows.logits[at[slots]] for rows, at in zip(self.rows, self.at, strict=True))


def slot_bytes(models: Sequence[Any], length: int) -> dict[str, int]:
    """Return what one slot of `length` positions takes, in bytes: a row for each of the models."""
    held = 0
    for model in models:
        widths = sum(s.heads * (s.key_width + s.value_width) for s in cache_layout(model))
        held += sizes.round_up(length) * widths * model.dtype.itemsize
    vocabulary = text_config(models[0]).vocab_size
    return {"keys_and_values": held, "logits": sizes.LOGITS_ROWS * 4 * vocabulary}
