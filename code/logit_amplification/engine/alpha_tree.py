"""Find every greedy text over an interval of alpha, with exact split points.

At each step the argmax token, as a function of alpha, is given by the upper envelope of the lines

    a_v + alpha * (a_v - b_v)

over the tokens v (see `alpha_profile.likeliest`). The interval therefore splits at alphas that can
be computed, and no grid of alphas is needed. Each piece continues on its own, sharing the context
read up to that point. All pieces are decoded side by side in slots. "Exact" means exact for the
logits that the model returns.
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
    """The text shared by all alphas in [low, high)."""

    low: float
    high: float
    token_ids: tuple[int, ...]
    finish_reason: str  # "eos" or "length"; "open" while still being decoded

    def __contains__(self, alpha: float) -> bool:
        return self.low <= alpha < self.high


@dataclass(frozen=True)
class Split:
    """A boundary in alpha: token `step` (from 0) is `before` below `alpha` and `after` above it."""

    step: int
    alpha: float
    before: int
    after: int


@dataclass(frozen=True)
class AlphaTree:
    """The leaves by ascending alpha, the splits between them, and the intervals left out.

    leaves: sorted by `low`. splits: sorted by (alpha, step). left_out: sorted (low, high) pairs.
    """

    low: float
    high: float
    leaves: list[Leaf]
    splits: list[Split]
    left_out: list[tuple[float, float]]

    def leaf(self, alpha: float) -> Leaf | None:
        """Return the leaf of `alpha`; None if it was left out or is not in [low, high)."""
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
    """Return every greedy text for alphas in [low, high).

    ids_a, ids_b: token ids of the two contexts. If there are more than `max_leaves` texts, the
    narrowest pieces are dropped at the step where the limit is exceeded; `left_out` lists their
    intervals. Raises BadInput if the model cannot be decoded in slots.
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
    """The pieces being decoded, by slot, and the finished leaves, splits and dropped intervals."""

    def __init__(self, slots: Slots, most: int, pieces: dict[int, Leaf]):
        self.slots, self.most, self.open = slots, most, pieces
        self.leaves: list[Leaf] = []
        self.splits: list[Split] = []
        self.left_out: list[tuple[float, float]] = []

    def tokens(self, device: torch.device) -> torch.Tensor:
        """Return the last token of every slot, (slots,) int64; idle slots get token 0."""
        tokens = torch.zeros(self.slots.slots, dtype=torch.long)
        for slot, piece in self.open.items():
            tokens[slot] = piece.token_ids[-1]
        return tokens.to(device)

    def split(self, step: int, stop_ids: frozenset[int], *, last: bool) -> None:
        """Extend every piece by one token, splitting it wherever the argmax changes within it."""
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
        """Return the widest pieces, as many as are allowed; record the others as left out."""
        room = self.most - len(self.leaves)
        by_width = sorted(pieces, key=lambda one: one[1].high - one[1].low, reverse=True)
        self.left_out += [(piece.low, piece.high) for _, piece in by_width[room:]]
        kept = {id(piece) for _, piece in by_width[:room]}
        return [one for one in pieces if id(one[1]) in kept]

    def _place(self, pieces: list[tuple[int, Leaf]]) -> None:
        """Keep the first piece of each slot there; the others get copies of what it has read."""
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
