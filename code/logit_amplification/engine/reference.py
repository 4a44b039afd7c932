"""The sampling loop spelled out for one pair: the notebook quotes it, the engine is held to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import BadInput
from ..logits.amplification import amplify
from ..logits.measures import measure_step
from ..logits.sampling import Draw
from .batch.drawing import append_token
from .forward import next_logits
from .interface import MODEL, Cell, Contrast, Generation, Request


class Step(NamedTuple):
    """One draw and the logits that it was made from, each (1, vocab) float32."""

    drawn: Draw
    logits_a: Tensor
    logits_b: Tensor
    amplified: Tensor

    @property
    def token(self) -> int:
        """The id of the sampled token."""
        return int(self.drawn.tokens)


@torch.inference_mode()
def sample_amplified(model, ids_a, ids_b, alpha, *, sampler, uniforms, stop_ids):
    """Yield a Step per token. Each context keeps its own cache; both go on with the same token."""
    cache_a = cache_b = None
    for uniform in uniforms:
        logits_a, cache_a = next_logits(model, ids_a, cache_a)
        logits_b, cache_b = next_logits(model, ids_b, cache_b)
        amplified = amplify(logits_a, logits_b, alpha)
        step = Step(sampler(amplified, uniform.reshape(1)), logits_a, logits_b, amplified)
        yield step
        if step.token in stop_ids:
            return
        ids_a = ids_b = [step.token]


class LoopEngine:
    """Makes one cell after the other with a sampling loop for one pair, which has its own rule."""

    def __init__(self, model: Any, loop: Callable[..., Iterator[Step]] = sample_amplified):
        self.model, self.loop = model, loop

    def describe(self) -> dict[str, Any]:
        """Return what of the engine can change a token; the loop itself is hashed elsewhere."""
        return {"name": "loop"}

    def capacity(self) -> int:
        """Return how many cells are made side by side."""
        return 1

    def generate(
        self, cells: Iterable[Cell], contexts: Mapping[str, Contrast], request: Request
    ) -> Iterator[Generation]:
        """Yield each cell's generation when it is finished."""
        for cell in cells:
            a, b = contexts[cell.pair_id].streams[-2:]
            if {a.source, b.source} != {MODEL}:
                raise BadInput("a loop of your own reads one model; allowed: no ADAPTER or MODEL_B")
            generation = Generation(cell, slots=1)
            for step in self.loop(
                self.model,
                a.ids,
                b.ids,
                cell.alpha,
                sampler=request.sampler,
                uniforms=request.uniforms(cell),
                stop_ids=request.stop_ids,
            ):
                measured = measure_step(step.logits_a, step.logits_b, step.amplified, step.drawn)
                append_token(generation, step.token, measured[0].tolist(), request)
                request.on_step(1)
                if generation.finish_reason == "error":
                    break
            generation.finish_reason = generation.finish_reason or "length"
            yield generation
