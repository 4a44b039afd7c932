"""The alpha tree as a figure: where along alpha, and at which token, the greedy texts part."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .style import COLOURS, STYLE, one_line, plain

MOST_TEXTS = 24
LEAST_WIDTH = 0.015  # of the interval: narrower leaves have no room for their number


def draw_tree(tree: Any, decode: Callable[[Sequence[int]], str], title: str) -> Figure:
    """Draw an `alpha_tree.AlphaTree`: alpha to the right, tokens down, a line where texts part.

    Two alphas share a text down to the first line between them. The texts are numbered from the
    left and written below, the widest `MOST_TEXTS` of them; decode turns token ids into text.
    """
    widest = sorted(tree.leaves, key=lambda leaf: leaf.high - leaf.low, reverse=True)[:MOST_TEXTS]
    shown = sorted(widest, key=lambda leaf: leaf.low)
    blocks = [(leaf, textwrap.wrap(one_line(decode(leaf.token_ids)), 125)[:2]) for leaf in shown]
    lines = sum(max(len(text), 1) + 0.3 for _, text in blocks) + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.2 + 0.2 * lines))
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        above, below = figure.subplots(2, 1, height_ratios=(3.8, 0.2 * lines))
        _draw_splits(above, tree, shown)
        _write_texts(below, blocks, lines)
    return figure


def _draw_splits(axes: Axes, tree: Any, shown: Sequence[Any]) -> None:
    steps = {split.alpha: split.step for split in tree.splits}
    deepest = max((len(leaf.token_ids) for leaf in tree.leaves), default=1)
    for number, leaf in enumerate(shown):
        colour = COLOURS[number % len(COLOURS)]
        top = max(steps.get(leaf.low, 0), steps.get(leaf.high, 0))
        corner, size = (leaf.low, top), (leaf.high - leaf.low, len(leaf.token_ids) - top)
        axes.add_patch(Rectangle(corner, *size, color=colour, alpha=0.35, linewidth=0))
        if size[0] > LEAST_WIDTH * (tree.high - tree.low):
            middle = leaf.low + size[0] / 2
            axes.text(middle, deepest - 1, str(number + 1), ha="center", size=9)
    for low, high in tree.left_out:
        axes.add_patch(
            Rectangle((low, 0), high - low, deepest, hatch="///", fill=False, color="#999999")
        )
    for split in tree.splits:
        axes.plot([split.alpha] * 2, [split.step, deepest], color="#222222", linewidth=0.8)
    axes.set(xlim=(tree.low, tree.high), ylim=(deepest, 0), xlabel="alpha", ylabel="token")
    told = f"{len(tree.leaves)} texts, {len(tree.splits)} points where two of them part"
    if len(tree.leaves) > len(shown):
        told += f"; the {len(shown)} widest are written out"
    if tree.left_out:
        share = sum(high - low for low, high in tree.left_out) / (tree.high - tree.low)
        told += f"; {share:.1%} of the interval is left out (hatched)"
    axes.set_title(told)


def _write_texts(axes: Axes, blocks: Sequence[tuple[Any, list[str]]], lines: float) -> None:
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(lines, 0))
    line = 0.5
    for number, (leaf, text) in enumerate(blocks):
        colour = COLOURS[number % len(COLOURS)]
        axes.add_patch(Rectangle((0, line - 0.4), 0.012, 0.8, color=colour, alpha=0.5))
        span = f"{number + 1}:  {leaf.low:.3f} to {leaf.high:.3f}"
        axes.text(0.02, line, span, size=8.5, va="center")
        for part in text or ["(nothing)"]:
            axes.text(0.15, line, plain(part), size=8.5, va="center")
            line += 1
        line += 0.3
