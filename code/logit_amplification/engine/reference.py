"""The sampling loop spelled out for one pair: the notebook quotes it, the engine is held to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..logits.amplification import amplify
from ..logits.measures import measure_step
from ..logits.sampling import Sampler
from ..models.loading import next_logits
from .batched import Cell, Generation, cell_uniforms
from .slots import Ids


class Step(NamedTuple):
    """One sampled token and the logits it was drawn from, each (1, vocab) float32."""

    token: int
    logits_a: Tensor
    logits_b: Tensor
    amplified: Tensor


@torch.inference_mode()
def sample_amplified(model, ids_a, ids_b, alpha, *, sampler, uniforms, stop_ids):
    """Yield a Step per token. Each context keeps its own cache; both go on with the same token."""
    cache_a = cache_b = None
    for uniform in uniforms:
        logits_a, cache_a = next_logits(model, ids_a, cache_a)
        logits_b, cache_b = next_logits(model, ids_b, cache_b)
        amplified = amplify(logits_a, logits_b, alpha)
        token = int(sampler(amplified, uniform.reshape(1)))
        yield Step(token, logits_a, logits_b, amplified)
        if token in stop_ids:
            return
        ids_a = ids_b = [token]


def generate_by_loop(
    loop: Callable[..., Iterator[Step]],
    model: Any,
    cells: Iterable[Cell],
    contexts: Mapping[str, tuple[Ids, Ids]],
    *,
    sampler: Sampler,
    seed: int,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    on_step: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Generation]:
    """Yield generations as `engine.generate` does, made by a sampling loop for one pair."""
    for cell in cells:
        generation = Generation(cell, slots=1)
        numbers = cell_uniforms(cell, seed, max_new_tokens)
        ids_a, ids_b = contexts[cell.pair_id]
        for step in loop(
            model, ids_a, ids_b, cell.alpha, sampler=sampler, uniforms=numbers, stop_ids=stop_ids
        ):
            token = torch.tensor([step.token], device=step.logits_a.device)
            measured = measure_step(step.logits_a, step.logits_b, step.amplified, token)
            generation.token_ids.append(step.token)
            generation.per_token.append(measured[0].tolist())
            on_step(1)
        ended = bool(generation.token_ids) and generation.token_ids[-1] in stop_ids
        generation.finish_reason = "eos" if ended else "length"
        yield generation
