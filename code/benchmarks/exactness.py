"""Measure exactness: bits in other batches, effects between rows, precision of the weights."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from logit_amplification.engine.interface import Cell, Generation
from logit_amplification.logits.amplification import amplify

from .results import Row
from .subject import Subject, fill_slots, load_subject

ALPHAS = (0.0, 0.5, 1.0, 2.0, 4.0)


# -------------------------------------------------------------------------------------- neighbours


def neighbours(options: argparse.Namespace) -> list[Row]:
    """Generate the default sweep's cells in differently composed batches and compare all bits."""
    rows = []
    # One cell alone takes as long as 48 together, so float32 runs only a tenth of the cells alone:
    # all of them take half an hour in bfloat16.
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
    """Count the cells whose tokens, or whose measures bit for bit, equal the reference."""
    tokens = sum(made[cell].token_ids == reference[cell].token_ids for cell in made)
    measures = sum(made[cell].per_token == reference[cell].per_token for cell in made)
    return {"cells": len(made), "same tokens": tokens, "same measures": measures}


# ---------------------------------------------------------------------------------------- coupling


def coupling(options: argparse.Namespace) -> list[Row]:
    """Measure how rows of one forward affect each other: KL to the same texts read one by one."""
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
    """Return KL(reference || found) at every step, and the share of steps with another argmax."""
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
    """Return logits under A and B at every step of given texts, each (steps, cells, vocab)."""
    batch = fill_slots(subject, cells, texts.shape[1], forwards=forwards)
    found = []
    for tokens in texts.T:
        found.append([logits.clone() for logits in batch.logits()])
        batch.forward(tokens)
    return tuple(torch.stack(side) for side in zip(*found, strict=True))


# --------------------------------------------------------------------------------------- precision


def precision(options: argparse.Namespace) -> list[Row]:
    """Measure how the weights' precision changes the amplified distribution, against float32.

    The same texts (one per pair, generated in float32 at alpha 1) are read at every precision, in
    one batch, step by step as in a sweep.
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
    """An output head that computes in float32 from the model's 16-bit hidden states."""

    def __init__(self, head: torch.nn.Linear):
        super().__init__()
        self.weight = torch.nn.Parameter(head.weight.float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden (rows, tokens, size) in 16 bit to logits (rows, tokens, vocab) in float32."""
        return torch.nn.functional.linear(hidden.float(), self.weight)
