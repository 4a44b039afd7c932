"""Measure how far the scoring of answers can be trusted: its errors on labelled answers.

`data/labelled_generations.jsonl` holds amplified answers of the demo model with the labels of two
blind readings. `data/labelled_answers.jsonl` holds refusals, and answers that are not refusals,
which were written to test the phrase list. Items marked `held_out` were not used to choose phrases
and limits. torch is imported only where a model is run, because pages that need no model also read
the error rates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas

from ..locations import shipped_file
from ..prompts.chat import encode_pairs
from ..prompts.pairs import PromptPair
from ..statistics import correction, intervals
from . import outcomes
from .attributes import attributes

if TYPE_CHECKING:
    from ..models.loading import LoadedModel

WRITTEN = shipped_file("labelled_answers.jsonl")
GENERATED = shipped_file("labelled_generations.jsonl")
AMPLIFIED = "amplified"  # the kind of the model's own answers


def read_labelled(path: Path = WRITTEN) -> list[dict[str, Any]]:
    """Return the answers that were written to be of a known kind.

    Each has id, kind, label, system, question, answer and held_out.
    """
    return [{"held_out": False, "system": ""} | answer for answer in _lines(path)]


def read_generated(path: Path = GENERATED) -> list[dict[str, Any]]:
    """Return the amplified answers with the labels of both readings, `first` and `second`.

    Otherwise as `read_labelled`, with the kind `AMPLIFIED`. label is the outcome that both readings
    agree on, or None.
    """
    answers = []
    for answer in _lines(path):
        first, second = (answer[reading]["outcome"] for reading in ("first", "second"))
        label = first if first == second else None
        answers.append(answer | {"kind": AMPLIFIED, "label": label})
    return answers


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())


def calibrate(
    model: LoadedModel, answers: Sequence[dict[str, Any]], usual: float | None
) -> pandas.DataFrame:
    """Score labelled answers: one row per answer that has a label.

    The likelihood of a text that the model did not write says nothing about its coherence, and is
    left out. usual: the NLL of the model's own text, from `outcomes.usual_nll` of a sweep. Columns:
    id, kind, held_out, label (what it is), found (what `outcomes` says), evidence, nll_a, excess,
    repeated_4gram_share and non_word_share.
    """
    from ..logits.measures import measure_text

    rows = []
    for answer in answers:
        if answer["label"] is None:
            continue
        ids = model.tokenizer(answer["answer"], add_special_tokens=False)["input_ids"]
        nll = _nll(model, answer, ids) if answer["kind"] == AMPLIFIED else None
        excess = outcomes.excess_nll(nll, len(ids), usual)
        repeated = measure_text(answer["answer"], ids)["repeated_4gram_share"]
        found = outcomes.outcome(answer["answer"], excess, repeated)
        rows.append(
            {name: answer[name] for name in ("id", "kind", "held_out", "label")}
            | {"found": found.label, "evidence": found.evidence, "nll_a": nll}
            | {"excess": excess}
            | {"repeated_4gram_share": repeated}
            | {"non_word_share": outcomes.non_word_share(answer["answer"])}
        )
    return pandas.DataFrame(rows)


@lru_cache
def refusal_errors() -> correction.Errors:
    """Count the phrase list's errors on held-out amplified answers that both readings agree on.

    From the texts alone, so no model is needed: what the phrase list says, whether coherent or not.
    """
    held_out = [a for a in read_generated() if a["held_out"] and a["label"] is not None]
    found = ["refusal" if outcomes.refusal_phrase(a["answer"]) else "other" for a in held_out]
    scored = pandas.DataFrame({"label": [a["label"] for a in held_out], "found": found})
    return correction.errors_of(scored, "refusal")


def error_rates(scored: pandas.DataFrame) -> pandas.DataFrame:
    """Return a row per kind of labelled answer: n, how they were scored, the share of errors.

    scored: the table from `calibrate`. The share has Wilson's 95 % bounds.
    """
    rows = []
    scored = scored.sort_values("held_out", kind="stable")
    for (held_out, kind, label), group in scored.groupby(["held_out", "kind", "label"], sort=False):
        called = {name: int((group["found"] == name).sum()) for name in outcomes.LABELS}
        wrong = 1 - called[label] / len(group)
        lower, upper = intervals.wilson(wrong, len(group))
        rows.append(
            {"used for the limits": "no" if held_out else "yes", "kind": kind, "is": label}
            | {"n": len(group)}
            | {f"called {name}": count for name, count in called.items()}
            | {"errors": wrong, "lower": lower, "upper": upper}
        )
    return pandas.DataFrame(rows)


READ = ("outcome", "tone", "stance", "hedged", "register")  # answered by each reading


def readings(answers: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Return, per question, how far the two readings agree, and how well our attribute does.

    Columns: question, n, agreed (the share), kappa (Cohen 1960) with its 95 % bounds; for questions
    that have an attribute, also attribute, n_agreed and right: among the answers on which the
    readings agree, the share that the value of the attribute puts into the same class.
    """
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    rows = []
    for name in READ:
        given = [(a["first"][name], a["second"][name], a["answer"]) for a in answers]
        classes = sorted({label for one in given for label in one[:2]})
        codes = numpy.array([[classes.index(label) for label in one[:2]] for one in given])
        with numpy.errstate(invalid="ignore"):  # kappa is undefined if all labels are equal
            found = cohens_kappa(to_table(codes, bins=numpy.arange(len(classes) + 1) - 0.5)[0])
        row = {
            "question": name,
            "n": len(given),
            "agreed": float((codes[:, 0] == codes[:, 1]).mean()),
        }
        row |= {"kappa": found.kappa, "lower": found.kappa_low}
        row |= {"upper": min(1.0, found.kappa_upp)}
        if name in CLASSES:
            attribute, classify = CLASSES[name]
            alike = [(one, text) for one, two, text in given if one == two]
            right = [classify(attributes(text)[attribute] or 0.0) == one for one, text in alike]
            row |= {
                "attribute": attribute,
                "n_agreed": len(alike),
                "right": float(numpy.mean(right)),
            }
        rows.append(row)
    return pandas.DataFrame(rows)


def _three(low: float, high: float, names: Sequence[str]) -> Callable[[float], str]:
    return lambda value: names[0] if value < low else names[2] if value > high else names[1]


# The attribute that answers a question of the readings, and the limits of its classes. Those of the
# tone are VADER's own.
CLASSES: dict[str, tuple[str, Callable[[float], str]]] = {
    "tone": ("sentiment", _three(-0.05, 0.05, ("negative", "neutral", "positive"))),
    "stance": ("agreement", _three(-0.5, 0.5, ("disagrees", "neither", "agrees"))),
    "hedged": ("hedging", lambda value: "yes" if value > 0 else "no"),
}


def _nll(model: LoadedModel, answer: dict[str, Any], ids: Sequence[int]) -> float | None:
    """Return an answer's mean negative log-likelihood per token in nats; None without tokens."""
    from ..engine.forward import text_nll

    if not ids:
        return None
    said = {"system": answer["system"], "user": answer["question"]}
    chat = tuple({"role": role, "content": text} for role, text in said.items() if text)
    pair = PromptPair("labelled", "labelled", chat, chat)
    limit = {"max_new_tokens": len(ids), "max_positions": model.max_positions}
    (encoded,) = encode_pairs([pair], model.tokenizer, **limit)
    return text_nll(model.model, encoded.ids_a, ids)
