"""Choose the device and dtype for a model, and measure the device's memory."""

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
    """Return the device called `name`; `auto` is the GPU if there is one, else the CPU.

    For `split`, where the model is spread over several devices, it is the one with the first
    layers. Under a launcher (LOCAL_RANK is set), each process gets its own GPU. Raises BadInput
    when the machine has no such device.
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
        why = "this machine has none"
        if name == "cuda" and any(gpu.kind == name for gpu in hardware.gpus()):
            why = f"torch {torch.__version__} cannot use the GPU of this machine"
        raise BadInput(f"DEVICE = {name!r}: {why}; allowed here: auto, {there}")
    if name != "cuda":
        return torch.device(name)
    return _own_gpu() if "LOCAL_RANK" in os.environ else _freest_gpu()


def _freest_gpu() -> torch.device:
    """Return the visible GPU with most free memory, which the readiness check counts on."""
    count = torch.cuda.device_count()
    if count < 2:
        return torch.device("cuda")
    device = max(
        (torch.device("cuda", number) for number in range(count)),
        key=lambda one: torch.cuda.mem_get_info(one)[0],
    )
    torch.cuda.set_device(device)
    return device


def _own_gpu() -> torch.device:
    """Return the GPU that belongs to this process of a launch, and make it the current one.

    Raises BadInput when LOCAL_RANK names no GPU that this process can see.
    """
    number, there = os.environ["LOCAL_RANK"], torch.cuda.device_count()
    # Some launchers show each process only its own GPU, which is then number 0 for all of them.
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
    """Return the dtype called `name`.

    `auto` is bfloat16 where the hardware supports it natively, otherwise float16 on a GPU and
    float32 on a CPU.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if mps_has_bfloat16() else torch.float16
    return getattr(torch, hardware.cpu_dtype())


def is_split(model: Any) -> bool:
    """Whether a model's weights are spread over several devices, or partly on disk."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return len(places) > 1 or "disk" in places


def mps_has_bfloat16() -> bool:
    """Whether this version of macOS supports bfloat16 on Apple's GPU."""
    return torch.backends.mps.is_macos_or_newer(14, 0)


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Describe the machine for the metadata, without its host name or any path."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory on `device` that are free for this process.

    Processes of one launch share a machine's main memory, so each gets an equal part of it; each
    has a GPU of its own.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return hardware.memory().free // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def peak_memory(device: torch.device) -> int:
    """Return this process's peak memory in bytes: on the GPU for a CUDA device, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
