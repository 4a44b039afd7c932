"""Every text that greedy decoding gives at any alpha of an interval: exactly, not on a grid.

At each step the likeliest token, as a function of alpha, is the upper envelope of the lines
a_v + alpha * (a_v - b_v) (`alpha_profile.likeliest`). So the interval splits at computed alphas,
and each piece goes on by itself, sharing what it has read with the others up to there. All pieces
are decoded side by side in slots. Exact means: for the logits that the model gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..logits.alpha_profile import likeliest
from .batch.cache import prefill
from .batch.self_check import refuse_if_unlike
from .batch.slots import Slots
from .batch.step import kind_of_step


@dataclass(frozen=True)
class Leaf:
    """The text of all alphas from `low` to below `high`."""

    low: float
    high: float
    token_ids: tuple[int, ...]
    finish_reason: str  # "eos" or "length"; "open" while it grows

    def __contains__(self, alpha: float) -> bool:
        return self.low <= alpha < self.high


@dataclass(frozen=True)
class Split:
    """At `alpha` the texts part: their token number `step` is `before` below it, else `after`."""

    step: int
    alpha: float
    before: int
    after: int


@dataclass(frozen=True)
class AlphaTree:
    """The leaves by ascending alpha, where they part, and the intervals that were left out."""

    low: float
    high: float
    leaves: list[Leaf]
    splits: list[Split]
    left_out: list[tuple[float, float]]

    def leaf(self, alpha: float) -> Leaf | None:
        """Return the leaf of an alpha, or None where it was left out."""
        return next((leaf for leaf in self.leaves if alpha in leaf), None)


@torch.inference_mode()
def alpha_tree(
    model: Any,
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    low: float,
    high: float,
    *,
    max_new_tokens: int,
    max_leaves: int = 48,
    stop_ids: frozenset[int] = frozenset(),
) -> AlphaTree:
    """Return every text of greedy decoding at the alphas from `low` to below `high`.

    With more than `max_leaves` texts the narrowest pieces are given up at the step where they come
    to be too many; `left_out` has their intervals.
    """
    kind = kind_of_step("auto", [model])
    refuse_if_unlike(model, kind)
    longest = max(len(ids_a), len(ids_b)) + max_new_tokens
    slots = Slots([model, model], max_leaves, longest, kind=kind)
    slots.fill(0, [prefill(model, ids) for ids in (ids_a, ids_b)])
    grown = _Growing(slots, max_leaves, {0: Leaf(low, high, (), "open")})
    for step in range(max_new_tokens):
        grown.split(step, stop_ids, last=step == max_new_tokens - 1)
        if not grown.open:
            break
        slots.forward(grown.tokens(model.device))
    leaves = sorted(grown.leaves, key=lambda leaf: leaf.low)
    return AlphaTree(low, high, leaves, sorted(grown.splits, key=_place), sorted(grown.left_out))


def _place(split: Split) -> tuple[float, int]:
    return split.alpha, split.step


class _Growing:
    """The pieces that are being decoded, by slot, and what has come to an end."""

    def __init__(self, slots: Slots, most: int, pieces: dict[int, Leaf]):
        self.slots, self.most, self.open = slots, most, pieces
        self.leaves: list[Leaf] = []
        self.splits: list[Split] = []
        self.left_out: list[tuple[float, float]] = []

    def tokens(self, device: torch.device) -> torch.Tensor:
        """The last token of every slot, (slots,); idle slots get token 0."""
        tokens = torch.zeros(self.slots.slots, dtype=torch.long)
        for slot, piece in self.open.items():
            tokens[slot] = piece.token_ids[-1]
        return tokens.to(device)

    def split(self, step: int, stop_ids: frozenset[int], *, last: bool) -> None:
        """Give every piece its next token: one piece for each token that is likeliest somewhere."""
        children = [
            (slot, child)
            for slot, piece in self.open.items()
            for child in self._children(slot, piece, step)
        ]
        growing: list[tuple[int, Leaf]] = []
        for slot, child in self._kept(children):
            ended = child.token_ids[-1] in stop_ids
            if ended or last:
                self.leaves.append(replace(child, finish_reason="eos" if ended else "length"))
            else:
                growing.append((slot, child))
        self._place(growing)

    def _children(self, slot: int, piece: Leaf, step: int) -> Iterator[Leaf]:
        logits_a, logits_b = self.slots.logits(slot)
        tokens = likeliest(logits_a, logits_b, piece.low, piece.high)
        ends = [*(alpha for alpha, _ in tokens[1:]), piece.high]
        for number, ((low, token), high) in enumerate(zip(tokens, ends, strict=True)):
            if number:
                self.splits.append(Split(step, low, tokens[number - 1][1], token))
            yield Leaf(low, high, (*piece.token_ids, token), "open")

    def _kept(self, pieces: list[tuple[int, Leaf]]) -> list[tuple[int, Leaf]]:
        """The widest pieces, as many as there may be; the others are left out."""
        room = self.most - len(self.leaves)
        by_width = sorted(pieces, key=lambda one: one[1].high - one[1].low, reverse=True)
        self.left_out += [(piece.low, piece.high) for _, piece in by_width[room:]]
        kept = {id(piece) for _, piece in by_width[:room]}
        return [one for one in pieces if id(one[1]) in kept]

    def _place(self, pieces: list[tuple[int, Leaf]]) -> None:
        """Let the first piece of a slot stay there; the others get copies of what it has read."""
        stay = dict(reversed(pieces))
        for slot in set(self.open) - set(stay):
            self.slots.clear(slot)
        free = iter(sorted(set(range(self.slots.slots)) - set(stay)))
        self.open = dict(stay)
        for slot, piece in pieces:
            if piece is not stay[slot]:
                target = next(free)
                self.slots.copy(slot, target)
                self.open[target] = piece
