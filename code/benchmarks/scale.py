"""Measure what it costs to share a sweep among processes and to merge their journals."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.records.claims import Claims
from logit_amplification.records.files import read_results
from logit_amplification.records.journal import HEAD, Journal
from logit_amplification.sweeps.processes.sharing import CELLS_OF_A_PIECE

from .mistral_shape import MACHINES, least_seconds
from .results import RESULTS, Row, read_system
from .subject import formats, in_a_process, in_turns, ratio, spread

# Processes, threads per process.
SHARES = ((1, 2), (1, 1), (2, 1))
PLANNED = (10**4, 10**6, 10**8)  # generations
SIZES = ((10_000, 4), (100_000, 32), (1_000_000, 256))  # cells, processes


# ------------------------------------------------------------------------------------------- ranks


def ranks(options: argparse.Namespace) -> list[Row]:
    """Measure cells per second of one sweep, by the number of processes that share it."""
    dtype = formats()[0]
    runs = {share: lambda n, s=share: cells_per_second(*s, dtype) for share in SHARES}
    found = in_turns(runs, options.repeats)
    first = found[SHARES[0]]
    return [
        {
            "precision": dtype,
            "processes": count,
            "threads of each": threads,
            "cells/s": spread(found[count, threads]),
            "times one process with both cores": ratio(found[count, threads], first),
        }
        for count, threads in SHARES
    ]


def cells_per_second(count: int, threads: int, dtype: str) -> float:
    """Sweep the demo model with `count` processes; return cells per second, without loading."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"),
                *("code/logit_diff_mistral.py", "--model=demo", f"--dtype={dtype}"),
                *("--alphas=0,1,2", "--max-new-tokens=32", "--samples=4", "--step=packed"),
                *(f"--data-dir={folder}", f"--visualizations-dir={folder}"),
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BadInput(f"the sweep ended with {done.returncode}: {done.stderr[-300:]}")
        told = json.loads((Path(folder) / "experiment_metadata.json").read_text("utf-8"))
    return told["generations"]["made_in_this_call"] / told["throughput"]["seconds"]


# ------------------------------------------------------------------------------------------ claims


def claims(options: argparse.Namespace) -> list[Row]:
    """Measure claiming alone: cells take no time, and this process plays all others in turn."""
    rows = []
    for cells, processes in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            seconds = claim_all(Path(folder), cells, processes)
        pieces = -(-cells // CELLS_OF_A_PIECE)
        rows.append(
            {
                "cells": cells,
                "processes": processes,
                "pieces": pieces,
                "seconds in all": f"{seconds:.1f}",
                "ms per piece": f"{1e3 * seconds / pieces:.2f}",
            }
        )
        print(f"  {rows[-1]}", flush=True)
    return rows


def claim_all(folder: Path, cells: int, processes: int) -> float:
    """Return the seconds that the processes take to claim and finish every piece."""
    numbers = range(cells)
    pieces = [
        numbers[first : first + CELLS_OF_A_PIECE] for first in range(0, cells, CELLS_OF_A_PIECE)
    ]

    shares = [
        Claims(folder, str(number), pieces, start=number * len(pieces) // processes)
        for number in range(processes)
    ]
    started, working = time.perf_counter(), shares
    while working:
        still = []
        for share in working:
            if (piece := share.claim()) is not None:
                share.begin(piece)
                for cell in pieces[piece]:
                    share.finished(cell, tokens=1)
            if share.unfinished:
                still.append(share)
        working = still
    seconds = time.perf_counter() - started
    if missing := len(pieces) - len(list(folder.glob("*.done"))):
        raise BadInput(f"{missing} pieces were not finished")
    return seconds


# ----------------------------------------------------------------------------------------- merging


def merging(options: argparse.Namespace) -> list[Row]:
    """Measure reading the journals of all processes as one run, generations of 100 tokens."""
    return [
        in_a_process("merge", f"--cells={cells}", f"--slots={processes}")
        for cells, processes in SIZES
    ]


def merge(options: argparse.Namespace) -> Row:
    """Write the journals of several processes in this one, and measure reading them."""
    count, processes = options.cells, options.slots
    _, records = read_results(ROOT / "data" / "example")
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), "merged")
        journal.folder.mkdir(parents=True)
        size = write_shares(journal, records, count, processes)
        started = time.perf_counter()
        found = len(journal.read())
        seconds = time.perf_counter() - started
    # Of this program alone: getrusage would include the process that started it.
    (peak,) = (
        int(kb) / 1e6 for kb in re.findall(r"VmHWM:\s+(\d+)", read_system("/proc/self/status"))
    )
    if found != count:
        raise BadInput(f"{found} of {count} cells were found")
    return {
        "cells": count,
        "processes": processes,
        "journal, GB": f"{size / 1e9:.2f}",
        "reading, s": f"{seconds:.1f}",
        "peak memory, GB": f"{peak:.2f}",
    }


def write_shares(journal: Journal, records: list[Row], count: int, processes: int) -> int:
    """Write the committed run's records repeatedly, as further samples; return the bytes.

    The journal's own writer waits for the disk after every record, which is not measured here.
    """
    sample, size = '"sample":%d,', 0
    lines = [
        json.dumps({"generation": record | {"sample": 0}}, separators=(",", ":"))
        .replace(sample % 0, "\0", 1)
        .split("\0")
        for record in records
    ]
    for writer in range(processes):
        with (journal.folder / f"{writer}.jsonl").open("wb") as file:
            for cell in range(writer, count, processes):
                before, behind = lines[cell % len(lines)]
                body = (before + sample % (cell // len(lines)) + behind).encode()[1:]
                size += file.write(HEAD % zlib.crc32(body) + body + b"\n")
    return size


# ------------------------------------------------------------------------------------------- plans


def plans(options: argparse.Namespace) -> list[Row]:
    """Estimate Mistral 7B's least hours on GPUs that share a sweep, and the journal's size."""
    merged = json.loads(RESULTS.read_text("utf-8"))["merging"]["rows"][-1]
    bytes_each = 1e9 * float(merged["journal, GB"]) / merged["cells"]
    gpus = [machine for machine in MACHINES if machine[1] == "cuda"][1:]
    rows = []
    for count in PLANNED:
        size = (
            f"{count * bytes_each / 1e9:,.0f}"
            if count > 10**5
            else f"{count * bytes_each / 1e9:.2f}"
        )
        row = {"generations": f"10^{len(str(count)) - 1}", "journal, GB": size}
        for machine in gpus:
            for number in (1, 8):
                hours = least_seconds(machine, count)[1] / number / 3600
                row[f"{number} x {machine[0]}, hours"] = f"{float(f'{hours:.2g}'):g}"
        rows.append(row)
    return rows
