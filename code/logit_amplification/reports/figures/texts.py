"""One prompt's answers at several alphas, from B over A to the largest alpha, to be read."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ...evaluation import stats
from ...records.files import Record
from ..report import model_in_words
from .style import MEAN, NULL, SUBDUED, one_line, plain

MARK = "▶"
WIDTH = 128  # characters in a line of an answer
MOST_LINES = 4  # of an answer


def draw_texts(
    run: dict[str, Any],
    records: Sequence[Record],
    pair_id: str | None = None,
    alphas: Sequence[float] | None = None,
) -> Figure:
    """Draw the answers to one prompt at several alphas; the mark is the first difference from A's.

    records: of one arm. pair_id: by default a typical pair, `stats.typical_pair`. alphas: by
    default B, A, the alpha nearest to 1, and the largest.
    """
    chosen = pair_id or stats.typical_pair(stats.to_frame(records)) or records[0]["pair_id"]
    of_pair = [r for r in records if r["pair_id"] == chosen and r["sample"] == 0]
    wanted = default_alphas(of_pair) if alphas is None else alphas
    shown = [r for r in of_pair if r["alpha"] in wanted]
    pair = next(pair for pair in run["pairs"] if pair["id"] == chosen)
    own = next((one_line(r["text"]) for r in of_pair if r["alpha"] == 0), "")
    blocks = [
        (_head(r["alpha"]), _lines(_marked(one_line(r["text"]), own, r["alpha"])), _numbers(r))
        for r in shown
    ]
    height = 6.4 + sum(max(len(text), 2) + 1.1 for _, text, _ in blocks)
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(12, 0.24 * height))
        axes = figure.add_axes((0.02, 0.01, 0.96, 0.97))
        axes.set(xlim=(0, 1), ylim=(height, 0))
        axes.axis("off")
        title = f"One question from B over A to larger alpha ({chosen})"
        axes.text(0, 0.7, title, weight="bold", size=14)
        for line, side in ((2.0, "a"), (3.1, "b")):
            axes.text(0, line, side.upper(), weight="bold", color=MEAN if side == "a" else NULL)
            axes.text(0.02, line, plain(_chat_in_words(pair[side])), size=10.5)
        line = 4.8
        for index, (head, text, foot) in enumerate(blocks):
            if index % 2 == 0:
                axes.axhspan(line - 0.95, line + max(len(text), 2) - 0.1, color="#F3F3F3")
            axes.text(0.005, line, head, weight="bold", size=11, va="baseline")
            axes.text(0.005, line + 1, foot, size=9, color=SUBDUED, va="baseline")
            for offset, part in enumerate(text):
                axes.text(0.15, line + offset, plain(part), size=10.5, va="baseline")
            line += max(len(text), 2) + 1.1
        told = f"{model_in_words(run)}. {MARK} marks where an answer first differs from A's."
        if pair_id is None:
            told += " The pair was not chosen: its log p_A - log p_B grows most like the median."
        axes.text(0, line + 0.2, textwrap.fill(told, 150), size=9, color=SUBDUED, va="top")
    return figure


def default_alphas(records: Sequence[Record]) -> set[float]:
    """Return B, A, the alpha nearest to 1, and the largest: those of them that were swept."""
    swept = sorted({record["alpha"] for record in records})
    above = [alpha for alpha in swept if alpha > 0]
    middle = [min(above, key=lambda alpha: abs(alpha - 1))] if above else []
    return {alpha for alpha in swept if alpha in (-1.0, 0.0)} | {*middle, *above[-1:]}


def _chat_in_words(chat: Sequence[dict[str, str]]) -> str:
    told = "  |  ".join(f"{m['role']}: {one_line(m['content'])}" for m in chat)
    return textwrap.shorten(told, 135, placeholder=" …")


def _head(alpha: float) -> str:
    return {-1.0: "alpha -1: B", 0.0: "alpha 0: A"}.get(alpha, f"alpha {alpha:g}")


def _marked(text: str, own: str, alpha: float) -> str:
    """The text with a mark at its first difference from A's own."""
    if alpha == 0 or text == own:
        return text
    both = enumerate(zip_longest(text, own))
    start = next(place for place, (one, other) in both if one != other)
    return f"{text[:start]}{MARK}{text[start:]}"


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, max_lines=MOST_LINES, placeholder=" …") or ["(nothing)"]


def _numbers(record: Record) -> str:
    if record["finish_reason"] == "error":
        return "ended with an error"
    measures = record["measures"]
    return f"KL {measures['kl_amplified_a']:.2f}, NLL {measures['nll_a']:.2f}"
