"""The device that a model runs on: which one, in which number format, and its memory."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import psutil
import torch

from ..errors import BadInput
from . import hardware


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the GPU if there is one.

    For `split`, the one that the first layers are on.
    """
    if name == "split":
        if int(os.environ.get("LOCAL_WORLD_SIZE") or 1) > 1:
            raise BadInput("DEVICE = 'split' with several processes on a machine; allowed: auto")
        name = "auto"
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, there in available.items() if there)
        raise BadInput(f"DEVICE = {name!r}: this machine has none; allowed here: auto, {there}")
    return _own_gpu() if name == "cuda" and "LOCAL_RANK" in os.environ else torch.device(name)


def _own_gpu() -> torch.device:
    """The GPU of this process among those that a launcher has started on this machine."""
    number, there = os.environ["LOCAL_RANK"], torch.cuda.device_count()
    # Where a launcher shows each process one GPU alone, that is number 0 for all of them.
    if there == 1 and os.environ.get("LOCAL_WORLD_SIZE", "1") == "1":
        number = "0"
    if number not in map(str, range(there)):
        raise BadInput(
            f"LOCAL_RANK = {number!r} (environment): this machine shows {there} GPUs; allowed: "
            "one process for each, or DEVICE = cpu"
        )
    device = torch.device("cuda", int(number))
    torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format called `name`; `auto` is bfloat16 where the hardware has it."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if mps_has_bfloat16() else torch.float16
    return getattr(torch, hardware.cpu_dtype())


def is_split(model: Any) -> bool:
    """Whether a model's weights are on several devices, or on the disk."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return len(places) > 1 or "disk" in places


def mps_has_bfloat16() -> bool:
    """Whether Apple's GPU multiplies in bfloat16 under this macOS."""
    return torch.backends.mps.is_macos_or_newer(14, 0)


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Return the machine in words: no host name, no paths."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free where the model runs, for this process.

    Processes of one launch on one machine share its memory; each has a GPU of its own.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return hardware.memory().free // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has held: on the GPU if it runs there, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
