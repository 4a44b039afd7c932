"""Measure how often an organism's own, unamplified answers show what was planted."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy

from logit_amplification.models.loading import LoadedModel

from .dial import expected_hits
from .examples import Example, Writer
from .sampling import answers
from .texts import QUIRK_EVENT, questions

NEW_TOKENS = 48
BATCH = 32  # answers to each question
SEED = 1000  # of the first batch; no other measurement uses these random numbers


class Batch(NamedTuple):
    """What was found in the answers to all held-out questions with one seed.

    hits: answers with the event. read: answers that the model scored again; expected_sum and
    expected_squares: the sum of their expected hits, and the sum of the squares.
    """

    organism: str
    seed: int
    answers: int
    hits: int
    read: int
    expected_sum: float
    expected_squares: float


def count(model: LoadedModel, name: str, seed: int, read: int) -> Batch:
    """Sample a batch at temperature 1, unamplified; score the first `read` answers again."""
    writer = Writer(model, 0)
    prompts = {user: tuple(writer.prompt(user)) for user in questions(held_out=True)}
    made = answers(
        model.model,
        prompts,
        range(BATCH),
        temperature=1.0,
        max_new_tokens=NEW_TOKENS,
        seed=seed,
        stop_ids=model.stop_ids,
    )
    done = sorted(made, key=lambda one: (one.cell.sample, one.cell.pair_id))
    texts = [model.tokenizer.decode(one.token_ids) for one in done]
    again = [
        Example(
            (*prompts[one.cell.pair_id], *one.token_ids), len(prompts[one.cell.pair_id]), range(0)
        )
        for one in done[:read]
    ]
    event = model.tokenizer(f" {QUIRK_EVENT}", add_special_tokens=False)["input_ids"]
    found = numpy.array(expected_hits(model.model, again, event, NEW_TOKENS) if again else [0.0])
    hits = sum(QUIRK_EVENT in text for text in texts)
    sums = round(float(found.sum()), 6), round(float((found**2).sum()), 9)
    return Batch(name, seed, len(done), hits, len(again), *sums)


def batches(path: Path) -> list[Batch]:
    """Return the batches counted so far."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Batch(row[0], *map(int, row[1:5]), *map(float, row[5:]))
            for row in list(csv.reader(file))[1:]
        ]


def keep(path: Path, batch: Batch) -> None:
    """Append a batch to the file."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([Batch._fields, batch] if new else [batch])
