"""The next token as HTML without scripts: bars under A, under B and amplified, and the alphas.

Text and lines take the colour of the page around them, so that dark themes can be read; the bars
have a contrast of 3 to 1 and more on white and on black.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

COLOURS = {"A": "#0072B2", "B": "#D55E00", "amplified": "#009E73"}
TICKS = (-1, 0, 1, 2, 4, 6, 8)
STYLE = """<style>
.next-token {font: 13px/1.35 sans-serif; max-width: 90em; color: inherit;
  padding: 0 .8em}
.next-token table {border-collapse: collapse; width: 100%; table-layout: fixed; margin: .4em 0}
.next-token th, .next-token td {padding: 1px .5em; text-align: left; border: 0; overflow: hidden;
  white-space: nowrap; font-weight: normal; vertical-align: middle; color: inherit;
  background: none; line-height: 1.35}
.next-token th:first-child {width: 11em}
.next-token th:nth-child(2) {width: 7em}
.next-token thead th {font-weight: bold; border-bottom: 1px solid currentColor}
.next-token code {white-space: pre; color: inherit; background: none; font-size: 13px}
.next-token .bar {display: inline-block; height: .75em; margin-left: .4em; vertical-align: -1px}
.next-token .number {display: inline-block; width: 3.6em; text-align: right;
  font-variant-numeric: tabular-nums}
.next-token .chosen {outline: 2px solid currentColor; outline-offset: -2px}
.next-token .strip {position: relative; height: 2.6em; margin: .2em 0 .8em}
.next-token .strip div {position: absolute; top: 0; height: 1.5em; overflow: hidden;
  text-align: center; border-right: 1px solid currentColor; box-sizing: border-box}
.next-token .strip span {position: absolute; top: 1.6em; transform: translateX(-50%);
  opacity: .8}
.next-token .strip b {position: absolute; top: -.2em; height: 1.9em; width: 3px;
  transform: translateX(-1px); background: #CC2277}
</style>"""


def next_token_html(choice: Any, alpha: float, text: Callable[[int], str]) -> str:
    """Draw a `next_token.NextToken` at an alpha; text says what a token reads like."""
    now = choice.at(alpha)
    columns = {"A": choice.under_a, "B": choice.under_b, "amplified": now}
    return (
        f'{STYLE}<div class="next-token">{_numbers(choice, columns, alpha)}'
        f"{_chosen(choice, columns, text)}{_strip(choice.likeliest, alpha, text)}"
        f"{_bars(choice, columns, alpha, text)}</div>"
    )


def side_by_side(choice: Any, alphas: Sequence[float], text: Callable[[int], str]) -> str:
    """Return a table of the next token at several alphas: the still picture without widgets."""
    columns = {"A": choice.under_a, "B": choice.under_b}
    columns |= {f"alpha {alpha:g}": choice.at(alpha) for alpha in alphas}
    return (
        f'{STYLE}<div class="next-token"><table>{_head(columns)}'
        f"<tbody>{_rows(choice, columns, text)}</tbody></table>"
        f"{_strip(choice.likeliest, None, text)}</div>"
    )


def visible(text: str) -> str:
    """A token's text with its spaces and line breaks made visible, escaped."""
    return html.escape(text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"))


def _numbers(choice: Any, columns: dict[str, Any], alpha: float) -> str:
    entropies = ", ".join(f"{name} {column.entropy:.2f}" for name, column in columns.items())
    sizes = ", ".join(f"{name} {column.nucleus:,}" for name, column in columns.items())
    how = "greedy"
    if choice.temperature > 0:
        top_k = f", top-k {choice.top_k}" if choice.top_k else ""
        how = f"temperature {choice.temperature:g}, top-p {choice.top_p:g}{top_k}"
    return (
        f"<div><b>alpha {alpha:.2f}</b>: KL(amplified ‖ A) <b>{columns['amplified'].kl_a:.3f}</b> "
        f"nats; KL(A ‖ B) {choice.kl_a_b:.3f} nats. Entropy in nats: {entropies}. "
        f"Tokens that can be drawn ({how}): {sizes}.</div>"
    )


def _chosen(choice: Any, columns: dict[str, Any], text: Callable[[int], str]) -> str:
    if choice.chosen is None:
        return ""
    place = choice.tokens.index(choice.chosen)
    told = "; ".join(
        f"{name}: {_percent(column.probabilities[place])}, rank {column.rank:,}"
        for name, column in columns.items()
    )
    return f"<div>The text goes on with <code>{visible(text(choice.chosen))}</code>. {told}.</div>"


def _bars(choice: Any, columns: dict[str, Any], alpha: float, text: Callable[[int], str]) -> str:
    others = "".join(f"<td>{_bar(column.others, '#7F7F7F')}</td>" for column in columns.values())
    heads = {f"{name} at {alpha:.2f}" if name == "amplified" else name: 0 for name in columns}
    return (
        f"<table>{_head(heads)}<tbody>{_rows(choice, columns, text)}"
        f"<tr><th>all other tokens</th><td></td>{others}</tr></tbody></table>"
        "<div>At alpha 0 the amplified bars are A's, at -1 they are B's; above 0, tokens that A "
        "prefers grow. Sorted by how much likelier A finds a token than B does. A token with a "
        "pale bar cannot be drawn.</div>"
    )


def _head(names: Any) -> str:
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    return f'<thead><tr><th scope="col">token</th><th scope="col">likelier</th>{cells}</tr></thead>'


def _rows(choice: Any, columns: dict[str, Any], text: Callable[[int], str]) -> str:
    rows = []
    for place, (token, preference) in enumerate(zip(choice.tokens, choice.preference, strict=True)):
        bars = "".join(
            f"<td>{_bar(column.probabilities[place], _colour(name), column.drawable[place])}</td>"
            for name, column in columns.items()
        )
        mark = ' class="chosen"' if token == choice.chosen else ""
        rows.append(
            f'<tr{mark}><th scope="row"><code>{visible(text(token))}</code></th>'
            f"<td>{_likelier(preference)}</td>{bars}</tr>"
        )
    return "".join(rows)


def _colour(name: str) -> str:
    return COLOURS.get(name, COLOURS["amplified"])


def _bar(share: float, colour: str, drawable: bool = True) -> str:
    width = f"calc({share:.4f} * (100% - 4.6em))"
    return (
        f'<span class="number">{_percent(share)}</span><span class="bar" '
        f'style="width:{width};background:{colour};opacity:{1 if drawable else 0.35}"></span>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "&lt; 0.1 %"


def _likelier(preference: float) -> str:
    """A log ratio in words: how many times likelier, and where."""
    times = math.exp(min(abs(preference), 20.0))
    if times < 1.05:
        return "the same"
    told = f"{times:.1f}" if times < 10 else f"{times:,.0f}" if times < 1e6 else "&gt; 10⁶"
    return f"{told} × {'A' if preference > 0 else 'B'}"


def _strip(
    runs: Sequence[tuple[float, float, int]], alpha: float | None, text: Callable[[int], str]
) -> str:
    """The likeliest token at every alpha, as a band from the smallest to the largest."""
    low, high = runs[0][0], runs[-1][1]

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    starts = [start for start, _, _ in runs]
    parts = []
    for number, (start, end, token) in enumerate(
        zip(starts, [*starts[1:], high], (token for _, _, token in runs), strict=True)
    ):
        shown, shade = visible(text(token)), 0.12 if number % 2 else 0.28
        told = f"{shown}: alpha {start:g} to {end:g}"
        parts.append(
            f'<div title="{told}" style="left:{place(start):.2f}%;width:'
            f'{place(end) - place(start):.2f}%;background:rgba(127,127,127,{shade})">'
            f"<code>{shown}</code></div>"
        )
    ticks = "".join(
        f'<span style="left:{place(tick):.2f}%">{tick}</span>'
        for tick in TICKS
        if low <= tick <= high
    )
    mark = "" if alpha is None else f'<b style="left:{place(alpha):.2f}%"></b>'
    return f'The likeliest token along alpha:<div class="strip">{"".join(parts)}{ticks}{mark}</div>'
