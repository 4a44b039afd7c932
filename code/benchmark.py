"""Measure this workbench beside what one would use without it, for docs/PERFORMANCE.md.

    python code/benchmark.py                     # all of it (two hours on two cores)
    python code/benchmark.py peers limit         # some of it: the names are those of --help
    python code/benchmark.py shape --shape mistral-7b --random-weights --quantization 4bit

What is compared runs in turns, several times; tables show medians, and the least and the most.
Results are kept in docs/performance.json; the tables of docs/PERFORMANCE.md are made from it. Run
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    MistralConfig,
    StaticCache,
    TopPLogitsWarper,
)

from logit_amplification.engine import batched, slots
from logit_amplification.engine.batched import Cell, Generation
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits import alpha_profile
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.models import loading, readiness, sizes
from logit_amplification.prompts.pairs import encode_pairs, read_pairs
from logit_amplification.records.files import read_results
from logit_amplification.records.journal import Journal, run_id
from logit_amplification.settings import Settings, load_settings
from logit_amplification.sweeps.history import list_runs
from logit_amplification.sweeps.sweep import plan_cells

RESULTS = ROOT / "docs" / "performance.json"
DOCUMENTS = (ROOT / "docs" / "PERFORMANCE.md", ROOT / "README.md")
Row = dict[str, Any]


# ------------------------------------------------------------------------------------- the subject


@dataclass(frozen=True)
class Subject:
    """The demo model, the built-in pairs, and the cells of the default sweep."""

    loaded: loading.LoadedModel
    settings: Settings
    contexts: dict[str, tuple[list[int], list[int]]]
    cells: list[Cell]

    @property
    def model(self) -> Any:
        """The causal language model."""
        return self.loaded.model

    def generate(self, cells: Sequence[Cell], **changed: Any) -> Iterator[Generation]:
        """Run the engine as the sweep runs it."""
        s = self.settings
        options = {
            "sampler": make_sampler(s.temperature, s.top_k, s.top_p),
            "seed": s.seed,
            "max_new_tokens": s.max_new_tokens,
            "stop_ids": self.loaded.stop_ids,
            "slots": sizes.MOST_AUTO_SLOTS["cpu"],
        }
        return batched.generate(self.model, cells, self.contexts, **(options | changed))


def load_subject(dtype: str, quantization: str = "none") -> Subject:
    """Load the demo model; settings are the defaults, whatever .env says, and one arm."""
    settings = load_settings(
        **{name: field.default for name, field in Settings.model_fields.items()}
        | {"model": "demo", "dtype": dtype, "quantization": quantization, "arms": ("full",)}
    )
    loaded = loading.load_model(settings)
    pairs = read_pairs(settings.prompts)
    encoded = encode_pairs(
        pairs,
        loaded.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_positions=loaded.max_positions,
    )
    contexts = {pair.pair.id: (pair.ids_a, pair.ids_b) for pair in encoded}
    return Subject(loaded, settings, contexts, plan_cells(pairs, settings))


# ------------------------------------------------------------------------------------------- timing


def in_turns(runs: dict[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Call every run once per round, each with the number of the round; return what they return."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            found[name].append(run(number))
            print(f"  round {number + 1}, {name}: {found[name][-1]:.4g}", flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """The median, and in brackets the least and the most."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The median of the rounds' ratios, and the least and the most of them."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def in_a_process(name: str, *flags: str) -> Any:
    """Run one measurement in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, name, "--alone-in-process", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------------- peers


def peers(options: argparse.Namespace) -> list[Row]:
    """Amplified tokens per second: ours with all measures, and what else one could use."""
    rows = []
    for dtype in ("bfloat16", "float32"):
        subject = load_subject(dtype)
        some = [random.Random(n).sample(subject.cells, options.cells) for n in range(99)]
        runs = {
            "this engine, every pair and alpha, all measures": lambda n, s=subject: (
                tokens_per_second(s.generate(s.cells))
            ),
            "transformers, DynamicCache, left-padded batch of 48 cells": (
                lambda n, s=subject: tokens_per_second(generate_batched(s, s.cells[:48], 48))
            ),
            "transformers, generate(guidance_scale=...), cell by cell": (
                lambda n, s=subject, c=some: tokens_per_second(generate_guided(s, c[n]))
            ),
        }
        if dtype == "bfloat16" and options.llama_python:
            runs |= llama_cpp_runs(subject, options.llama_python, some)
        found = in_turns(runs, options.repeats)
        ours = next(iter(found.values()))
        rows += [
            {
                "precision": "Q4_1" if "llama" in name else dtype,
                "made by": name,
                "tokens/s": spread(rates),
                "ours is faster by": "" if rates is ours else ratio(ours, rates),
            }
            for name, rates in found.items()
        ]
    return rows


def tokens_per_second(generations: Iterator[Generation | list[int]]) -> float:
    """Consume generations; prefill counts."""
    started = time.perf_counter()
    tokens = sum(len(g.token_ids if isinstance(g, Generation) else g) for g in generations)
    return tokens / (time.perf_counter() - started)


def generate_guided(subject: Subject, cells: Sequence[Cell]) -> Iterator[list[int]]:
    """What users have today. At alpha 0 transformers leaves the second forward out."""
    s = subject.settings
    for cell in cells:
        a, b = (torch.tensor([ids]) for ids in subject.contexts[cell.pair_id])
        answer = subject.model.generate(
            a,
            attention_mask=torch.ones_like(a),
            negative_prompt_ids=b,
            guidance_scale=1 + cell.alpha,
            do_sample=True,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=0,
            max_new_tokens=s.max_new_tokens,
            pad_token_id=min(subject.loaded.stop_ids),
        )
        yield answer[0, a.shape[1] :].tolist()


@torch.inference_mode()
def generate_batched(subject: Subject, cells: Sequence[Cell], width: int) -> Iterator[list[int]]:
    """What a careful user would write: left padding, one batch after the other, no measures."""
    s, stop = subject.settings, torch.tensor(sorted(subject.loaded.stop_ids))
    top_p = TopPLogitsWarper(s.top_p)
    for first in range(0, len(cells), width):
        batch = cells[first : first + width]
        contexts = [subject.contexts[cell.pair_id][side] for side in (0, 1) for cell in batch]
        longest = max(map(len, contexts))
        ids = torch.tensor([[0] * (longest - len(c)) + list(c) for c in contexts])
        mask = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in contexts])
        alphas = torch.tensor([[cell.alpha] for cell in batch])
        cache = DynamicCache(config=subject.model.config)
        answers: list[Tensor] = []
        ended = torch.zeros(len(batch), dtype=torch.bool)
        while len(answers) < s.max_new_tokens and not ended.all():
            logits, _ = loading.cached_forward(
                subject.model,
                cache,
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                logits_to_keep=torch.tensor([-1]),
            )
            a, b = logits[:, -1].float().chunk(2)
            scores = top_p(None, amplify(a, b, alphas) / s.temperature)
            tokens = torch.multinomial(scores.softmax(-1), 1)
            answers.append(tokens.masked_fill(ended[:, None], stop[0]))
            ended |= torch.isin(tokens[:, 0], stop)
            ids = tokens.repeat(2, 1)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        for answer in torch.cat(answers, 1).tolist():
            length = next((n + 1 for n, t in enumerate(answer) if t in stop), len(answer))
            yield answer[:length]


def llama_cpp_runs(
    subject: Subject, python: str, some: list[list[Cell]]
) -> dict[str, Callable[[int], float]]:
    """llama.cpp on the demo's GGUF file as it is, in an environment of its own."""
    import importlib.util

    package = importlib.util.find_spec(loading.DEMO_PACKAGE).submodule_search_locations[0]
    s = subject.settings
    task = {
        "gguf": str(next(Path(package).glob("*.gguf"))),
        "temperature": s.temperature,
        "top_p": s.top_p,
        "max_new_tokens": s.max_new_tokens,
        "stop_ids": sorted(subject.loaded.stop_ids),
        "length": 448,
        "threads": torch.get_num_threads(),
    }

    def run(cells: Sequence[Cell], side_by_side: int, seed: int) -> float:
        made = [
            dict(zip("ab", subject.contexts[c.pair_id], strict=True)) | {"alpha": c.alpha}
            for c in cells
        ]
        given = task | {"cells": made, "side_by_side": side_by_side, "seed": seed}
        for repack in (True, False):  # its AMX kernels crash on some virtual machines
            done = subprocess.run(
                [python, str(Path(__file__).with_name("benchmark_llama_cpp.py"))],
                input=json.dumps(given | {"repack": repack}),
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_WAIT_POLICY": "passive"},
            )
            if done.returncode == 0:
                told = json.loads(done.stdout)
                return told["tokens"] / told["seconds"]
            print(f"  llama.cpp ended with {done.returncode} (weights repacked: {repack})")
        raise BadInput(f"llama.cpp: {done.stderr[-300:]}")

    name = "llama.cpp, 2 sequences per cell,"
    return {
        f"{name} one cell at a time": lambda n: run(some[n], 1, n),
        f"{name} 48 cells at a time": lambda n: run(subject.cells[:48], 48, n),
    }


# -------------------------------------------------------------------------------------------- limit


def limit(options: argparse.Namespace) -> list[Row]:
    """Milliseconds per decode step of 96 rows: bare forwards, and all that the engine does."""
    rows = []
    for dtype in ("bfloat16", "float32"):
        subject = load_subject(dtype)
        cells = [cell for cell in subject.cells if cell.pair_id != "edge-very-long"][:48]
        found = in_turns(
            {
                "bare forward, our memory and attention": partial(bare_steps, subject, cells),
                "this engine, everything": partial(engine_steps, subject, cells),
                "bare forward, transformers' StaticCache and fused attention": partial(
                    static_steps, subject, cells
                ),
            },
            options.repeats,
        )
        bare = next(iter(found.values()))
        rows += [
            {
                "precision": dtype,
                "per step": name,
                "ms": spread(times),
                "share of the bare forward": ratio(times, bare),
            }
            for name, times in found.items()
        ]
    return rows


STEPS = 60


def engine_steps(subject: Subject, cells: Sequence[Cell], _: int) -> float:
    """From the first tokens to the last: no prefill, but rule, measures, draw, bookkeeping."""
    at: list[float] = []
    changed = {"max_new_tokens": STEPS, "stop_ids": frozenset()}
    list(subject.generate(cells, on_step=lambda _: at.append(time.perf_counter()), **changed))
    return 1000 * (at[-1] - at[0]) / (len(at) - 1)


@torch.inference_mode()
def bare_steps(subject: Subject, cells: Sequence[Cell], _: int) -> float:
    """`model(...)` on the engine's own rows and memory, always the same token, nothing else."""
    (rows,) = fill_slots(subject, cells, STEPS).batches
    subject.model.set_attn_implementation("slots")
    try:
        started = time.perf_counter()
        for _ in range(STEPS - 1):
            rows.grow()
            hidden = torch.arange(rows.window) > rows.positions[:, None]
            hidden = hidden[:, None, None]
            loading.cached_forward(
                subject.model,
                rows.cache,
                input_ids=rows.tokens,
                position_ids=rows.positions[:, None],
                attention_mask=torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf),
            )
            rows.positions += 1
        return 1000 * (time.perf_counter() - started) / (STEPS - 1)
    finally:
        subject.model.set_attn_implementation("sdpa")


@torch.inference_mode()
def static_steps(subject: Subject, cells: Sequence[Cell], _: int) -> float:
    """`model(...)` as transformers would do it: StaticCache, fused attention, padded rows."""
    rows = 2 * len(cells)
    longest = max(len(ids) for c in cells for ids in subject.contexts[c.pair_id])
    cache = StaticCache(config=subject.model.config, max_cache_len=sizes.round_up(longest + STEPS))
    mask = torch.ones(rows, longest, dtype=torch.long)
    loading.cached_forward(
        subject.model,
        cache,
        input_ids=torch.zeros_like(mask),
        attention_mask=mask,
        logits_to_keep=torch.tensor([-1]),
    )
    token = torch.zeros(rows, 1, dtype=torch.long)
    started = time.perf_counter()
    for _ in range(STEPS - 1):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        loading.cached_forward(subject.model, cache, input_ids=token, attention_mask=mask)
    return 1000 * (time.perf_counter() - started) / (STEPS - 1)


def fill_slots(
    subject: Subject, cells: Sequence[Cell], new_tokens: int, *, forwards: int = 1
) -> slots.Slots:
    """The engine's slots, one per cell, prefilled."""
    longest = max(len(ids) for c in cells for ids in subject.contexts[c.pair_id]) + new_tokens
    batch = slots.Slots(subject.model, len(cells), longest, forwards=forwards)
    prefixes = slots.Prefixes(
        subject.model, (ids for cell in cells for ids in subject.contexts[cell.pair_id])
    )
    for slot, cell in enumerate(cells):
        batch.fill(slot, *map(prefixes.take, subject.contexts[cell.pair_id]))
    return batch


# ---------------------------------------------------------------------------------- as work grows


def width(options: argparse.Namespace) -> list[Row]:
    """Cost and memory by the number of slots, each in a process of its own."""
    numbers = (1, 2, 4, 8, 16, 32, 64, 128)
    return [grown("slots", n, slots=n, cells=n, tokens=40) for n in numbers]


def alphas(options: argparse.Namespace) -> list[Row]:
    """Cost by the number of alphas of the same four pairs: contexts are prefilled once."""
    return [
        grown("alphas", n, slots=48, cells=4 * n, tokens=40, pairs=4) for n in (1, 6, 12, 24, 48)
    ]


def length(options: argparse.Namespace) -> list[Row]:
    """Cost by the length of the answers."""
    return [grown("tokens", n, slots=48, cells=48, tokens=n) for n in (20, 50, 100, 200, 400)]


def grown(what: str, number: int, **sizes: int) -> Row:
    """One row of a table of growth, measured in a fresh process."""
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    row = {what: number} | in_a_process("one-size", *flags)
    print(row, flush=True)
    return row


def one_size(options: argparse.Namespace) -> Row:
    """Decode so many cells of full length; the time, the number of prefills, the peak memory."""
    subject = load_subject("bfloat16")
    names = [name for name in subject.contexts if name != "edge-very-long"]
    names = names[: options.pairs or len(names)]
    cells = [Cell(names[n % len(names)], n / options.cells, 0) for n in range(options.cells)]
    prefilled: list[float] = []
    prefill = slots.prefill

    def timed(model: Any, ids: Sequence[int]) -> slots.Prefix:
        started = time.perf_counter()
        prefix = prefill(model, ids)
        prefilled.append(time.perf_counter() - started)
        return prefix

    slots.prefill = timed
    loaded_bytes = loading.peak_memory(torch.device("cpu"))
    changed = {"max_new_tokens": options.tokens, "stop_ids": frozenset(), "slots": options.slots}
    list(subject.generate(cells[:1], **changed | {"max_new_tokens": 2}))  # warm
    prefilled.clear()
    started, at = time.perf_counter(), []
    list(subject.generate(cells, on_step=lambda _: at.append(time.perf_counter()), **changed))
    seconds = time.perf_counter() - started
    longest = max(len(ids) for pair in subject.contexts.values() for ids in pair)
    predicted = options.slots * sum(
        slots.slot_bytes(subject.model, longest + options.tokens).values()
    )
    return {
        "cells": len(cells),
        "tokens/s": f"{len(cells) * options.tokens / seconds:.3g}",
        "ms per step": f"{1000 * statistics.median(b - a for a, b in pairwise(at)):.3g}",
        "contexts prefilled": len(prefilled),
        "prefill, s": f"{sum(prefilled):.2g}",
        "peak memory above the model, MB": (
            f"{(loading.peak_memory(torch.device('cpu')) - loaded_bytes) / 1e6:.0f}"
        ),
        "reckoned by slots=auto, MB": f"{predicted / 1e6:.0f}",
    }


# -------------------------------------------------------------------------------------------- start


def start(options: argparse.Namespace) -> list[Row]:
    """Seconds from starting code/logit_diff_mistral.py to the first answer on the screen."""
    rows: list[tuple[str, float]] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            fresh = Path(scratch) / "fresh"
            kept = shutil.ignore_patterns("__pycache__", "journal")
            shutil.copytree(ROOT / "code", fresh / "code", ignore=kept)
            shutil.copytree(ROOT / "data", fresh / "data", ignore=kept)
            for kind in ("cold: no .pyc files, demo model not unpacked", "warm: second start"):
                rows.append((kind, first_answer(fresh)))
                print(rows[-1], flush=True)
                shutil.rmtree(fresh / "data" / "journal")
    kinds = dict.fromkeys(kind for kind, _ in rows)
    return [{"start": k, "seconds": spread([s for kind, s in rows if kind == k])} for k in kinds]


def first_answer(folder: Path) -> float:
    """Start the sweep in `folder`, wait until its journal has an answer, and end it."""
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


# --------------------------------------------------------------------------------------- neighbours


def neighbours(options: argparse.Namespace) -> list[Row]:
    """Make every cell of the default sweep beside other neighbours and compare all its bits."""
    rows = []
    # One cell alone takes as long as 48: all of them half an hour in bfloat16.
    for dtype, share_alone in (("bfloat16", 1), ("float32", 0.1)):
        subject = load_subject(dtype)
        together = _made(subject, subject.cells)
        alone = random.Random(0).sample(subject.cells, int(share_alone * len(subject.cells)))
        half = len(subject.cells) // 2
        ways = {
            "in reversed order": [subject.cells[::-1]],
            "one alpha at a time": [
                [cell for cell in subject.cells if cell.alpha == alpha]
                for alpha in subject.settings.alphas
            ],
            "in two halves": [subject.cells[:half], subject.cells[half:]],
            "alone, one after the other": [[cell] for cell in alone],
        }
        for way, parts in ways.items():
            made = {}
            for part in parts:
                made |= _made(subject, part)
            rows.append({"precision": dtype, "made": way, **_equal(made, together)})
            print(rows[-1], flush=True)
        for number in (16, 64):
            made = _made(subject, subject.cells, slots=number)
            way = f"with {number} slots instead of 48"
            rows.append({"precision": dtype, "made": way, **_equal(made, together)})
            print(rows[-1], flush=True)
    return rows


def _made(subject: Subject, cells: Sequence[Cell], **changed: Any) -> dict[Cell, Generation]:
    return {generation.cell: generation for generation in subject.generate(cells, **changed)}


def _equal(made: dict[Cell, Generation], reference: dict[Cell, Generation]) -> Row:
    """How many cells have all tokens, and all bits of all measures, of the reference."""
    tokens = sum(made[cell].token_ids == reference[cell].token_ids for cell in made)
    measures = sum(made[cell].per_token == reference[cell].per_token for cell in made)
    return {"cells": len(made), "same tokens": tokens, "same measures": measures}


# -------------------------------------------------------------------------------------------- large


def large(options: argparse.Namespace) -> list[Row]:
    """Ten thousand generations of 100 tokens: their artifacts from the journal, without the model.

    Their texts and measures are those of the committed run, over and over.
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
    """Write a journal of `count` generations; return its bytes."""
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


# ---------------------------------------------------------------------------------------- precision

ALPHAS = (0.0, 0.5, 1.0, 2.0, 4.0)


def precision(options: argparse.Namespace) -> list[Row]:
    """What the precision of the weights does to the amplified distribution, against float32.

    The same texts (one per pair, written in float32 at alpha 1) are read at every precision in one
    batch, as a sweep decodes them.
    """
    steps = 35
    subject = load_subject("float32")
    cells = [Cell(name, 1.0, 0) for name in subject.contexts]
    written = _made(subject, cells, max_new_tokens=steps, stop_ids=frozenset(), slots=len(cells))
    texts = torch.tensor([written[cell].token_ids for cell in cells])
    reference = forced(subject, cells, texts)
    rows = []
    for name, dtype, quantization, head in (
        ("float32, another number of slots", "float32", "none", False),
        ("bfloat16", "bfloat16", "none", False),
        ("bfloat16, output head in float32", "bfloat16", "none", True),
        ("float16", "float16", "none", False),
        ("8bit, bfloat16", "bfloat16", "8bit", False),
        ("4bit, bfloat16", "bfloat16", "4bit", False),
        ("4bit, bfloat16, output head in float32", "bfloat16", "4bit", True),
        ("4bit, float32", "float32", "4bit", False),
    ):
        subject = load_subject(dtype, quantization)
        if head:
            subject.model.lm_head = Float32Head(subject.model.lm_head)
        if name.endswith("slots"):
            halves = (slice(0, 10), slice(10, None))
            parts = [forced(subject, cells[half], texts[half]) for half in halves]
            found = tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        else:
            found = forced(subject, cells, texts)
        row = {"precision": name, "positions": texts.numel()}
        for alpha in ALPHAS:
            kl, changed = divergence(amplify(*reference, alpha), amplify(*found, alpha))
            row[f"alpha {alpha:g}"] = f"{kl.mean():.2g} ({100 * changed:.1f} %)"
        rows.append(row)
        print(row, flush=True)
    return rows


class Float32Head(torch.nn.Module):
    """An output head that multiplies in float32 what the model computed in 16 bit."""

    def __init__(self, head: torch.nn.Linear):
        super().__init__()
        self.weight = torch.nn.Parameter(head.weight.float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (rows, tokens, size) in 16 bit; logits (rows, tokens, vocab) float32."""
        return torch.nn.functional.linear(hidden.float(), self.weight)


def coupling(options: argparse.Namespace) -> list[Row]:
    """How far the rows of one forward move each other: KL to the same texts read row by row."""
    subject = load_subject("bfloat16")
    cells = [cell for cell in subject.cells if cell.alpha in (0.0, 1.0, 2.0)][:12]
    written = _made(subject, cells, max_new_tokens=30, stop_ids=frozenset(), slots=12)
    texts = torch.tensor([written[cell].token_ids for cell in cells])
    strengths = torch.tensor([cell.alpha for cell in cells])[:, None]
    rows = []
    for quantization in ("none", "8bit", "4bit"):
        subject = load_subject("bfloat16", quantization)
        each = [
            forced(subject, [c], t[None], forwards=2) for c, t in zip(cells, texts, strict=True)
        ]
        alone = amplify(*(torch.cat(part, dim=1) for part in zip(*each, strict=True)), strengths)
        again = forced(subject, cells[:1], texts[:1], forwards=2)
        ways = {
            "alone, a second time": (amplify(*again, strengths[:1]), alone[:, :1]),
            "12 slots, A and B in two forwards": (
                amplify(*forced(subject, cells, texts, forwards=2), strengths),
                alone,
            ),
            "12 slots, A and B in one forward": (
                amplify(*forced(subject, cells, texts), strengths),
                alone,
            ),
        }
        for way, (found, reference) in ways.items():
            kl, changed = divergence(reference, found)
            rows.append(
                {
                    "quantization": quantization,
                    "rows": way,
                    "KL to alone, mean nats": f"{kl.mean():.2g}",
                    "largest": f"{kl.max():.2g}",
                    "other favourite token": f"{100 * changed:.1f} %",
                }
            )
            print(rows[-1], flush=True)
    return rows


def divergence(reference: Tensor, found: Tensor) -> tuple[Tensor, float]:
    """KL(reference || found) at every step, and the share of steps with another favourite."""
    kl = torch.stack(
        [
            (p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
            for p, q in zip(reference, found, strict=True)
        ]
    )
    return kl, float((found.argmax(-1) != reference.argmax(-1)).float().mean())


@torch.inference_mode()
def forced(
    subject: Subject, cells: Sequence[Cell], texts: Tensor, *, forwards: int = 1
) -> tuple[Tensor, Tensor]:
    """Logits under A and under B at every step of given texts, each (steps, cells, vocab)."""
    subject.model.set_attn_implementation("slots")
    try:
        batch = fill_slots(subject, cells, texts.shape[1], forwards=forwards)
        found = []
        for tokens in texts.T:
            found.append([logits.clone() for logits in batch.logits])
            batch.forward(tokens)
        return tuple(torch.stack(side) for side in zip(*found, strict=True))
    finally:
        subject.model.set_attn_implementation("sdpa")


# -------------------------------------------------------------------------------------------- shape


def shape(options: argparse.Namespace) -> list[Row]:
    """Load time, step time, memory and share of the memory's speed at true size, random weights.

    The weights are written once (14.5 GB in .cache/) and loaded as a model of the hub is, each
    precision in a process of its own.
    """
    if options.shape != "mistral-7b" or not options.random_weights:
        raise BadInput("shape: give --shape mistral-7b --random-weights; allowed: no other yet")
    folder = ROOT / ".cache" / "mistral-7b-random"
    if not (folder / "config.json").exists():
        write_random_mistral(folder, sizes.MISTRAL_7B)
    widths = options.widths or ([8, 32, 128] if torch.cuda.is_available() else [8])
    rows = []
    for quantization in options.quantization:
        flags = [f"--quantization={quantization}", f"--steps={options.steps}"]
        flags += [f"--prompt={options.prompt}", "--widths", *map(str, widths)]
        rows += in_a_process("true-size", *flags)
        print(*rows[-len(widths) :], sep="\n", flush=True)
    return rows


def true_size(options: argparse.Namespace) -> list[Row]:
    """The rows of one precision."""
    (quantization,) = options.quantization
    settings = load_settings(
        model=str(ROOT / ".cache" / "mistral-7b-random"), quantization=quantization, dtype="auto"
    )
    device = loading.choose_device("auto")
    speed = bandwidth(device)
    held = OwnMemory()
    started = time.perf_counter()
    model = loading.load_model(settings).model
    load_seconds, load_peak = time.perf_counter() - started, held.most
    # In 16 bit on a CPU the weights stay where they are in their file, mapped into memory.
    own = device.type == "cpu" and quantization != "none"
    weights = model.get_memory_footprint()
    length = sizes.round_up(options.prompt + options.steps)
    contexts = {"p": (list(range(5, 5 + options.prompt)), list(range(9, 9 + options.prompt)))}
    rows = []
    for number in options.widths:
        at: list[float] = []

        def note(_: int, at: list[float] = at) -> None:
            at.append(time.perf_counter())

        made = batched.generate(
            model,
            [Cell("p", alpha / number, 0) for alpha in range(number)],
            contexts,
            sampler=make_sampler(0.7, 0, 0.9),
            seed=0,
            max_new_tokens=options.steps,
            slots=number,
            on_step=note,
        )
        list(made)
        seconds = statistics.median(b - a for a, b in pairwise(at))
        each = slots.slot_bytes(model, length)
        read = weights + number * each["keys_and_values"]
        peak = held.most if own else loading.peak_memory(device)
        load_peak = load_peak if own else peak
        reckoned = sizes.weight_bytes(sizes.MISTRAL_7B, quantization, model.dtype.itemsize)
        beside = number * sum(each.values()) + readiness.PROCESS_BYTES
        rows.append(
            {
                "device": device_name(device),
                "quantization": quantization,
                "load, s": f"{load_seconds:.0f}",
                "GB of weights": f"{weights / 1e9:.2f}",
                "reckoned": f"{reckoned / 1e9:.2f}",
                "peak while loading, GB": f"{load_peak / 1e9:.1f}",
                "reckoned while loading": f"{(reckoned + readiness.PROCESS_BYTES) / 1e9:.1f}",
                "slots": number,
                "peak while decoding, GB": f"{peak / 1e9:.1f}",
                "reckoned in all": f"{(reckoned + beside) / 1e9:.1f}",
                "ms per step": f"{1000 * seconds:.4g}",
                "tokens/s": f"{number / seconds:.3g}",
                "GB read per step": f"{read / 1e9:.3g}",
                "share of the memory's speed": f"{100 * read / seconds / speed:.0f} %",
            }
        )
    return rows


class OwnMemory(threading.Thread):
    """The most memory this process held that is its own, looked at twenty times a second.

    The system's own peak counts pages of the weights' files too, which it takes back at need.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0
        self.start()

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            own = re.search(r"RssAnon:\s+(\d+) kB", _read("/proc/self/status"))
            self.most = max(self.most, 1024 * int(own[1]) if own else 0)
            time.sleep(0.05)


def write_random_mistral(folder: Path, architecture: dict[str, Any], layers_per_file: int = 4):
    """Write a model of Mistral's architecture: normal weights, the demo model's tokenizer."""
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
    for path in loading.demo_folder()[0].iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    config.architectures, config.dtype = ["MistralForCausalLM"], "bfloat16"
    config.save_pretrained(folder)  # last: it says that the rest is whole


# Machines that were not at hand: free memory, and their makers' figures for memory bandwidth (bytes
# per second) and dense 16-bit matrix products (floating-point operations per second).
MACHINES = (
    ("MacBook Air M2, 16 GB", "mps", 10.5e9, 100e9, 3.6e12),
    ("RTX 4070, 12 GB", "cuda", 11.8e9, 504e9, 58e12),
    ("RTX 4090, 24 GB", "cuda", 23.5e9, 1008e9, 165e12),
    ("H200, 141 GB", "cuda", 139e9, 4800e9, 989e12),
)


def machines(options: argparse.Namespace) -> list[Row]:
    """Mistral 7B's default sweep elsewhere, reckoned: what is recommended, and the least time.

    The time is that of reading weights, keys and values once per step, or of multiplying them, if
    that is longer: no program is faster. Unpacking 8- or 4-bit weights comes on top.
    """
    plan = readiness.look(readiness.MISTRAL).plan
    cells = len(load_subject("float32").cells)
    rows = []
    multiplied = 2 * sizes.parameters(sizes.MISTRAL_7B)["linear"]  # operations per row
    for name, device, free, speed, flops in MACHINES:
        found = [
            readiness.option(plan, sizes.MISTRAL_7B, device, int(free), quantization, "bfloat16")
            for quantization in readiness.QUANTIZATIONS
        ]
        best = next(option for option in found if option.fits)
        steps = -(-cells // best.slots) * readiness.NEW_TOKENS
        read, rows_each = best.weights + best.keys_and_values, 2 * best.slots
        seconds = steps * max(read / speed, rows_each * multiplied / flops)
        rows.append(
            {
                "machine": name,
                "set": f"`QUANTIZATION={best.quantization}`",
                "weights, GB": f"{best.weights / 1e9:.1f}",
                "slots": best.slots,
                "memory in all, GB": f"{best.needed / 1e9:.1f}",
                "one arm of 217 answers, at least": f"{seconds:.0f} s",
            }
        )
    return rows


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, both directions counted; the best of several."""
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


# ------------------------------------------------------------------------------------------ profile


def profile(options: argparse.Namespace) -> list[Row]:
    """One text at one alpha and at 200, the two forwards and every changed argmax included."""
    subject = load_subject("bfloat16")
    cell = next(cell for cell in subject.cells if cell.alpha == 0)
    (made,) = subject.generate([cell])
    text = made.token_ids
    contexts = subject.contexts[cell.pair_id]

    def seconds(alphas: Sequence[float]) -> float:
        started = time.perf_counter()
        alpha_profile.profile_text(subject.model, *contexts, text, alphas)
        return time.perf_counter() - started

    runs = {
        "one alpha": lambda number: seconds([1.0]),
        f"{len(alpha_profile.ALPHAS)} alphas": lambda number: seconds(alpha_profile.ALPHAS),
    }
    found = in_turns(runs, 3 * options.repeats)
    one = found["one alpha"]
    return [
        {
            "one text at": name,
            "tokens": len(text),
            "ms": spread([1000 * second for second in times]),
            "of one alpha": ratio(times, one),
        }
        for name, times in found.items()
    ]


# ------------------------------------------------------------------------------------------ results

MEASUREMENTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    measure.__name__: measure
    for measure in (
        peers,
        limit,
        width,
        alphas,
        length,
        start,
        neighbours,
        large,
        coupling,
        precision,
        shape,
        profile,
        machines,
    )
}


def device_name(device: torch.device) -> str:
    """The processor or GPU in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = re.findall(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    return f"{torch.get_num_threads()} cores of {names[0] if names else platform.processor()}"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def keep(name: str, rows: list[Row]) -> None:
    """Put a measurement and its machine into docs/performance.json, its table into the page."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    libraries = ("torch", "transformers", "bitsandbytes")
    measured_on = (
        f"{device_name(torch.device('cpu'))}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}, "
        + ", ".join(f"{library} {version(library)}" for library in libraries)
    )
    results[name] = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": "reckoned, not measured" if name == "machines" else measured_on,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text("utf-8"), results), "utf-8")


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Put every measurement's table behind its marker `<!-- name -->`."""
    for name, result in results.items():
        block = f"<!-- {name} -->\n{table(result)}<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.S)
    return text


def table(result: dict[str, Any]) -> str:
    """A Markdown table and the line that says where it was measured."""
    heads = list(result["rows"][0])
    lines = [heads, ["---"] * len(heads), *([row[h] for h in heads] for row in result["rows"])]
    drawn = "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
    return f"{drawn}\n{result['measured']}, {result['machine']}.\n"


def main(flags: list[str]) -> int:
    """Measure what is named; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--cells", type=int, default=6, help="of the slow peers, in each round")
    parser.add_argument("--llama-python", help="python of an environment with llama-cpp-python")
    parser.add_argument("--shape", default="mistral-7b", help="whose shape, in shape")
    parser.add_argument("--random-weights", action="store_true", help="no download, in shape")
    parser.add_argument("--quantization", nargs="*", default=["none", "4bit"], help="in shape")
    parser.add_argument("--widths", type=int, nargs="*", help="numbers of slots, in shape")
    parser.add_argument("--steps", type=int, default=30, help="in shape")
    parser.add_argument("--prompt", type=int, default=60, help="tokens of a context, in shape")
    for name in ("--slots", "--tokens", "--pairs"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--alone-in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(flags)
    if options.alone_in_process:
        print(json.dumps({"one-size": one_size, "true-size": true_size}[options.names[0]](options)))
        return 0
    chosen = options.names or [name for name in MEASUREMENTS if name != "shape"]
    if unknown := [name for name in chosen if name not in MEASUREMENTS]:
        print(f"error: no measurement {unknown[0]!r}; allowed: {', '.join(MEASUREMENTS)}")
        return 2
    for name in chosen:
        print(name, flush=True)
        try:
            keep(name, MEASUREMENTS[name](options))
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
