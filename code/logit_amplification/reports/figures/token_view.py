"""One generation, token by token, as HTML and PNG: KL(amplified || A) colours the background."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib import colormaps, colors
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...records.files import Record
from .style import STYLE, one_line, plain

MEASURE = "kl_amplified_a"
FULL_COLOUR = 2.0  # nats: a token with as much, or more, has the darkest background
COLOURS = colormaps["Oranges"]
WIDTH, LETTER, LINE = 100, 0.09, 0.26  # letters per line; inches per letter and line
SCALE = colors.Normalize(0, FULL_COLOUR, clip=True)


def tokens_html(run: dict[str, Any], record: Record) -> str:
    """Return HTML without scripts, for a file or a cell of a notebook; numbers show on hover."""
    numbers = {name: values for name, values in record["per_token"].items() if name != "token"}
    spans = []
    for place, text in enumerate(record["per_token"]["token"]):
        told = "\n".join(f"{name}: {values[place]}" for name, values in numbers.items())
        background, ink = shade(numbers[MEASURE][place])
        spans.append(
            f'<span style="background:{background};color:{ink};border-radius:.2em" '
            f'title="{html.escape(told)}">{html.escape(text)}</span>'
        )
    head = html.escape(_head(record))
    # Colours stand on the element itself: it is read in a notebook's dark theme too.
    return (
        f'<!DOCTYPE html><meta charset="utf-8"><title>{head}</title>'
        '<div style="font:16px/1.9 sans-serif;max-width:60em;margin:1em auto;padding:1em;'
        f'background:#fff;color:#111"><b>{head}</b>'
        f'<p style="white-space:pre-wrap">{"".join(spans)}</p>'
        f'<small style="color:#555">{html.escape(_foot(run))}. Background: KL(amplified || A) of '
        f"the step, palest at 0, darkest from {FULL_COLOUR:g} nats on. Point at a token for all "
        "its numbers.</small></div>\n"
    )


def draw_tokens(run: dict[str, Any], record: Record) -> Figure:
    """Draw the same as a figure."""
    places = list(_places(record["per_token"]["token"]))
    lines = 1 + max((line for _, line, _ in places), default=0)
    height = LINE * (lines + 5)
    with matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(WIDTH * LETTER + 0.6, height))
        page = figure.add_axes((0, 0, 1, 1), xlim=(-2, WIDTH + 2), ylim=(lines + 3.5, -1.5))
        page.axis("off")
        page.text(0, -0.7, plain(_head(record)), weight="bold", size=11, va="center")
        values = record["per_token"][MEASURE]
        for (column, line, text), value in zip(places, values, strict=True):
            background, ink = shade(value)
            page.add_patch(Rectangle((column, line), len(text), 0.9, color=background, linewidth=0))
            font = {"family": "monospace", "size": 10.5, "va": "center"}
            page.text(column, line + 0.45, plain(text), color=ink, **font)
        bar = figure.add_axes((0.03, 2.2 * LINE / height, 0.3, 0.35 * LINE / height))
        figure.colorbar(ScalarMappable(SCALE, COLOURS), bar, orientation="horizontal")
        bar.set_xlabel("KL(amplified ‖ A) of the step, nats", size=9)
        page.text(WIDTH, lines + 1.4, plain(_foot(run)), size=8, color="#555555", ha="right")
    return figure


def shade(value: float | None) -> tuple[str, str]:
    """Return the background of a token with this KL in nats, and an ink that is read on it."""
    red, green, blue = rgb = COLOURS(SCALE(value or 0.0))[:3]
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    return colors.to_hex(rgb), "#ffffff" if dark else "#111111"


def _places(texts: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield column, line and text of each token, broken between tokens where a line is full."""
    column = line = 0
    for text in texts:
        shown = text.replace("\n", "⏎").replace("\t", " ")[:WIDTH]
        if column + len(shown) > WIDTH:
            column, line = 0, line + 1
            shown = shown.lstrip(" ")
        yield column, line, shown
        column += len(shown)


def _head(record: Record) -> str:
    return one_line(
        f"{record['pair_id']}, alpha {record['alpha']:g}, {record['arm']}, sample "
        f"{record['sample']}: {record['outcome']['label']}"
    )


def _foot(run: dict[str, Any]) -> str:
    return f"{run['model']['name']}, {run['model']['dtype']}, run {run['id']}"
