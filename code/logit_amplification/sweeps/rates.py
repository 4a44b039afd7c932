"""How often unamplified A does something, from a run: find the hits, read them again, estimate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy

from ..engine.rescoring import logprobs_at_alphas
from ..errors import BadInput
from ..evaluation.rare_events import Draws, Rate, estimate
from ..logits.amplification import amplify
from ..logits.arms import ARMS
from ..models.loading import LoadedModel, load_model
from ..prompts.chat import EncodedPair, encode_pairs
from ..prompts.pairs import PromptPair
from ..records.files import Record
from .history import Sweep
from .identity import named

SAMPLED = 200  # generations without the event that are read again, for the diagnostics


def compiled(event: str) -> re.Pattern[str]:
    """Return the regular expression of an event. Raises BadInput."""
    try:
        return re.compile(event)
    except re.error as error:
        raise BadInput(f"EVENT = {event!r}: no regular expression: {error}") from None


def estimate_rate(done: Sweep, event: re.Pattern[str], model: str | None = None) -> Rate:
    """Estimate how often an answer of A alone matches, over the pairs of a run.

    model: where the run's model is, if its name does not say so. Raises BadInput where the run
    cannot tell: greedy, without alpha 0, with a rule of its own, or made by another model.
    """
    run = done.run
    if run["sampling"]["temperature"] == 0:
        raise BadInput("TEMPERATURE = 0: a greedy answer has no rate; allowed: a run that samples")
    if run["rule"] != named(amplify, "RULE") or run["loop"]:
        raise BadInput(f"run {run['id']}: its rule is its own; allowed: a run of the built-in one")
    arm = min((r["arm"] for r in done.records), key=lambda name: name != "full")
    records = [
        done.whole_record(number)
        for number, r in enumerate(done.records)
        if r["arm"] == arm and not r["control"] and r["finish_reason"] != "error"
    ]
    if not any(r["alpha"] == 0 for r in records):
        raise BadInput(f"run {run['id']}: nothing finished at alpha 0; allowed: a run with alpha 0")
    decided = {id(r): _decided(r, event) for r in records}
    if not any(decided.values()):
        return estimate([_draws(run, own, decided, {}) for own in _by_pair(records)])
    loaded = _loaded(run, model)
    known = _rescored(loaded, run, arm, records, decided)
    return estimate([_draws(run, own, decided, known) for own in _by_pair(records)])


def in_words(found: Rate, event: str) -> str:
    """The estimate in one paragraph."""
    return (
        f"An answer of A alone matches {event!r} at a rate of {found.estimate:.3g} "
        f"[{found.lower:.2g}, {found.upper:.2g}], 95 % interval over families of pairs: "
        f"{found.verdict}. Counted at alpha 0 alone: {found.counted:.3g}. Effective sample size "
        f"{found.ess:.0f}, of the hits {found.ess_hits:.1f}; mean weight {found.mean_weight:.2f}."
    )


def _decided(record: Record, event: re.Pattern[str]) -> int:
    """After how many tokens the event is in the text; 0 if it is not.

    Raises BadInput for an event that a longer text can undo, as one with $ at its end.
    """
    so_far = accumulate(record["per_token"]["token"])
    first = next((n for n, text in enumerate(so_far, start=1) if event.search(text)), 0)
    if first and not event.search("".join(record["per_token"]["token"])):
        raise BadInput(
            f"EVENT = {event.pattern!r}: a longer text undoes it; allowed: what stays in the text "
            "once it is there (no $, no negative lookahead)"
        )
    return first


def _by_pair(records: list[Record]) -> Iterator[list[Record]]:
    names = dict.fromkeys(r["pair_id"] for r in records)
    yield from ([r for r in records if r["pair_id"] == name] for name in names)


def _draws(
    run: dict[str, Any], own: list[Record], decided: dict[int, int], known: dict[int, Any]
) -> Draws:
    levels = tuple(sorted({r["alpha"] for r in own}))
    every = sorted({alpha for row in known.values() for alpha in row})
    unknown = dict.fromkeys(every, numpy.nan)
    log_p = [[known.get(id(r), unknown).get(a, numpy.nan) for a in levels] for r in own]
    return Draws(
        own[0].get("family") or own[0]["pair_id"],
        levels,
        numpy.array([r["alpha"] for r in own]),
        numpy.array([decided[id(r)] > 0 for r in own]),
        numpy.array(log_p, dtype=float),
    )


def _loaded(run: dict[str, Any], model: str | None) -> LoadedModel:
    """Load the model that made the run, and refuse another."""
    made = run["model"]
    found = load_model(
        model or made["name"],
        revision=made.get("revision") or "auto",
        quantization=made["quantization"],
        dtype=made["dtype"],
        device=made["device"],
    )
    if other := [name for name in made if found.info.get(name) != made[name]]:
        raise BadInput(f"MODEL = {found.info['name']!r}: not the run's, its {other[0]} is another")
    return found


def _rescored(
    loaded: LoadedModel,
    run: dict[str, Any],
    arm: str,
    records: list[Record],
    decided: dict[int, int],
) -> dict[int, dict[float, float]]:
    """By record: the log-probability of its text at every alpha, up to where it was decided."""
    others = [r for r in records if not decided[id(r)]]
    generator = numpy.random.default_rng(0)
    some = generator.permutation(len(others))[:SAMPLED]
    chosen = [r for r in records if decided[id(r)]] + [others[place] for place in some]
    encoded = _encoded(loaded, run)
    alphas = sorted({r["alpha"] for r in records})
    found = {}
    for record in chosen:
        pair, ids = encoded[record["pair_id"]], record["token_ids"]
        end = decided[id(record)] or len(ids)
        scored = logprobs_at_alphas(
            loaded.model,
            (pair.ids_a, pair.ids_b),
            ids[:end],
            alphas,
            rule=amplify,
            arm=ARMS[arm],
            sampling=run["sampling"],
        )
        row = dict(zip(alphas, scored.sum(1).tolist(), strict=True))
        # What it was drawn with is known as it was: rounding may push a token out of a nucleus.
        row[record["alpha"]] = sum(record["per_token"]["logprob_sampled"][:end])
        found[id(record)] = row
    return found


def _encoded(loaded: LoadedModel, run: dict[str, Any]) -> dict[str, EncodedPair]:
    pairs = [
        PromptPair(pair["id"], pair["category"], tuple(pair["a"]), tuple(pair["b"]))
        for pair in run["pairs"]
        if not pair["control"]
    ]
    limit = {"max_new_tokens": 1, "max_positions": loaded.max_positions}
    return {one.pair.id: one for one in encode_pairs(pairs, loaded.tokenizer, **limit)}
