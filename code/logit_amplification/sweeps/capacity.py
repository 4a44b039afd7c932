"""Choose the number of slots and the kind of decode step for a sweep on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..engine.batch.batched import rows_of_a_slot
from ..engine.batch.slots import slot_bytes
from ..engine.batch.step import kind_of_step
from ..engine.cpu.compiled import can_compile, has_compiler
from ..engine.interface import Contrast
from ..machine import devices, sizes
from ..models.loading import LoadedModel
from ..records.journal import Kept
from ..settings import Settings

# Plans with this many steps or more are compiled: three times the steps that make up for the
# compile time on two cores (docs/LOG.md).
STEPS_WORTH_COMPILING = 2000


def choose_step(
    model: LoadedModel, settings: Settings, cells: int, is_begun: Callable[[str], bool]
) -> str:
    """Return the kind of step for a plan of `cells` cells.

    is_begun: called with a kind, whether a run with it exists. `auto` compiles if the plan (not
    only what is left of it) is long enough. It never changes the kind of a run that is begun: kinds
    differ by rounding, and the cells of the run would be made again. Raises BadInput when the
    requested kind is not available here.
    """
    if settings.engine == "vllm":
        return "vllm"  # it makes its own steps
    kind = kind_of_step(settings.step, list(model.sources.values()))
    if settings.step != "auto" or kind == "eager" or is_begun(kind):
        return kind
    slots = sizes.MOST_AUTO_SLOTS["cpu"] if settings.slots == "auto" else settings.slots
    steps = cells * settings.max_new_tokens // slots
    if not is_begun("compiled") and steps < STEPS_WORTH_COMPILING:
        return kind
    if not all(map(can_compile, model.sources.values())):
        return kind
    if not has_compiler():
        print(f"{kind} steps: compiled steps need a C++ compiler such as g++, and none was found")
        return kind
    print(f"compiled steps, because this sweep has about {steps}: the first waits for the compiler")
    return "compiled"


def room_for_slots(
    model: LoadedModel, settings: Settings, contrasts: Sequence[Contrast], step: str
) -> dict[str, Any]:
    """Return how many slots there is room for here, and what one takes, in bytes.

    A number given in the settings is used as it is. Keys: number, chosen and halved_to, and except
    for vLLM bytes_per_slot, weights_bytes and free_bytes.
    """
    if settings.engine == "vllm":  # it manages its own memory
        auto = settings.slots == "auto"
        most = sizes.MOST_AUTO_SLOTS[model.device.type]
        number, chosen = (most, "auto") if auto else (settings.slots, "given")
        return {"number": number, "chosen": chosen, "halved_to": []}
    length = longest_context(contrasts) + settings.max_new_tokens
    each = slot_bytes(rows_of_a_slot(model.sources, contrasts), length)
    weights = model.weight_bytes()
    packed = weights if step != "eager" else 0  # the packed copy
    free = max(0, devices.free_memory(model.device) - packed)
    number, chosen = settings.slots, "given"
    if number == "auto":
        fitting = sizes.choose_slots(model.device.type, sum(each.values()), free)
        number, chosen = max(1, fitting), "auto"
    return {
        "number": number,
        "chosen": chosen,
        "bytes_per_slot": each,
        "weights_bytes": weights + packed,
        "free_bytes": free,
        "halved_to": [],
    }


def longest_context(contrasts: Iterable[Contrast]) -> int:
    """Return the number of tokens of the longest stream."""
    return max(len(stream.ids) for contrast in contrasts for stream in contrast.streams)


def choose_slots(rooms: Sequence[dict[str, Any]], found: Iterable[Kept], step: str) -> dict:
    """Return the room of the process that decides for all, and print one line about it.

    rooms: from `room_for_slots`, one per process. `auto` is the smallest number that any of them
    has memory for, but the number that the run was begun with if that is smaller: in 16 bit another
    number of slots rounds differently, and a cell that is made again should come out the same.
    """
    room = min(rooms, key=lambda one: one["number"])
    if room["chosen"] == "auto":
        begun = Counter(kept.record["slots"] for kept in found).most_common(1)
        if begun and begun[0][0] < room["number"]:
            room = room | {"number": begun[0][0], "chosen": "as the run was begun"}
    if "bytes_per_slot" not in room:
        print(f"{room['number']} slots ({room['chosen']}) in vLLM")
        return room
    taken = room["number"] * sum(room["bytes_per_slot"].values())
    print(
        f"{room['number']} slots ({room['chosen']}), {step} steps: {taken / 1e9:.2g} GB for "
        f"keys, values and logits beside {room['weights_bytes'] / 1e9:.2g} GB of weights; "
        f"{room['free_bytes'] / 1e9:.3g} GB are free"
    )
    return room
