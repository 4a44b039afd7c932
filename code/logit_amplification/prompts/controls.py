"""Derive control pairs from the prompt pairs: swapped, shuffled and paraphrase."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadInput
from .pairs import Message, PromptPair

NULL_CATEGORY = "control"  # not "null": pandas reads that word in a CSV as a missing value


def with_controls(pairs: Sequence[PromptPair], controls: Sequence[str]) -> list[PromptPair]:
    """Return the pairs, followed by the control pairs derived from them.

    `swapped` contrasts B with A, `shuffled` A with the B of another pair, and `paraphrase` A with
    its paraphrase, for pairs that have one. Raises BadInput when no pair allows a control, or when
    an id of the prompt file equals that of a derived control.
    """
    made = list(pairs)
    plain = [pair for pair in pairs if not pair.control]
    for control in controls:
        others = DERIVED[control](plain)
        if not others:
            raise BadInput(f"CONTROLS = {control}: no pair of this prompt file allows it")
        for pair, (a, b), sources in others:
            name, category = f"{pair.id}~{control}", f"{NULL_CATEGORY}: {control}"
            made.append(
                PromptPair(
                    *(name, category, a, b),
                    family=pair.unit,
                    attribute=pair.attribute,
                    derived=control,
                    origin=pair.id,
                    sources=sources,
                    base=pair.base,
                )
            )
    if len({pair.id for pair in made}) < len(made):
        raise BadInput("CONTROLS: an id in the prompt file ends like the id of a derived control")
    return made


Derived = list[tuple[PromptPair, tuple[tuple[Message, ...], tuple[Message, ...]], tuple[str, ...]]]


def _swapped(pairs: Sequence[PromptPair]) -> Derived:
    return [(p, (p.b, p.a), (p.sources[1], p.sources[0], *p.sources[2:])) for p in pairs]


def _shuffled(pairs: Sequence[PromptPair]) -> Derived:
    """Take the B of the pair half a list further on, or of the next one after it that differs.

    Neighbours in the list often share a family, so their B's would be too similar.
    """
    made: Derived = []
    for place, pair in enumerate(pairs):
        first = place + len(pairs) // 2
        bs = [pairs[(first + step) % len(pairs)].b for step in range(len(pairs))]
        other = next((b for b in bs if b not in (pair.a, pair.b)), None)
        if other is not None:
            made.append((pair, (pair.a, other), pair.sources))
    return made


def _paraphrase(pairs: Sequence[PromptPair]) -> Derived:
    """Read both sides with A's weights, so that only the wording differs."""
    return [
        (pair, (pair.a, pair.paraphrase), (pair.sources[0], pair.sources[0], *pair.sources[2:]))
        for pair in pairs
        if pair.paraphrase
    ]


DERIVED = {"swapped": _swapped, "shuffled": _shuffled, "paraphrase": _paraphrase}
