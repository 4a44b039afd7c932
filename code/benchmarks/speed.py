"""Measure speed: against alternatives, against bare forwards, and with many alphas at once."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache, TopPLogitsWarper

from logit_amplification.engine.batch import step
from logit_amplification.engine.batch.cache import attending
from logit_amplification.engine.cpu.packed import PackedLinear
from logit_amplification.engine.forward import cached_forward, profile_text
from logit_amplification.engine.interface import Cell, Generation
from logit_amplification.engine.vllm.engine import VllmEngine
from logit_amplification.errors import BadInput
from logit_amplification.logits import alpha_profile
from logit_amplification.logits.amplification import amplify
from logit_amplification.machine import sizes
from logit_amplification.models import weights

from .results import Row
from .subject import Subject, fill_slots, formats, in_turns, load_subject, ratio, spread

STEPS = 40
SOME = 192  # the first cells of the default sweep: four times the number of slots


# ------------------------------------------------------------------------------------------- peers


def peers(options: argparse.Namespace) -> list[Row]:
    """Measure amplified tokens per second: our engine with all measures, and the alternatives."""
    rows = []
    for dtype in formats():
        subject = load_subject(dtype)
        some = [random.Random(n).sample(subject.cells, options.cells) for n in range(99)]
        runs = {
            "this engine, all measures": lambda n, s=subject: tokens_per_second(
                s.generate(s.cells[:SOME])
            ),
            "transformers, DynamicCache, left-padded batch of 48 cells": (
                lambda n, s=subject: tokens_per_second(generate_batched(s, s.cells[:48], 48))
            ),
            "transformers, generate(guidance_scale=...), cell by cell": (
                lambda n, s=subject, c=some: tokens_per_second(generate_guided(s, c[n]))
            ),
        }
        if dtype == formats()[0] and options.llama_python:
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


def vllm(options: argparse.Namespace) -> list[Row]:
    """Measure amplified tokens per second on the same cells: our own engine, and vLLM."""
    rows = []
    for dtype in formats():
        subject = load_subject(dtype)
        cells = subject.cells[:SOME]
        with closing(vllm_beside(subject)) as engine:
            engine.start()
            runs = {
                "our own": lambda n, s=subject, c=cells: tokens_per_second(s.generate(c)),
                "vLLM": lambda n, s=subject, c=cells, e=engine: tokens_per_second(
                    e.generate(c, s.contrasts, s.request)
                ),
            }
            found = in_turns(runs, options.repeats)
        rows += [
            {
                "precision": dtype,
                "engine": name,
                "tokens/s": spread(rates),
                "times our own": ratio(rates, found["our own"]),
            }
            for name, rates in found.items()
        ]
    return rows


def vllm_beside(subject: Subject) -> VllmEngine:
    """Return vLLM with the demo model, and as many concurrent cells as our engine has slots."""
    longest = max(len(ids) for contexts in subject.contexts.values() for ids in contexts)
    return VllmEngine(
        subject.loaded.folder,
        python=subject.settings.vllm_python,
        dtype=subject.loaded.info["dtype"],
        slots=sizes.MOST_AUTO_SLOTS["cpu"],
        longest=longest + subject.settings.max_new_tokens,
    )


def tokens_per_second(generations: Iterator[Generation | list[int]]) -> float:
    """Consume generations and return the rate; prefill counts."""
    started = time.perf_counter()
    tokens = sum(len(g.token_ids if isinstance(g, Generation) else g) for g in generations)
    return tokens / (time.perf_counter() - started)


def generate_guided(subject: Subject, cells: Sequence[Cell]) -> Iterator[list[int]]:
    """Use transformers' own guidance. At alpha 0 it skips the second forward."""
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
    """Do as a careful user would: left padding, one batch after another, no measures."""
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
            logits, _ = cached_forward(
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
    """Return runs of llama.cpp on the demo's unchanged GGUF file, in its own environment."""
    import importlib.util

    package = importlib.util.find_spec(weights.DEMO_PACKAGE).submodule_search_locations[0]
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
                [python, str(Path(__file__).with_name("llama_cpp_peer.py"))],
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


# ------------------------------------------------------------------------------------------- limit


def limit(options: argparse.Namespace) -> list[Row]:
    """Measure milliseconds per decode step of 96 rows by kind, against the machine's limit."""
    rows = []
    for dtype in formats():
        subject = load_subject(dtype)
        cells = [cell for cell in subject.cells if cell.pair_id != "edge-very-long"][:48]
        runs = {}
        for kind in kinds(subject):
            name = f"{kind} step"
            runs[f"{name}, forward alone"] = partial(bare_steps, subject, cells, kind)
            runs[f"{name}, this engine with everything"] = partial(
                engine_steps, subject, cells, kind
            )
        runs["transformers' StaticCache and fused attention, forward alone"] = partial(
            static_steps, subject, cells
        )
        for run in runs.values():
            run(-1)  # warm up: pack the weights, compile the layers
        least: list[float] = []
        runs["least by arithmetic or by bytes, whichever is more"] = (
            lambda _, s=subject, c=cells, f=least: f.append(least_time(s, c)) or f[-1]
        )
        found = in_turns(runs, options.repeats)
        eager = found["eager step, this engine with everything"]
        rows += [
            {
                "precision": dtype,
                "per step": name,
                "ms": spread(times),
                "of the eager engine's": ratio(times, eager),
                "share of the limit": ratio(least, times),
            }
            for name, times in found.items()
        ]
    return rows


def kinds(subject: Subject) -> list[str]:
    """Return the kinds of steps that this machine can run with these weights."""
    possible = []
    for kind in step.KINDS:
        with suppress(BadInput):
            possible.append(step.kind_of_step(kind, [subject.model]))
    return possible


def least_time(subject: Subject, cells: Sequence[Cell]) -> float:
    """Return a lower bound in milliseconds: multiplying by all weights, or reading them.

    It is the longer of two times: two operations per weight and row at the speed of a large packed
    product, and the weights' bytes at the speed of reading a large block. Both speeds are measured
    in each call. Keys and values are left out.
    """
    linear = [one.weight for one in subject.model.modules() if type(one) is nn.Linear]
    operations = 2 * 2 * len(cells) * sum(weight.numel() for weight in linear)
    read = sum(weight.nbytes for weight in linear)
    return 1000 * max(operations / arithmetic(subject.model.dtype), read / reading())


@torch.inference_mode()
def arithmetic(dtype: torch.dtype, size: int = 2048) -> float:
    """Return operations per second of a large matrix product; the best of several."""
    layer = PackedLinear(nn.Linear(size, size, bias=False, dtype=dtype))
    inputs = torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / best_of(lambda: layer(inputs))


def reading(size: int = 1 << 28) -> float:
    """Return bytes per second of reading a block larger than any cache; the best of several."""
    block = torch.ones(size, dtype=torch.int64)
    return block.nbytes / best_of(block.sum)


def best_of(run: Callable[[], Any], repeats: int = 7) -> float:
    """Return the seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def engine_steps(subject: Subject, cells: Sequence[Cell], kind: str, _: int) -> float:
    """Return milliseconds per step of the engine: all its work but the prefill."""
    at: list[float] = []
    changed = {"max_new_tokens": STEPS, "stop_ids": frozenset(), "step": kind}
    list(subject.generate(cells, on_step=lambda _: at.append(time.perf_counter()), **changed))
    return 1000 * (at[-1] - at[0]) / (len(at) - 1)


@torch.inference_mode()
def bare_steps(subject: Subject, cells: Sequence[Cell], kind: str, _: int) -> float:
    """Time `model(...)` alone on the engine's rows and memory, always on the same token."""
    (rows,) = fill_slots(subject, cells, STEPS, kind=kind).batches
    with attending(rows.model, rows.attention):
        started = time.perf_counter()
        for _ in range(STEPS - 1):
            rows.grow()
            rows.feed()
            rows.positions += 1
        return 1000 * (time.perf_counter() - started) / (STEPS - 1)


@torch.inference_mode()
def static_steps(subject: Subject, cells: Sequence[Cell], _: int) -> float:
    """Time `model(...)` as transformers runs it: StaticCache, fused attention, padded rows."""
    rows = 2 * len(cells)
    longest = max(len(ids) for c in cells for ids in subject.contexts[c.pair_id])
    cache = StaticCache(config=subject.model.config, max_cache_len=sizes.round_up(longest + STEPS))
    mask = torch.ones(rows, longest, dtype=torch.long)
    cached_forward(
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
        cached_forward(subject.model, cache, input_ids=token, attention_mask=mask)
    return 1000 * (time.perf_counter() - started) / (STEPS - 1)


# ----------------------------------------------------------------------------------------- profile


def profile(options: argparse.Namespace) -> list[Row]:
    """Time one text's profile at one alpha and at 200, with both forwards and argmax changes."""
    subject = load_subject("bfloat16")
    cell = next(cell for cell in subject.cells if cell.alpha == 0)
    (made,) = subject.generate([cell])
    text = made.token_ids
    contexts = subject.contexts[cell.pair_id]

    def seconds(alphas: Sequence[float]) -> float:
        started = time.perf_counter()
        profile_text(subject.model, *contexts, text, alphas)
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
