"""How many slots a sweep decodes side by side, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..engine.slots import slot_bytes
from ..models import loading, sizes
from ..models.loading import LoadedModel
from ..prompts.pairs import EncodedPair
from ..records.journal import Kept
from ..settings import Settings


def choose_slots(
    model: LoadedModel,
    settings: Settings,
    encoded: Sequence[EncodedPair],
    found: Iterable[Kept],
) -> dict[str, Any]:
    """Return the number of slots and why, for the metadata; print one line about it.

    `auto` is what memory allows, but no other number than the run was begun with if that fits: in
    16 bit another number rounds otherwise, and a cell made again should come out the same.
    """
    longest = max(len(ids) for pair in encoded for ids in (pair.ids_a, pair.ids_b))
    length = longest + settings.max_new_tokens
    each = slot_bytes([model.model] * 2, length)
    free = loading.free_memory(model.device)
    number, chosen = settings.slots, "given"
    if number == "auto":
        fitting = sizes.choose_slots(model.device.type, sum(each.values()), free)
        number, chosen = max(1, fitting), "auto"
        begun = Counter(kept.record["slots"] for kept in found).most_common(1)
        if begun and begun[0][0] < number:
            number, chosen = begun[0][0], "as the run was begun"
    weights = model.model.get_memory_footprint()
    print(
        f"{number} slots ({chosen}): {number * sum(each.values()) / 1e9:.2g} GB for keys, values "
        f"and logits beside {weights / 1e9:.2g} GB of weights; {free / 1e9:.3g} GB are free"
    )
    return {
        "number": number,
        "chosen": chosen,
        "bytes_per_slot": each,
        "weights_bytes": weights,
        "free_bytes": free,
        "halved_to": [],
    }
