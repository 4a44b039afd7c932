"""Sample plain answers of one model with the engine, without any contrast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Cell, Contrast, Generation, Request, Stream
from logit_amplification.logits.sampling import make_sampler

SLOTS = 96


def answers(
    model: Any,
    prompts: Mapping[str, tuple[int, ...]],
    samples: range,
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    stop_ids: frozenset[int],
) -> Iterator[Generation]:
    """Yield an answer to each prompt and sample as it finishes, drawn without top-k or nucleus.

    Both streams of a contrast are the same, so that each slot is one row and alpha has no effect.
    """
    contexts = {name: Contrast(Stream(ids), Stream(ids)) for name, ids in prompts.items()}
    cells = (Cell(name, 0.0, sample) for sample in samples for name in prompts)
    request = Request(make_sampler(temperature, 0, 1.0), seed, max_new_tokens, stop_ids)
    yield from BatchedEngine(model, SLOTS).generate(cells, contexts, request)
