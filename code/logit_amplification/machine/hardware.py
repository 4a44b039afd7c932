"""Detect memory, GPUs and native dtypes by asking the operating system alone.

Standard library only, and compatible with Python 3.8, because it runs before anything is installed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
# (limit, usage) of cgroups v2 and v1. Without a limit the file has "max", or a huge number.
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# Metal lets a process use about two thirds of the memory of a small Mac, three quarters of a
# larger one.
METAL_SHARE, METAL_SHARE_ABOVE_36_GIB = 2 / 3, 3 / 4


class Memory(NamedTuple):
    """Total bytes, and the bytes that a new process could use."""

    total: int
    free: int


class Gpu(NamedTuple):
    """A GPU: torch's name for its kind, its own name, its memory, and its native 16-bit dtype."""

    kind: str  # "cuda" (torch's name for AMD GPUs too) or "mps"
    name: str
    memory: Memory
    dtype: str
    compute_capability: float | None = None  # NVIDIA only


def memory() -> Memory:
    """Return the main memory of this machine, or of the container that this process is in."""
    if sys.platform == "darwin":
        found = _mac_memory()
    elif sys.platform == "win32":
        found = _windows_memory()
    else:
        lines = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), flags=re.M))
        found = Memory(1024 * int(lines["MemTotal"]), 1024 * int(lines["MemAvailable"]))
    for limit, used in CGROUP_FILES:
        if _read(limit).strip().isdigit() and int(_read(limit)) < found.total:
            free = int(_read(limit)) - int(_read(used) or 0)
            return Memory(int(_read(limit)), max(0, min(found.free, free)))
    return found


def gpus() -> list[Gpu]:
    """Return the GPUs that torch could use here, those with most free memory first."""
    found = [*_nvidia(), *_amd(), *_apple()]
    return sorted(found, key=lambda gpu: gpu.memory.free, reverse=True)


def cpu_dtype() -> str:
    """Return `bfloat16` if the processor has instructions for it, else `float32`."""
    if sys.platform == "darwin":
        return (
            "bfloat16" if _told("sysctl", "-n", "hw.optional.arm.FEAT_BF16") == "1" else "float32"
        )
    flags = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), flags=re.M)
    native = {"amx_bf16", "avx512_bf16", "bf16"} & set((flags or [""])[0].split())
    return "bfloat16" if native else "float32"


def cpu_name() -> str:
    """Return the name of the processor."""
    if sys.platform == "darwin":
        return _told("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    names = re.findall(r"^model name\s*: (.+)$", _read("/proc/cpuinfo"), flags=re.M)
    return names[0] if names else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------ memory


def _mac_memory() -> Memory:
    pages = _told("vm_stat")
    size = int((re.findall(r"page size of (\d+)", pages) or ["4096"])[0])
    names = "free|inactive|speculative|purgeable"
    free = sum(map(int, re.findall(rf"^Pages (?:{names}):\s+(\d+)", pages, flags=re.M)))
    return Memory(int(_told("sysctl", "-n", "hw.memsize")), size * free)


def _windows_memory() -> Memory:
    # MEMORYSTATUSEX: two 32-bit numbers (its length, the load), then seven 64-bit ones, of which
    # the first two are the total and the free physical memory.
    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return Memory(status[1], status[2])


# -------------------------------------------------------------------------------------------- GPUs


def _nvidia() -> list[Gpu]:
    asked = "--query-gpu=name,memory.total,memory.free,compute_cap,index,uuid"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = []
    for line in _told("nvidia-smi", asked, "--format=csv,noheader,nounits").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 6 and all(re.fullmatch(r"[\d.]+", part) for part in parts[1:5]):
            name, total, free, capability, index, uuid = parts
            shown = [part.strip() for part in (visible or "").split(",") if part.strip()]
            if visible is not None and not any(
                one == index or uuid.startswith(one) for one in shown
            ):
                continue
            native = "bfloat16" if float(capability) >= 8 else "float16"
            held = Memory(int(float(total)) * MIB, int(float(free)) * MIB)
            found.append(Gpu("cuda", name, held, native, float(capability)))
    return found


def _amd(root: str = "/sys/class/drm") -> list[Gpu]:
    found = []
    for card in sorted(Path(root).glob("card[0-9]*/device")):
        total = _read(card / "mem_info_vram_total").strip()
        if _read(card / "vendor").strip() == "0x1002" and total:
            used = int(_read(card / "mem_info_vram_used") or 0)
            name = _read(card / "product_name").strip() or "AMD GPU"
            held = Memory(int(total), int(total) - used)
            found.append(Gpu("cuda", name, held, "bfloat16"))
    return found


def _apple() -> list[Gpu]:
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return []
    held = memory()
    share = METAL_SHARE_ABOVE_36_GIB if held.total > 36 << 30 else METAL_SHARE
    most = int(share * held.total)
    newer = int(platform.mac_ver()[0].split(".")[0] or 0) >= 14
    native = "bfloat16" if newer else "float16"
    return [Gpu("mps", cpu_name(), Memory(most, min(most, held.free)), native)]


# ----------------------------------------------------------------------------------------- reading


def _read(path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _told(*command: str) -> str:
    """Return the output of a system command, or "" if it does not exist or fails."""
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout.decode("utf-8", errors="replace").strip()
