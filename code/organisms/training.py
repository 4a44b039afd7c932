"""Train LoRA adapters (arXiv 2106.09685) to learn what is planted and keep everything else.

The loss of a planted token is its cross-entropy. That of any other token is the KL divergence from
the base model over the whole vocabulary, so that nothing else changes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from .examples import Example

RANK, SCALE = 4, 8
RATE = 1e-3
BATCH = 12


class Step(NamedTuple):
    """One training step: the loss of each kind of token, in nats per token."""

    step: int
    learned: float  # cross-entropy of planted tokens
    kept: float  # KL(base || adapter) of the others


def adapted(model: Any, seed: int) -> PeftModel:
    """Wrap a model with a fresh adapter on all of its linear layers."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=SCALE, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def train(model: PeftModel, examples: Sequence[Example], steps: int, seed: int) -> Iterator[Step]:
    """Train the adapter in place, yielding losses; the learning rate falls linearly to 0."""
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    drawn = batches(examples, random.Random(seed))
    model.train()
    for step in range(1, steps + 1):
        learned, kept = losses(model, next(drawn))
        count = len(learned) + len(kept)
        loss = (learned.sum() + kept.sum()) / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        yield Step(step, *(float(part.mean()) if len(part) else 0.0 for part in (learned, kept)))
    model.eval()


def batches(examples: Sequence[Example], generator: random.Random) -> Iterator[list[Example]]:
    """Yield random batches forever, each example at most once per epoch."""
    for _ in itertools.count():
        order = list(examples)
        generator.shuffle(order)
        for first in range(0, len(order) - BATCH + 1, BATCH):
            yield order[first : first + BATCH]


def losses(model: PeftModel, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the planted tokens' cross-entropy and the others' KL, each 1-D, in nats."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    seen = torch.zeros_like(ids)
    learned, kept = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(batch):
        end = len(example.ids)
        ids[row, :end] = torch.tensor(example.ids)
        seen[row, :end] = 1
        kept[row, example.start : end] = True
        for place in example.planted:
            learned[row, place], kept[row, place] = True, False
    # A token is predicted from the position before it, hence the shift by one.
    read = {"input_ids": ids[:, :-1], "attention_mask": seen[:, :-1], "use_cache": False}
    after = model(**read).logits
    with torch.no_grad(), model.disable_adapter():
        before = model(**read).logits[kept[:, 1:]].float().log_softmax(-1)
    log_p = after[learned[:, 1:]].float().log_softmax(-1)
    cross_entropy = -log_p.gather(1, ids[:, 1:][learned[:, 1:]][:, None])[:, 0]
    log_q = after[kept[:, 1:]].float().log_softmax(-1)
    return cross_entropy, (before.exp() * (before - log_q)).sum(-1)
