"""Estimate from a model's architecture which precisions fit in a device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..machine import hardware, sizes
from .plan import Plan, model_config

QUANTIZATIONS = ("none", "8bit", "4bit")  # best first: docs/METHODOLOGY.md, Precision
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
# Bytes of Python with torch and transformers loaded, and of a GPU's context and workspaces.
PROCESS_BYTES = 900_000_000


class Option(NamedTuple):
    """One precision on one device: the bytes that the sweep needs there, and whether it fits."""

    device: str
    quantization: str
    dtype: str
    weights: int
    keys_and_values: int
    logits: int
    beside: int  # Python, its libraries, the GPU's context
    free: int
    slots: int  # 0: not even one fits

    @property
    def needed(self) -> int:
        """Total bytes needed."""
        return self.weights + self.keys_and_values + self.logits + self.beside

    @property
    def fits(self) -> bool:
        """Whether at least one slot fits, so that generations can be made."""
        return self.slots > 0


def precisions(
    plan: Plan, config: dict, held: hardware.Memory, gpus: list[hardware.Gpu]
) -> Iterator[Option]:
    """Yield every precision, best first, on the GPU with most free memory, then on the CPU.

    `split` comes last: unquantised weights over all devices. Only devices that the plan allows are
    included. Yields nothing if the size of MODEL_B or MODEL_BASE is not known.
    """
    beside = [model_config(other) for other in plan.others]
    if None in beside:
        return
    places = [(gpu.kind, gpu.memory.free, gpu.dtype, QUANTIZATIONS) for gpu in gpus[:1]]
    places.append(("cpu", held.free, hardware.cpu_dtype(), QUANTIZATIONS))
    # `split` uses all devices and then the disk, which is not counted. It cannot be quantised.
    together = held.free + sum(gpu.memory.free for gpu in gpus)
    places.append(("split", together, places[0][2], ("none",)))
    for kind, free, native, quantizations in places:
        if plan.device == kind or (plan.device == "auto" and (kind != "split" or len(gpus) > 1)):
            dtype = native if plan.dtype == "auto" else plan.dtype
            for quantization in quantizations:
                yield option(plan, [config, *beside], kind, free, quantization, dtype)


def option(
    plan: Plan, configs: list[dict], device: str, free: int, quantization: str, dtype: str
) -> Option:
    """Estimate the sweep's memory at one precision on a device with `free` bytes.

    configs: those of the model, of MODEL_B and of MODEL_BASE, as far as they are set.
    """
    itemsize = ITEMSIZE[dtype]
    config, *beside = configs
    weights = sum(sizes.weight_bytes(one, quantization, itemsize) for one in configs)
    weights += _adapter_bytes(plan)
    # One row for A, one for B, which may have its own weights, and one for a base.
    rows_of_a_slot = [config, *([] if plan.model_b else [config]), *beside]
    parts = [
        sizes.slot_bytes(sizes.cache_shape(one), config["vocab_size"], plan.length, itemsize)
        for one in rows_of_a_slot
    ]
    each = dict(parts[0], keys_and_values=sum(part["keys_and_values"] for part in parts) // 2)
    left = max(0, free - weights - PROCESS_BYTES)
    slots = sizes.choose_slots(device, sum(each.values()), left)
    if plan.slots is not None:
        slots = plan.slots if plan.slots * sum(each.values()) <= left else 0
    rows = max(1, slots)
    held = (rows * each["keys_and_values"], rows * each["logits"])
    return Option(device, quantization, dtype, weights, *held, PROCESS_BYTES, free, slots)


def _adapter_bytes(plan: Plan) -> int:
    """Return an adapter's bytes in memory: float32, twice its file, which is mostly 16-bit."""
    files = Path(plan.adapter).expanduser().glob("*.safetensors") if plan.adapter else ()
    return 2 * sum(path.stat().st_size for path in files)


def tips(option: Option) -> str:
    """Return the settings that select an option, as they are written in .env."""
    return f"QUANTIZATION={option.quantization} DEVICE={option.device}"


def gigabytes(count: float) -> str:
    """Format bytes as GB of 10^9 bytes, the unit in which files and weights are counted."""
    return f"{count / 1e9:.1f} GB"
