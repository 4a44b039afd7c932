"""Measure how cost grows with slots, alphas, tokens and generations; time the first answer."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch

from logit_amplification.engine.batch import cache, slots
from logit_amplification.engine.interface import Cell
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.machine import devices
from logit_amplification.records.files import read_results
from logit_amplification.records.journal import Journal, run_id
from logit_amplification.sweeps.history import list_runs

from .results import Row
from .subject import in_a_process, load_subject, spread


def width(options: argparse.Namespace) -> list[Row]:
    """Measure cost and memory by the number of slots, each in its own process."""
    numbers = (1, 2, 4, 8, 16, 32, 64, 128)
    return [grown("slots", n, slots=n, cells=n, tokens=40) for n in numbers]


def alphas(options: argparse.Namespace) -> list[Row]:
    """Measure cost by the number of alphas of the same four pairs: contexts are prefilled once."""
    return [
        grown("alphas", n, slots=48, cells=4 * n, tokens=40, pairs=4) for n in (1, 6, 12, 24, 48)
    ]


def length(options: argparse.Namespace) -> list[Row]:
    """Measure cost by the length of the answers."""
    return [grown("tokens", n, slots=48, cells=48, tokens=n) for n in (20, 50, 100, 200, 400)]


def grown(what: str, number: int, **sizes: int) -> Row:
    """Return one row of a table, measured in a fresh process."""
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    row = {what: number} | in_a_process("one-size", *flags)
    print(row, flush=True)
    return row


def one_size(options: argparse.Namespace) -> Row:
    """Decode cells to full length; return speed, number of prefills and peak memory."""
    subject = load_subject("bfloat16")
    names = [name for name in subject.contexts if name != "edge-very-long"]
    names = names[: options.pairs or len(names)]
    cells = [Cell(names[n % len(names)], n / options.cells, 0) for n in range(options.cells)]
    loaded_bytes = devices.peak_memory(torch.device("cpu"))
    changed = {"max_new_tokens": options.tokens, "stop_ids": frozenset(), "slots": options.slots}
    list(subject.generate(cells[:1], **changed | {"max_new_tokens": 2}))  # warm up
    with prefills_timed() as prefilled:
        started, at = time.perf_counter(), []
        list(subject.generate(cells, on_step=lambda _: at.append(time.perf_counter()), **changed))
        seconds = time.perf_counter() - started
    longest = max(len(ids) for pair in subject.contexts.values() for ids in pair)
    predicted = options.slots * sum(
        slots.slot_bytes([subject.model] * 2, longest + options.tokens).values()
    )
    return {
        "cells": len(cells),
        "tokens/s": f"{len(cells) * options.tokens / seconds:.3g}",
        "ms per step": f"{1000 * statistics.median(b - a for a, b in pairwise(at)):.3g}",
        "contexts prefilled": len(prefilled),
        "prefill, s": f"{sum(prefilled):.2g}",
        "peak memory above the model, MB": (
            f"{(devices.peak_memory(torch.device('cpu')) - loaded_bytes) / 1e6:.0f}"
        ),
        "estimated by slots=auto, MB": f"{predicted / 1e6:.0f}",
    }


@contextmanager
def prefills_timed() -> Iterator[list[float]]:
    """Record how many seconds the engine takes to prefill each context."""
    seconds: list[float] = []
    prefill = cache.prefill

    def timed(model: Any, ids: Sequence[int]) -> cache.Prefix:
        started = time.perf_counter()
        prefix = prefill(model, ids)
        seconds.append(time.perf_counter() - started)
        return prefix

    with patch.object(cache, "prefill", timed):
        yield seconds


# ------------------------------------------------------------------------------------------- start


def start(options: argparse.Namespace) -> list[Row]:
    """Measure seconds from the start of code/logit_diff_mistral.py to its first answer."""
    rows: list[tuple[str, float]] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            fresh = Path(scratch) / "fresh"
            kept = shutil.ignore_patterns("__pycache__", "journal")
            shutil.copytree(ROOT / "code", fresh / "code", ignore=kept)
            shutil.copytree(ROOT / "data", fresh / "data", ignore=kept)
            shutil.copy(ROOT / "pyproject.toml", fresh)  # marks the folder as a checkout
            for kind in ("cold: no .pyc files, demo model not unpacked", "warm: second start"):
                rows.append((kind, first_answer(fresh)))
                print(rows[-1], flush=True)
                shutil.rmtree(fresh / "data" / "journal")
    kinds = dict.fromkeys(kind for kind, _ in rows)
    return [{"start": k, "seconds": spread([s for kind, s in rows if kind == k])} for k in kinds]


def first_answer(folder: Path) -> float:
    """Start a sweep in `folder`, end it at the first answer in its journal; return the seconds."""
    command = [sys.executable, "code/logit_diff_mistral.py", "--model=demo"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    while not ((found := list_runs(folder / "data")) and found[0].read()):
        if process.poll() is not None:
            sys.exit("the sweep ended without an answer")
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    process.kill()
    process.wait()
    return seconds


# ------------------------------------------------------------------------------------------- large


def large(options: argparse.Namespace) -> list[Row]:
    """Write the artifacts of 10,000 generations of 100 tokens from a journal, without the model.

    Texts and measures are those of the committed run, repeated.
    """
    run, records = read_results(ROOT / "data" / "example")
    with tempfile.TemporaryDirectory() as folder:
        size = write_journal(Path(folder), run, records, 10_000)
        command = [sys.executable, "code/runs.py", "artifacts", "--data-dir", folder]
        started = time.perf_counter()
        process = psutil.Popen(
            [*command, "--visualizations-dir", folder], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise BadInput(f"runs.py artifacts ended with {status}")
    return [
        {
            "generations": 10_000,
            "journal, MB": f"{size / 1e6:.0f}",
            "JSON, CSV, TXT and PNG, s": f"{seconds:.1f}",
            "peak memory, MB": f"{usage.ru_maxrss / 1e3:.0f}",
        }
    ]


def write_journal(folder: Path, run: Row, records: list[Row], count: int) -> int:
    """Write a journal of `count` generations; return its size in bytes."""
    alphas = sorted({record["alpha"] for record in records})
    pairs, per_pair = run["pairs"], len(alphas)
    samples = -(-count // (per_pair * len(pairs)))
    configuration = {name: run[name] for name in run if name not in ("id", "pairs")}
    journal = Journal(folder, run_id(configuration))
    with journal.open(configuration) as writer:
        cells = [(record, sample) for sample in range(samples) for record in records][:count]
        for record, sample in cells:
            writer.append({"generation": record | {"sample": sample}})
        plan = {"pairs": pairs, "alphas": alphas, "samples": samples, "arms": ["full"]}
        journal.write("plan.json", plan)
        return writer.path.stat().st_size
