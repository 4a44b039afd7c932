"""Measure Mistral 7B's shape with random weights, and estimate its sweep on other machines."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from logit_amplification.engine.batch import slots
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.batch.cache import prefill
from logit_amplification.engine.interface import MODEL, Cell, Contrast, Request, Stream
from logit_amplification.errors import BadInput
from logit_amplification.locations import MISTRAL, ROOT
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.machine import devices, sizes
from logit_amplification.models import loading, weights
from logit_amplification.prompts.files import read_pairs
from logit_amplification.readiness import checks, precision
from logit_amplification.settings import Settings, load_settings

from .results import Row, device_name, read_system
from .subject import in_a_process

# Machines that were not available for measurements: free bytes, and the makers' figures for memory
# bandwidth (bytes per second) and dense 16-bit matrix products (operations per second).
MACHINES = (
    ("MacBook Air M2, 16 GB", "mps", 10.5e9, 100e9, 3.6e12),
    ("RTX 4070, 12 GB", "cuda", 11.8e9, 504e9, 58e12),
    ("RTX 4090, 24 GB", "cuda", 23.5e9, 1008e9, 165e12),
    ("H200, 141 GB", "cuda", 139e9, 4800e9, 989e12),
)
SHAPES = {
    "mistral-7b": sizes.MISTRAL_7B,
    "tiny": sizes.MISTRAL_7B
    | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def folder_of(shape: str) -> Path:
    """Return where the random weights of a shape are kept."""
    return ROOT / ".cache" / f"{shape}-random"


# ------------------------------------------------------------------------------------------- shape


def shape(options: argparse.Namespace) -> list[Row]:
    """Measure load time, step time, memory and share of the memory bandwidth at true size.

    The random weights are written once (14.5 GB in .cache/) and loaded like a model from the hub,
    each precision in its own process.
    """
    if options.shape not in SHAPES or not options.random_weights:
        raise BadInput(f"shape: give --shape {' or '.join(SHAPES)} and --random-weights")
    if not (folder_of(options.shape) / "config.json").exists():
        write_random_mistral(folder_of(options.shape), SHAPES[options.shape])
    widths = options.widths or ([8, 32, 128] if torch.cuda.is_available() else [8])
    rows = []
    for quantization in options.quantization or ("none", "4bit"):
        flags = [f"--quantization={quantization}", f"--steps={options.steps}"]
        flags += [f"--shape={options.shape}", f"--prompt={options.prompt}"]
        flags += ["--widths", *map(str, widths)]
        rows += in_a_process("true-size", *flags)
        print(*rows[-len(widths) :], sep="\n", flush=True)
    return rows


def true_size(options: argparse.Namespace) -> list[Row]:
    """Return the rows of one precision."""
    (quantization,) = options.quantization
    settings = load_settings(
        model=str(folder_of(options.shape)), quantization=quantization, dtype="auto"
    )
    device = devices.choose_device("auto")
    speed = bandwidth(device)
    held = OwnMemory()
    started = time.perf_counter()
    model = loading.load_model(settings).model
    load_seconds, load_peak = time.perf_counter() - started, held.most
    # Unquantised weights on a CPU stay memory-mapped from their file: not private memory.
    own = device.type == "cpu" and quantization != "none"
    weights = model.get_memory_footprint()
    length = sizes.round_up(options.prompt + options.steps)
    two = (range(5, 5 + options.prompt), range(9, 9 + options.prompt))
    contexts = {"p": Contrast(*(Stream(tuple(ids)) for ids in two))}
    rows = []
    for number in options.widths:
        at: list[float] = []

        def note(_: int, at: list[float] = at) -> None:
            at.append(time.perf_counter())

        request = Request(make_sampler(0.7, 0, 0.9), 0, options.steps, on_step=note)
        cells = [Cell("p", alpha / number, 0) for alpha in range(number)]
        engine = BatchedEngine(model, number)
        list(engine.generate(cells, contexts, request))
        alone = forward_alone(engine, contexts["p"], number, length, options.steps)
        seconds = statistics.median(b - a for a, b in pairwise(at))
        each = slots.slot_bytes([model] * 2, length)
        read = weights + number * each["keys_and_values"]
        peak = held.most if own else devices.peak_memory(device)
        load_peak = load_peak if own else peak
        shape_of = SHAPES[options.shape]
        estimated = sizes.weight_bytes(shape_of, quantization, model.dtype.itemsize)
        beside = number * sum(each.values()) + precision.PROCESS_BYTES
        rows.append(
            {
                "device": device_name(device),
                "quantization": quantization,
                "load, s": f"{load_seconds:.0f}",
                "GB of weights": f"{weights / 1e9:.2f}",
                "estimated": f"{estimated / 1e9:.2f}",
                "peak while loading, GB": f"{load_peak / 1e9:.1f}",
                "estimated while loading": f"{(estimated + precision.PROCESS_BYTES) / 1e9:.1f}",
                "slots": number,
                "peak while decoding, GB": f"{peak / 1e9:.1f}",
                "estimated in all": f"{(estimated + beside) / 1e9:.1f}",
                "ms per step": f"{1000 * seconds:.4g}",
                "of the forward alone": f"{seconds / alone:.3g}",
                "tokens/s": f"{number / seconds:.3g}",
                "GB read per step": f"{read / 1e9:.3g}",
                "share of the memory's speed": f"{100 * read / seconds / speed:.0f} %",
            }
        )
    return rows


@torch.inference_mode()
def forward_alone(
    engine: BatchedEngine, contrast: Contrast, number: int, length: int, steps: int
) -> float:
    """Return the seconds of the step's forward alone (as a CUDA graph, where one is captured)."""
    model = engine.sources[MODEL]
    batch = slots.Slots([model] * 2, number, length, kind=engine.kind)
    prefixes = [prefill(model, stream.ids) for stream in contrast.streams]
    for slot in range(number):
        batch.fill(slot, prefixes)
    tokens = torch.full((number,), 7, device=model.device)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        batch.forward(tokens)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# ------------------------------------------------------------------------------ memory and weights


class OwnMemory(threading.Thread):
    """The peak of this process's private memory, sampled twenty times a second.

    The system's own peak also counts mapped pages of the weight files, which it can reclaim.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0
        self.start()

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            own = re.search(r"RssAnon:\s+(\d+) kB", read_system("/proc/self/status"))
            self.most = max(self.most, 1024 * int(own[1]) if own else 0)
            time.sleep(0.05)


def bandwidth(device: torch.device) -> float:
    """Return bytes per second of a large copy, reads plus writes; the best of several."""
    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(times)


def write_random_mistral(folder: Path, architecture: dict[str, Any], layers_per_file: int = 4):
    """Write a model of Mistral's architecture: random normal weights, the demo's tokenizer."""
    config = MistralConfig(**architecture, rope_theta=1e6, sliding_window=None)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    pool = torch.randn(1 << 20).mul_(0.02).bfloat16()

    def filled(meta: Tensor) -> Tensor:
        if meta.dim() == 1:
            return torch.ones(meta.shape, dtype=torch.bfloat16)
        return pool.repeat(meta.numel() // len(pool) + 1)[: meta.numel()].view(meta.shape).clone()

    files: dict[str, list[str]] = {}
    for name in shapes:
        layer = re.search(r"layers\.(\d+)\.", name)
        part = int(layer[1]) // layers_per_file if layer else "rest"
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in files.items():
        save_file({name: filled(shapes[name]) for name in names}, folder / file, {"format": "pt"})
    places = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    for path in weights.demo_folder()[0].iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    config.architectures, config.dtype = ["MistralForCausalLM"], "bfloat16"
    config.save_pretrained(folder)  # written last: it marks the folder as complete


# ---------------------------------------------------------------------------------------- machines


def machines(options: argparse.Namespace) -> list[Row]:
    """Estimate Mistral 7B's default sweep elsewhere: the recommended setting, the least time.

    The time is a lower bound that no program can beat: per step, the longer of reading weights,
    keys and values once and multiplying by the weights. Unpacking 8- or 4-bit weights comes on top.
    """
    cells = len(read_pairs()) * len({0.0, *Settings.model_fields["alphas"].default})
    rows = []
    for machine in MACHINES:
        best, seconds = least_seconds(machine, cells)
        rows.append(
            {
                "machine": machine[0],
                "set": f"`QUANTIZATION={best.quantization}`",
                "weights, GB": f"{best.weights / 1e9:.1f}",
                "slots": best.slots,
                "memory in all, GB": f"{best.needed / 1e9:.1f}",
                f"the default sweep, {cells} answers, at least": f"{seconds:.0f} s",
            }
        )
    return rows


def least_seconds(machine: tuple, cells: int) -> tuple[precision.Option, float]:
    """Return the recommended option for Mistral 7B on a machine, and a sweep's least seconds."""
    _, device, free, speed, flops = machine
    plan = checks.check_machine(MISTRAL).plan
    found = [
        precision.option(plan, [sizes.MISTRAL_7B], device, int(free), quantization, "bfloat16")
        for quantization in precision.QUANTIZATIONS
    ]
    best = next(option for option in found if option.fits)
    steps = -(-cells // best.slots) * checks.NEW_TOKENS
    multiplied = 2 * sizes.parameters(sizes.MISTRAL_7B)["linear"]  # operations per row
    read, rows_each = best.weights + best.keys_and_values, 2 * best.slots
    return best, steps * max(read / speed, rows_each * multiplied / flops)
