"""Time steps with an adapter on A only: gated, in two forwards, or in PEFT's mixed batch."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from logit_amplification.engine.batch.cache import prefill
from logit_amplification.engine.batch.slots import Slots
from logit_amplification.locations import DEMO, data_folder
from logit_amplification.models.loading import LoadedModel, load_model

from .results import Row
from .subject import formats, in_turns, ratio, spread

SLOTS = 16
STEPS = 16
CONTEXT = 40
GATED, TWO, MIXED, PLAIN = (
    "one forward, gated (ours)",
    "two forwards",
    "one forward, PEFT's adapter_names",
    "one forward, no adapter",
)


def adapters(options: argparse.Namespace) -> list[Row]:
    """Time a step of 16 slots in each way, in interleaved rounds."""
    rows = []
    for dtype in formats():
        folder = data_folder() / "organisms" / "quirk-1-in-50"
        loaded = load_model(DEMO, dtype=dtype, adapter=folder)
        for kind in ("eager", "packed"):
            runs = ways(loaded, kind)
            timed = {n: lambda _, step=step: milliseconds(step) for n, (_, step) in runs.items()}
            found = in_turns(timed, options.repeats)
            rows += [
                {
                    "format": dtype,
                    "step": kind,
                    "way": name,
                    "ms per step of 16 slots": spread(times),
                    "times two forwards": ratio(times, found[TWO]),
                }
                for name, times in found.items()
            ]
    return rows


Way = tuple[Slots, Callable[[], None]]


def ways(loaded: LoadedModel, kind: str) -> dict[str, Way]:
    """Return slots and a step for each way. PEFT's needs unmodified layers, so it is eager only."""
    with_it, without = loaded.sources.values()
    ids = tuple(range(100, 100 + CONTEXT))
    # B has its own context: with the same one and no adapter, a slot would have only one row.
    contexts = (ids, (*ids, 3))

    def step_of(models, **more):
        slots = Slots(models, SLOTS, 4 * CONTEXT, kind=kind, **more)
        prefixes = [prefill(model, own) for model, own in zip(models, contexts, strict=True)]
        for slot in range(SLOTS):
            slots.fill(slot, prefixes)
        return slots, lambda: slots.forward(torch.full((SLOTS,), 5))

    found = {
        GATED: step_of([with_it, without]),
        TWO: step_of([with_it, without], together=False),
        PLAIN: step_of([without, without]),
    }
    if kind == "eager":
        slots, step = step_of([with_it, without])
        found[MIXED] = slots, mixed(slots, step)
    return found


def mixed(slots: Slots, step: Callable[[], None]) -> Callable[[], None]:
    """Return a step that chooses an adapter per row, as PEFT documents it for mixed batches."""
    from peft.tuners.lora import LoraLayer

    rows = slots.batches[0]
    names = ["default" if adapted else "__base__" for adapted in rows.adapted.tolist()]
    layers = [module for module in rows.model.modules() if isinstance(module, LoraLayer)]

    def run() -> None:
        # What PeftModel.forward(adapter_names=...) does, without its wrapper around the model.
        hooks = [
            layer.register_forward_pre_hook(
                lambda module, args, given: (args, given | {"adapter_names": names}),
                with_kwargs=True,
            )
            for layer in layers
        ]
        gate = rows.model.adapter_gate
        del rows.model.adapter_gate  # now PEFT selects the rows
        try:
            step()
        finally:
            rows.model.adapter_gate = gate
            for hook in hooks:
                hook.remove()

    return run


@torch.inference_mode()
def milliseconds(step: Callable[[], None]) -> float:
    """Return the median time of a few steps, in milliseconds."""
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)
