"""How far the scoring of answers can be trusted on the loaded model: its errors on labelled ones.

`data/labelled_generations.jsonl` holds amplified answers of the demo model with the labels of two
blind readings; `data/labelled_answers.jsonl` refusals, and answers that are none, which were
written to try the list of phrases on. What is marked `held_out` took no part in fixing phrases and
limits. torch is imported where a model is asked, for the error rates are read by pages that need
none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas

from ..locations import shipped_file
from ..prompts.chat import encode_pairs
from ..prompts.pairs import PromptPair
from ..statistics import intervals
from . import outcomes
from .attributes import attributes

if TYPE_CHECKING:
    from ..models.loading import LoadedModel

WRITTEN = shipped_file("labelled_answers.jsonl")
GENERATED = shipped_file("labelled_generations.jsonl")
AMPLIFIED = "amplified"  # the kind of the model's own answers


def read_labelled(path: Path = WRITTEN) -> list[dict[str, Any]]:
    """Return the answers that were written to be of a kind.

    id, kind, label, system, question, answer, held_out.
    """
    return [{"held_out": False, "system": ""} | answer for answer in _lines(path)]


def read_generated(path: Path = GENERATED) -> list[dict[str, Any]]:
    """Return the amplified answers with the labels of both readings, `first` and `second`.

    As `read_labelled`, of the kind `AMPLIFIED`; label is what both readings say, or None.
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
    """Score labelled answers: a row per answer that has a label.

    Of what a model did not write itself its likelihood tells nothing, and is left out. usual: the
    NLL of the model's own text, `outcomes.usual_nll` of a sweep. Columns: id, kind, held_out, label
    (what it is), found (what `outcomes` says), evidence, and nll_a, excess, repeated_4gram_share
    and non_word_share.
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


def error_rates(scored: pandas.DataFrame) -> pandas.DataFrame:
    """Return a row per kind of labelled answer: n, what they were called, the share of errors.

    scored: as `calibrate` makes it. The share carries Wilson's 95 % bounds.
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


READ = ("outcome", "tone", "stance", "hedged", "register")  # what each reading says of a text


def readings(answers: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Return, per question that both readings answered, how far they agree; and how we score it.

    Columns: question, n, agreed (the share), kappa (Cohen 1960) with its 95 % bounds; attribute,
    n_agreed and right: of the answers on which the readings agree, the share that the attribute's
    sign puts into the same class.
    """
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    rows = []
    for name in READ:
        given = [(a["first"][name], a["second"][name], a["answer"]) for a in answers]
        classes = sorted({label for one in given for label in one[:2]})
        codes = numpy.array([[classes.index(label) for label in one[:2]] for one in given])
        with numpy.errstate(invalid="ignore"):  # all alike: then there is no kappa
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


# Which attribute answers a question of the readings, and from which value on. VADER's own limits.
CLASSES: dict[str, tuple[str, Callable[[float], str]]] = {
    "tone": ("sentiment", _three(-0.05, 0.05, ("negative", "neutral", "positive"))),
    "stance": ("agreement", _three(-0.5, 0.5, ("disagrees", "neither", "agrees"))),
    "hedged": ("hedging", lambda value: "yes" if value > 0 else "no"),
}


def _nll(model: LoadedModel, answer: dict[str, Any], ids: Sequence[int]) -> float | None:
    """Return the mean of -log p over the tokens of an answer, in nats; None without tokens."""
    from ..engine.forward import text_nll

    if not ids:
        return None
    said = {"system": answer["system"], "user": answer["question"]}
    chat = tuple({"role": role, "content": text} for role, text in said.items() if text)
    pair = PromptPair("labelled", "labelled", chat, chat)
    limit = {"max_new_tokens": len(ids), "max_positions": model.max_positions}
    (encoded,) = encode_pairs([pair], model.tokenizer, **limit)
    return text_nll(model.model, encoded.ids_a, ids)
