"""Check the engine's correctness on a GPU, then measure its speed and memory there."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MistralConfig

from logit_amplification.engine.batch import slots, step
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Cell, Contrast, Generation, Request, Stream
from logit_amplification.errors import BadInput
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.machine import devices

from .mistral_shape import SHAPES, shape
from .results import Row

SMALL_LENGTH = 12


def gpu(options: argparse.Namespace) -> list[Row]:
    """Run the checks, then `mistral_shape.shape` at every precision and width.

    Raises BadInput, naming the check, if one fails.
    """
    for must_hold in (equals_generate, graph_equals_eager, keeps_to_itself, survives_out_of_memory):
        print(f"  {must_hold.__doc__} {must_hold() or 'Yes.'}", flush=True)
    options.random_weights = True
    options.quantization = options.quantization or ["none", "8bit", "4bit"]
    options.widths = options.widths or [1, 8, 32, 128]
    return shape(options)


def equals_generate() -> None:
    """The engine makes the tokens of `generate`, greedily, in float32."""
    model, contexts = small_model()
    made = run_small(model, contexts, alphas=(0.0, 1.0))
    for cell, generation in made.items():
        a, b = (torch.tensor([stream.ids], device=model.device) for stream in contexts["p"].streams)
        guided = {"guidance_scale": 1 + cell.alpha, "negative_prompt_ids": b} if cell.alpha else {}
        answer = model.generate(
            a, max_new_tokens=SMALL_LENGTH, do_sample=False, eos_token_id=None, **guided
        )
        check(
            "engine and generate differ", generation.token_ids == answer[0, a.shape[1] :].tolist()
        )


def graph_equals_eager() -> str | None:
    """A captured step makes the tokens and measures of an eager one."""
    model, contexts = small_model()
    if model.device.type not in step.CAPTURED:
        return f"Not asked: nothing is captured on {model.device.type}."
    captured = run_small(model, contexts)
    kept, step.CAPTURED = step.CAPTURED, set()
    try:
        eager = run_small(model, contexts)
    finally:
        step.CAPTURED = kept
    check("graph and eager step differ", contents(captured) == contents(eager))
    return None


def keeps_to_itself() -> None:
    """A cell comes out the same alone as beside others."""
    model, contexts = small_model()
    together = run_small(model, contexts)
    last = list(together)[-1]
    alone = run_small(model, contexts, alphas=(last.alpha,))
    check(
        "a cell alone and beside others differ", contents(alone)[last] == contents(together)[last]
    )


def survives_out_of_memory() -> str | None:
    """Out of memory halves the slots, and every cell is made."""
    model, contexts = small_model()
    if model.device.type != "cuda":
        return f"Not asked: it cannot be provoked on {model.device.type}."
    halved: list[int] = []
    count = 1024
    torch.cuda.empty_cache()
    bytes_each = sum(slots.slot_bytes([model] * 2, 64).values())
    room = torch.cuda.memory_allocated() + count * bytes_each // 4
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    try:
        alphas = [n / count for n in range(count)]
        made = run_small(model, contexts, alphas=alphas, width=count, halved=halved.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    check("cells were lost, or memory did not run out,", len(made) == count and bool(halved))
    return f"Yes, {count} slots became {halved[-1]}."


def small_model() -> tuple[Any, dict[str, Contrast]]:
    """Return a random two-layer Mistral in float32, and two contexts of different lengths."""
    torch.manual_seed(0)
    config = MistralConfig(**SHAPES["tiny"], sliding_window=None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    streams = Stream((1, 5, 9, 33, 60)), Stream((1, 80, 81, 82, 83, 84, 85, 86, 87))
    return model.to(devices.choose_device("auto")), {"p": Contrast(*streams)}


def run_small(
    model: Any,
    contexts: dict[str, Contrast],
    alphas: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    width: int = 4,
    halved: Callable[[int], None] = lambda slots: None,
) -> dict[Cell, Generation]:
    """Return greedy generations at these alphas."""
    engine = BatchedEngine(model, width, step="eager", on_out_of_memory=halved)
    request = Request(make_sampler(0.0), 0, SMALL_LENGTH)
    cells = [Cell("p", alpha, 0) for alpha in alphas]
    return {one.cell: one for one in engine.generate(cells, contexts, request)}


def contents(made: dict[Cell, Generation]) -> dict[Cell, Any]:
    """Return tokens and measures, for a comparison bit by bit."""
    return {cell: (one.token_ids, one.per_token) for cell, one in made.items()}


def check(otherwise: str, holds: bool) -> None:
    """Raise BadInput if a check fails: figures of a faulty engine would be worthless."""
    if not holds:
        raise BadInput(f"{otherwise} on this machine; nothing was measured")
