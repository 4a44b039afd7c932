"""A fixed number of slots: in each, the rows of one generation's streams, side by side.

Every step is one forward of all rows that are read with the same weights (or one for each stream).
Each row has its own position and writes its keys and values there; no row sees another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..models import sizes
from .cache import Prefix, cache_layout
from .step import Rows, text_config


class _Place(NamedTuple):
    """Where the rows of one stream begin, and in which forward."""

    rows: Rows
    first: int


class Slots:
    """`slots` generations side by side; stream n of all of them is read with `models[n]`."""

    def __init__(self, models: Sequence[Any], slots: int, longest: int, *, together: bool = True):
        """Take a model per stream; together: those of one model are the rows of one forward."""
        self.slots = slots
        groups: dict[Any, list[int]] = {}  # the streams of each forward
        for stream, model in enumerate(models):
            groups.setdefault(id(model) if together else stream, []).append(stream)
        self.batches = []
        places: dict[int, _Place] = {}
        for streams in groups.values():
            rows = Rows(models[streams[0]], slots * len(streams), longest)
            self.batches.append((rows, len(streams)))
            places |= {s: _Place(rows, n * slots) for n, s in enumerate(streams)}
        self.places = [places[stream] for stream in range(len(models))]

    def fill(self, slot: int, prefixes: Iterable[Prefix]) -> None:
        """Put a prefilled context per stream into a slot."""
        for place, prefix in zip(self.places, prefixes, strict=True):
            place.rows.fill(place.first + slot, prefix)

    def copy(self, source: int, target: int) -> None:
        """Give a slot the contexts of another one: from here on they go different ways."""
        for rows, first in self.places:
            rows.copy(first + source, first + target)

    def clear(self, slot: int) -> None:
        """Leave a slot idle."""
        for rows, first in self.places:
            rows.clear(first + slot)

    def forward(self, tokens: Tensor) -> None:
        """Append one token per slot, tokens (slots,), to all of its streams."""
        for rows, streams in self.batches:
            rows.forward(tokens.repeat(streams))

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """What comes next in each stream, each (slots, vocab) float32."""
        return tuple(rows.logits[first : first + self.slots] for rows, first in self.places)


def slot_bytes(models: Sequence[Any], length: int) -> dict[str, int]:
    """Return what one slot of `length` positions takes, in bytes: a row for each of the models."""
    held = 0
    for model in models:
        widths = sum(s.heads * (s.key_width + s.value_width) for s in cache_layout(model))
        held += sizes.round_up(length) * widths * model.dtype.itemsize
    vocabulary = text_config(models[0]).vocab_size
    return {"keys_and_values": held, "logits": sizes.LOGITS_ROWS * 4 * vocabulary}
