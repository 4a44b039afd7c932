"""Estimate how often unamplified A does something, from the generations of a run.

Finds the generations with the event, rescores them with the model, and passes both on to
`statistics.rare_events`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from ..engine.interface import Contrast
from ..engine.rescoring import logprobs_at_alphas
from ..errors import BadInput
from ..logits.amplification import amplify
from ..logits.arms import ARMS
from ..models.loading import LoadedModel, load_model
from ..models.spec import OTHERS
from ..prompts.chat import EncodedPair, encode_pairs
from ..prompts.pairs import ONE_MODEL, PromptPair
from ..records.files import Record, write_atomically
from ..statistics import proposals
from ..statistics.rare_events import Draws, Rate, estimate
from .history import Sweep
from .identity import named

SAMPLED = 200  # non-hits that are rescored where not all of them are
MOST_READ = 1_000  # up to so many generations, all are rescored
TOGETHER = 16  # texts in one forward pass
KEPT = "rescored.json"  # beside the journal


class RunRate(NamedTuple):
    """A rate, and what the run shows about its alphas."""

    rate: Rate
    alphas: list[proposals.Alpha]
    overlap: list[list[float]] | None
    pareto_k: float | None
    path: dict[str, proposals.Extrapolated]  # by degree of the curve; model-based
    draws: list[Draws]


def compiled(event: str) -> re.Pattern[str]:
    """Return the regular expression of an event. Raises BadInput if it is not a valid one."""
    try:
        return re.compile(event)
    except re.error as error:
        raise BadInput(f"EVENT = {event!r}: not a regular expression: {error}") from None


def estimate_rate(
    done: Sweep, event: re.Pattern[str], *, others: int | None = None, **where: str | None
) -> RunRate:
    """Estimate how often an answer of A alone matches `event`, over the pairs of a run.

    others: how many generations without the event are rescored besides the hits. None means all of
    them in a small run, which lowers the error, and a sample in a large one. where: `model`,
    `adapter`, `model_b`, `model_base`: where the run's weights are, if their names do not say so.
    Raises BadInput if the run cannot answer: it is greedy, lacks alpha 0, has a rule or loop of its
    own, or was made with other weights.
    """
    run = done.run
    if run["sampling"]["temperature"] == 0:
        raise BadInput("TEMPERATURE = 0: a greedy answer has no rate; allowed: a run that samples")
    if run["rule"] != named(amplify, "RULE") or run["loop"]:
        raise BadInput(
            f"run {run['id']}: it used a rule of its own; allowed: a run with the built-in rule"
        )
    arm = min((r["arm"] for r in done.records), key=lambda name: name != "full")
    records = [
        done.whole_record(number)
        for number, r in enumerate(done.records)
        if r["arm"] == arm and not r["control"] and r["finish_reason"] != "error"
    ]
    at_zero = {r["pair_id"] for r in records if r["alpha"] == 0}
    if not at_zero:
        raise BadInput(f"run {run['id']}: nothing finished at alpha 0; allowed: a run with alpha 0")
    # In an interrupted run, a pair without alpha 0 says nothing yet.
    records = [r for r in records if r["pair_id"] in at_zero]
    decided = {id(r): _decided(r, event) for r in records}
    known: dict[int, dict[float, float]] = {}
    if any(decided.values()):
        most = len(records) if len(records) <= MOST_READ else SAMPLED
        chosen = _chosen(records, decided, most if others is None else others)
        alphas = sorted({r["alpha"] for r in records})
        known = _Rescored(done, where, arm).of(chosen, decided, alphas)
    draws = [_draws(own, decided, known) for own in _by_pair(records)]
    return _told(draws)


def _told(draws: list[Draws]) -> RunRate:
    rate = estimate(draws)
    alphas = proposals.by_alpha(draws)
    same = len({one.levels for one in draws}) == 1 and rate.counted < 1 and rate.ess_hits > 0
    hits = numpy.concatenate([one.weights[one.hits] for one in draws])
    columns = [
        list(column) for column in zip(*((a.alpha, a.hits, a.draws) for a in alphas), strict=True)
    ]
    fitted = {
        name: proposals.extrapolated(*columns, degree=degree)
        for name, degree in (("linear", 1), ("quadratic", 2))
    }
    return RunRate(
        rate,
        alphas,
        numpy.round(proposals.overlap(draws), 4).tolist() if same else None,
        proposals.pareto_k(hits) if len(hits) >= 25 else None,
        {name: one for name, one in fitted.items() if one},
        draws,
    )


def as_object(found: RunRate) -> dict[str, Any]:
    """Return the estimate as the command writes it, with JSON's types only."""
    return {
        **found.rate._asdict(),
        "alphas": [
            {name: _known(value) for name, value in one._asdict().items()} for one in found.alphas
        ],
        "overlap": found.overlap and [[_known(value) for value in row] for row in found.overlap],
        "pareto_k": found.pareto_k,
        "too_far": proposals.too_far(found.alphas),
        "model_based": {name: one._asdict() for name, one in found.path.items()},
    }


def _known(value: float) -> float | None:
    """Return a number, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def in_words(found: RunRate, event: str) -> str:
    """Return the estimate as a few paragraphs of text."""
    rate = found.rate
    lines = [
        f"An answer at alpha 0 matches {event!r} at a rate of {rate.estimate:.3g} "
        f"[{rate.lower:.2g}, {rate.upper:.2g}], 95 % interval over families of pairs: "
        f"{rate.verdict}. Counted at alpha 0 alone: {rate.counted:.3g}. Effective sample size "
        f"{rate.ess:.0f}, of the hits {rate.ess_hits:.1f}; mean weight {rate.mean_weight:.2f}.",
        "alpha   answers   hits   mean weight   effective share",
    ]
    for a in found.alphas:
        told = "not read again"
        if not math.isnan(a.mean_weight):
            told = f"{a.mean_weight:<14.2f}{a.ess_share:.2f}"
        lines.append(f"{a.alpha:<8g}{a.draws:<10}{a.hits:<7}{told}")
    for alpha in proposals.too_far(found.alphas):
        lines.append(f"alpha {alpha:g} is too far from A to tell of it: leave it out")
    if found.pareto_k is not None:
        lines.append(f"Pareto k of the hits' weights {found.pareto_k:.2f} (trust below 0.7)")
    lines += [
        f"Model-based, a {name} curve through the other alphas: {one.estimate:.3g} "
        f"[{one.lower:.2g}, {one.upper:.2g}] if the curve is the true one"
        for name, one in found.path.items()
    ]
    return "\n".join(lines)


def planned(found: RunRate, total: int) -> str:
    """Return text on what to draw next: how to share `total` answers among the alphas."""
    plan = proposals.plan(found.draws, total, zero_with_each=True)
    if plan is None:
        return (
            "No alpha of this run is near enough to A and has hits in 2 to 40 of 100 answers: try "
            "others, as 0,0.2,0.3,0.5,0.7"
        )
    pairs = len(found.draws)
    lines = [
        f"Of {total} answers, for a relative error of {plan.relative_error:.0%} (one standard "
        "error), and the same settings but for these:"
    ]
    # A sweep has alpha 0 with every other alpha, and never less often.
    for alpha, count in sorted(plan.counts.items(), key=lambda one: one[1]):
        lines.append(f"  --alphas {alpha:g} --samples {max(1, round(count / pairs))}")
    return "\n".join(lines)


def _decided(record: Record, event: re.Pattern[str]) -> int:
    """Return after how many tokens the event is in the text; 0 if it is not.

    Raises BadInput for an event that a longer text can undo, such as one with $ at its end.
    """
    so_far = accumulate(record["per_token"]["token"])
    found = [event.search(text) is not None for text in so_far]
    if True in found and not all(found[found.index(True) :]):
        raise BadInput(
            f"EVENT = {event.pattern!r}: a longer text can undo the match; allowed: what still "
            "matches once it has matched (no $, no \\b at its end, no negative lookahead)"
        )
    return found.index(True) + 1 if True in found else 0


def _by_pair(records: list[Record]) -> Iterator[list[Record]]:
    names = dict.fromkeys(r["pair_id"] for r in records)
    yield from ([r for r in records if r["pair_id"] == name] for name in names)


def _chosen(records: list[Record], decided: dict[int, int], others: int) -> list[Record]:
    """Return the generations to rescore: all hits, and `others` of the rest (fixed seed)."""
    rest = [r for r in records if not decided[id(r)]]
    some = numpy.random.default_rng(0).permutation(len(rest))[:others]
    return [r for r in records if decided[id(r)]] + [rest[place] for place in some]


def _draws(own: list[Record], decided: dict[int, int], known: dict[int, Any]) -> Draws:
    levels = tuple(sorted({r["alpha"] for r in own}))
    unknown = dict.fromkeys(levels, numpy.nan)
    log_p = [[known.get(id(r), unknown)[a] for a in levels] for r in own]
    return Draws(
        own[0].get("family") or own[0]["pair_id"],
        levels,
        numpy.array([r["alpha"] for r in own]),
        numpy.array([decided[id(r)] > 0 for r in own]),
        numpy.array(log_p, dtype=float),
        numpy.array([r["sample"] for r in own]),
    )


def _loaded(run: dict[str, Any], where: dict[str, str | None]) -> LoadedModel:
    """Load the weights that made the run. Raises BadInput if they are others or missing."""
    made = run["model"]
    beside = [name for name in OTHERS if name in made and made[name]["name"] != made["name"]]
    missing = [name for name in beside if not where.get(name)]
    if missing:
        raise BadInput(
            f"{missing[0].upper()} is not given; the run was made with {made[missing[0]]['name']!r}"
        )
    found = load_model(
        where.get("model") or made["name"],
        revision=made.get("revision") or "auto",
        quantization=made["quantization"],
        dtype=made["dtype"],
        device=made["device"],
        **{name: where[name] for name in beside},
    )
    if other := [name for name in made if found.info.get(name) != made[name]]:
        raise BadInput(
            f"MODEL = {found.info['name']!r}: not the run's model, its {other[0]} differs"
        )
    return found


class _Rescored:
    """Rescores generations of a run, and keeps the results beside the journal."""

    def __init__(self, done: Sweep, where: dict[str, str | None], arm: str):
        self.run, self.where, self.arm = done.run, where, arm
        self.path: Path = done.journal.folder / KEPT
        try:
            self.kept: dict[str, dict[str, float]] = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            self.kept = {}

    def of(
        self, records: Sequence[Record], decided: dict[int, int], alphas: Sequence[float]
    ) -> dict[int, dict[float, float]]:
        """Return, by `id` of the record, the log-probability of its text at every alpha, in nats.

        Each text counts up to the token that decided it.
        """
        names = {id(r): self._name(r, decided[id(r)]) for r in records}
        wanted = {f"{alpha:g}" for alpha in alphas}
        missing = [r for r in records if not wanted <= set(self.kept.get(names[id(r)], {}))]
        if missing:
            self._read(missing, decided, alphas, names)
            text = json.dumps(self.kept, allow_nan=True)
            write_atomically(self.path, [text])
        return {
            id(r): {alpha: self.kept[names[id(r)]][f"{alpha:g}"] for alpha in alphas}
            for r in records
        }

    def _name(self, record: Record, end: int) -> str:
        ids = record["token_ids"][: end or None]
        of_text = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
        key = (record["pair_id"], record["pair_fingerprint"], record["alpha"], record["sample"])
        return " ".join(map(str, (*key, self.arm, of_text)))

    def _read(
        self,
        records: Sequence[Record],
        decided: dict[int, int],
        alphas: Sequence[float],
        names: dict[int, str],
    ) -> None:
        loaded = _loaded(self.run, self.where)
        encoded = _encoded(loaded, self.run)
        for own in _by_pair(list(records)):
            contrast = Contrast.of(encoded[own[0]["pair_id"]])
            own = sorted(own, key=lambda r: decided[id(r)] or len(r["token_ids"]))
            for first in range(0, len(own), TOGETHER):
                some = own[first : first + TOGETHER]
                ends = [decided[id(r)] or len(r["token_ids"]) for r in some]
                scored = logprobs_at_alphas(
                    loaded.sources,
                    contrast,
                    [r["token_ids"][:end] for r, end in zip(some, ends, strict=True)],
                    alphas,
                    rule=amplify,
                    arm=ARMS[self.arm],
                    sampling=self.run["sampling"],
                )
                for record, end, rows in zip(some, ends, scored, strict=True):
                    row = dict(zip((f"{a:g}" for a in alphas), rows.sum(1).tolist(), strict=True))
                    # The probability that it was drawn with is on record. Rounding in the forward
                    # pass may push a token out of the nucleus.
                    drawn = record["per_token"]["logprob_sampled"][:end]
                    row[f"{record['alpha']:g}"] = sum(drawn)
                    self.kept.setdefault(names[id(record)], {}).update(row)


def _encoded(loaded: LoadedModel, run: dict[str, Any]) -> dict[str, EncodedPair]:
    pairs = [
        PromptPair(
            *(pair["id"], pair["category"], tuple(pair["a"]), tuple(pair["b"])),
            sources=tuple(pair.get("sources", ONE_MODEL)),
            base=tuple(pair["base"]) if "base" in pair else None,
        )
        for pair in run["pairs"]
        if not pair["control"]
    ]
    limit = {"max_new_tokens": 1, "max_positions": loaded.max_positions}
    return {one.pair.id: one for one in encode_pairs(pairs, loaded.tokenizer, **limit)}
