"""Control pairs that are derived from the prompt pairs."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadInput
from .pairs import Message, PromptPair

NULL_CATEGORY = "control"  # not "null": readers of the CSV take that word for no value


def with_controls(pairs: Sequence[PromptPair], controls: Sequence[str]) -> list[PromptPair]:
    """Return the pairs and, behind them, the controls that are derived from them.

    `swapped` amplifies B against A, `shuffled` A against the B of another pair, and `paraphrase` A
    against A in other words, for the pairs that have these. Raises BadInput where there are none.
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
        raise BadInput("CONTROLS: an id of the prompt file ends as that of a derived control does")
    return made


Derived = list[tuple[PromptPair, tuple[tuple[Message, ...], tuple[Message, ...]], tuple[str, ...]]]


def _swapped(pairs: Sequence[PromptPair]) -> Derived:
    return [(p, (p.b, p.a), (p.sources[1], p.sources[0], *p.sources[2:])) for p in pairs]


def _shuffled(pairs: Sequence[PromptPair]) -> Derived:
    """Half the list further on, for neighbours are often of one family; then the next that fits."""
    made: Derived = []
    for place, pair in enumerate(pairs):
        first = place + len(pairs) // 2
        bs = [pairs[(first + step) % len(pairs)].b for step in range(len(pairs))]
        other = next((b for b in bs if b not in (pair.a, pair.b)), None)
        if other is not None:
            made.append((pair, (pair.a, other), pair.sources))
    return made


def _paraphrase(pairs: Sequence[PromptPair]) -> Derived:
    """Both read with A's weights: what other words alone do."""
    return [
        (pair, (pair.a, pair.paraphrase), (pair.sources[0], pair.sources[0], *pair.sources[2:]))
        for pair in pairs
        if pair.paraphrase
    ]


DERIVED = {"swapped": _swapped, "shuffled": _shuffled, "paraphrase": _paraphrase}
