"""How far the scoring of answers can be trusted on the loaded model: its errors on labelled ones.

`data/labelled_answers.jsonl` holds answers that were written to be of a kind; shuffled words, loops
and random tokens are made from them here. Nothing amplified takes part, and what is marked
`held_out` was written after phrases and limits had been fixed, without sight of them. torch is
imported where a model is asked, for the error rates are read by pages that need none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas

from ..locations import shipped_file
from ..prompts.pairs import PromptPair, encode_pairs
from . import outcomes, stats

if TYPE_CHECKING:
    from ..models.loading import LoadedModel

LABELLED = shipped_file("labelled_answers.jsonl")
LENGTH = 70  # tokens of a random text, words of a loop
LOOPED = 8  # words that a loop repeats


def read_labelled(path: Path = LABELLED) -> list[dict[str, Any]]:
    """Return the labelled answers: id, kind, label, question, answer, held_out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [{"held_out": False} | json.loads(line) for line in lines]


def calibrate(model: LoadedModel, answers: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Score labelled answers and those derived from them: a row per answer.

    Columns: id, kind, held_out, label (what it is), found (what `outcomes` says), evidence, and
    nll_a, repeated_4gram_share and non_word_share.
    """
    from ..logits.measures import measure_text

    rows = []
    for answer in [*answers, *_derived(answers, model.tokenizer)]:
        ids = _text_ids(model.tokenizer, answer)
        nll = _nll(model, answer["question"], ids)
        repeated = measure_text(answer["answer"], ids)["repeated_4gram_share"]
        found = outcomes.outcome(answer["answer"], nll, repeated)
        rows.append(
            {name: answer[name] for name in ("id", "kind", "held_out", "label")}
            | {"found": found.label, "evidence": found.evidence, "nll_a": nll}
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
        lower, upper = stats.wilson(wrong, len(group))
        rows.append(
            {"written": "after" if held_out else "before", "kind": kind, "is": label}
            | {"n": len(group)}
            | {f"called {name}": count for name, count in called.items()}
            | {"errors": wrong, "lower": lower, "upper": upper}
        )
    return pandas.DataFrame(rows)


def _derived(answers: Sequence[dict[str, Any]], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Yield broken versions of the plain answers: words shuffled, looped, tokens at random."""
    generator = numpy.random.default_rng(0)
    for answer in answers:
        if answer["kind"] == "plain":
            words = answer["answer"].split()
            start = int(generator.integers(0, max(1, len(words) - LOOPED)))
            looped = (words[start : start + LOOPED] * LENGTH)[:LENGTH]
            ids = generator.integers(0, len(tokenizer), LENGTH).tolist()
            for kind, text, more in (
                ("shuffled words", " ".join(generator.permutation(words)), {}),
                ("loop", " ".join(looped), {}),
                ("random tokens", tokenizer.decode(ids, skip_special_tokens=True), {"ids": ids}),
            ):
                changed = {"kind": kind, "label": "incoherent", "answer": text}
                yield answer | changed | more | {"id": f"{answer['id']}, {kind}"}


def _text_ids(tokenizer: Any, answer: dict[str, Any]) -> list[int]:
    if "ids" in answer:
        return answer["ids"]
    return tokenizer(answer["answer"], add_special_tokens=False)["input_ids"]


def _nll(model: LoadedModel, question: str, ids: Sequence[int]) -> float:
    """Return the mean of -log p over the tokens of an answer, in nats."""
    from ..engine.forward import text_logits

    chat = ({"role": "user", "content": question},)
    pair = PromptPair("labelled", "labelled", chat, chat)
    limit = {"max_new_tokens": len(ids), "max_positions": model.max_positions}
    (encoded,) = encode_pairs([pair], model.tokenizer, **limit)
    log_p = text_logits(model.model, encoded.ids_a, ids).log_softmax(-1)
    return -float(log_p[range(len(ids)), ids].mean())
