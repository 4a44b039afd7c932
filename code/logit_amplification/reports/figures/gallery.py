"""From records to matplotlib figures. They need the records only: redraw them on any laptop."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import matplotlib
import pandas
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...evaluation import stats
from ...records.files import Record
from . import findings
from .comparison import draw_arms, draw_outcomes, draw_path
from .style import COLOURS, MARKERS, MEAN, NULL, STYLE, canvas, legend_below, one_line, plain


def draw_all(run: dict[str, Any], records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure by its name; those of one arm are of the arm swept first."""
    finished = stats.without_errors(records) or records
    first = [record for record in records if record["arm"] == finished[0]["arm"]]
    return {
        "response_length_analysis": draw_response_length(run, first),
        "logits_analysis": draw_logits(run, first),
        "dose_response": draw_dose_response(run, first),
        "text_by_alpha": draw_texts(run, first),
        "arms": draw_arms(run, records),
        "outcomes": draw_outcomes(run, records),
        "behaviour_coherence": draw_path(run, records),
    }


# --------------------------------------------------------------------------------------- figures


def draw_dose_response(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """What alpha does: distance from A, likelihood under A, repetition, per pair and on average."""
    frame = stats.to_frame(records)
    panels = (
        ("kl_amplified_a", "How far a step moves from A", "KL(amplified ‖ A), nats per token"),
        ("nll_a", "How unlikely the text is under A", "NLL under A, nats per token"),
        ("repeated_4gram_share", "How much the text repeats itself", "share of repeated 4-grams"),
    )
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((13, 5.2), findings.likelihood(frame), run, records)
        axes = grid.subplots(1, 3)
        for panel, (name, title, label) in zip(axes, panels, strict=True):
            _dose_panel(panel, frame, name)
            panel.set(title=title, xlabel="alpha", ylabel=label)
        legend_below(figure, _dose_handles(frame))
    return figure


def draw_response_length(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Length of the answers against alpha, over all pairs, by category, and how they ended."""
    frame = stats.to_frame(records)
    limit = run["sampling"]["max_new_tokens"]
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((13, 5.4), findings.changed(frame, "n_tokens"), run, records)
        every, category, ended = grid.subplots(1, 3)
        _dose_panel(every, frame, "n_tokens")
        every.axhline(limit, color="#7F7F7F", linewidth=1, linestyle=":")
        every.annotate(
            f"limit {limit}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
        )
        every.set(title="All pairs", xlabel="alpha", ylabel="tokens per answer")
        every.set_ylim(0, 1.12 * limit)
        handles = _category_panel(category, frame, "n_tokens")
        category.set(title="Mean by category", xlabel="alpha", ylabel="tokens per answer")
        category.set_ylim(0, 1.12 * limit)
        _dose_panel(ended, frame, "ended_by_eos", lines=False)
        ended.set(title="Answers that end by themselves", xlabel="alpha", ylabel="share of answers")
        ended.set_ylim(-0.03, 1.03)
        legend_below(figure, [*_dose_handles(frame), *handles])
    return figure


def draw_logits(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Range and spread of the amplified logits against alpha; length against spread."""
    frame = stats.to_frame(records)
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((11, 9.4), findings.changed(frame, "logit_std"), run, records)
        (extent, spread), (category, scatter) = grid.subplots(2, 2)
        _dose_panel(extent, frame, "logit_range")
        extent.set(
            title="Range over the vocabulary", xlabel="alpha", ylabel="largest - smallest logit"
        )
        _dose_panel(spread, frame, "logit_std")
        spread.set(
            title="Spread over the vocabulary",
            xlabel="alpha",
            ylabel="standard deviation of logits",
        )
        handles = _category_panel(category, frame, "logit_std")
        category.set(
            title="Spread by category", xlabel="alpha", ylabel="standard deviation of logits"
        )
        shown = stats.treatment(stats.without_b(frame))
        points = scatter.scatter(
            shown["logit_std"],
            shown["n_tokens"],
            c=shown["alpha"],
            cmap="viridis",
            s=22,
            alpha=0.85,
        )
        grid.colorbar(points, ax=scatter, label="alpha")
        scatter.set(
            title="Length against spread, one point per generation",
            xlabel="standard deviation of logits",
            ylabel="tokens per answer",
        )
        legend_below(figure, [*_dose_handles(frame), *handles])
    return figure


def draw_texts(
    run: dict[str, Any], records: Sequence[Record], pair_id: str | None = None
) -> Figure:
    """The answers to one prompt at every alpha, from B to A and on; by default a typical pair.

    The mark stands where an answer first differs from A's.
    """
    pair_id = pair_id or stats.typical_pair(stats.to_frame(records)) or records[0]["pair_id"]
    shown = [r for r in records if r["pair_id"] == pair_id and r["sample"] == 0]
    pair = next(pair for pair in run["pairs"] if pair["id"] == pair_id)
    own = next((one_line(r["text"]) for r in shown if r["alpha"] == 0), "")
    blocks = [
        (_head(r["alpha"]), _marked(one_line(r["text"]), own, r["alpha"]), _numbers(r))
        for r in shown
    ]
    blocks = [
        (head, textwrap.wrap(text, 138) or ["(nothing)"], foot) for head, text, foot in blocks
    ]
    height = sum(len(text) + 1.1 for _, text, _ in blocks) + 5.0
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(12, 0.2 * height + 0.5))
        axes = figure.add_axes((0.02, 0.03, 0.96, 0.95))
        axes.set(xlim=(0, 1), ylim=(height, 0))
        axes.axis("off")
        axes.text(0, 0.5, f"From B to A and beyond: {pair_id}", weight="bold", size=12)
        for line, side in ((2.0, "a"), (3.1, "b")):
            axes.text(0, line, side.upper(), weight="bold", color=MEAN if side == "a" else NULL)
            chat = "  |  ".join(f"{m['role']}: {one_line(m['content'])}" for m in pair[side])
            axes.text(0.02, line, plain(textwrap.shorten(chat, 150, placeholder=" …")), size=9.5)
        line = 4.6
        for index, (head, text, foot) in enumerate(blocks):
            if index % 2 == 0:
                axes.axhspan(line - 0.9, line + len(text) + 0.2, color="#F3F3F3")
            axes.text(0.005, line, head, weight="bold", va="baseline")
            axes.text(0.005, line + 1, foot, size=8, color="#555555", va="baseline")
            for offset, part in enumerate(text):
                axes.text(0.16, line + offset, plain(part), size=9.5, va="baseline")
            line += max(len(text), 2) + 1.1
        axes.set_ylim(line + 1.0, 0)
        model = run["model"]
        axes.text(
            0,
            line + 0.6,
            f"{model['name']}, {model['dtype']}, run {run['id']}. {MARK} first difference from A. "
            "The pair is the one whose log p_A - log p_B grows most like the median.",
            size=8,
            color="#555555",
        )
        figure.set_size_inches(12, 0.2 * (line + 1.0) + 0.4)
    return figure


MARK = "▶"


def _head(alpha: float) -> str:
    return {-1.0: "alpha -1: B", 0.0: "alpha 0: A"}.get(alpha, f"alpha {alpha:g}")


def _marked(text: str, own: str, alpha: float) -> str:
    """The text with a mark at its first difference from A's own."""
    if alpha == 0 or text == own:
        return text
    both = enumerate(zip_longest(text, own))
    start = next(place for place, (one, other) in both if one != other)
    return f"{text[:start]}{MARK}{text[start:]}"


def draw_profile(
    profiles: pandas.DataFrame, changes: pandas.DataFrame, alphas: Sequence[float], title: str
) -> Figure:
    """What every alpha would do to the same texts: KL, entropy, likelihood and changed argmax.

    profiles: a row per pair and alpha, as `alpha_profile.to_frame` makes it; changes: a row per
    change of an argmax. alphas: those of a sweep, marked.
    """
    panels = (
        ("kl_amplified_a", "Distance from A", "KL(amplified ‖ A), nats per token"),
        ("entropy", "Entropy", "entropy of the amplified distribution, nats"),
        ("cross_entropy", "How unlikely the text of alpha 0 becomes", "cross-entropy, nats"),
        ("changed_share", "Likeliest token is another than at alpha 0", "share of positions"),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8))
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        for axes, (name, heading, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            table = profiles.pivot_table(index="alpha", columns="pair_id", values=name)
            axes.plot(table.index, table, color="#9DB7C9", linewidth=0.7, alpha=0.7)
            axes.plot(table.index, table.mean(axis=1), color=MEAN, linewidth=2.4)
            swept = [alpha for alpha in alphas if table.index[0] <= alpha <= table.index[-1]]
            for alpha in swept:
                axes.axvline(alpha, color=NULL, linewidth=0.8, linestyle=":")
            axes.set(title=heading, xlabel="alpha", ylabel=label)
        axes.text(
            *(0.98, 0.04),
            f"{len(changes)} changes of a likeliest token, each at an exact alpha",
            transform=axes.transAxes,
            ha="right",
            size=9,
        )
        handles = [
            Line2D([], [], color="#9DB7C9", linewidth=1, label="one pair"),
            Line2D([], [], color=MEAN, linewidth=2.4, label=f"mean of {table.shape[1]} pairs"),
            Line2D([], [], color=NULL, linewidth=0.8, linestyle=":", label="alphas of the sweep"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


# ---------------------------------------------------------------------------------------- panels


def _dose_panel(axes: Axes, frame: pandas.DataFrame, name: str, *, lines: bool = True) -> None:
    """A thin line per pair, the mean over pairs with its 95 % interval, and the null pair."""
    frame = stats.without_b(frame)
    table = stats.by_pair(stats.treatment(frame), name)
    null = stats.by_pair(frame[frame["control"] == "null"], name)
    if lines:
        axes.plot(table.columns, table.T, color="#9DB7C9", linewidth=0.7, alpha=0.7, zorder=1)
    if len(table):
        mean = stats.dose(frame, name)
        band = {"color": MEAN, "alpha": 0.22, "linewidth": 0, "zorder": 2}
        axes.fill_between(mean.index, mean["lower"], mean["upper"], **band)
        axes.plot(mean.index, mean["mean"], color=MEAN, linewidth=2.4, marker="o", zorder=4)
    if len(null):
        axes.plot(null.columns, null.T, color=NULL, linewidth=1.6, linestyle="--", zorder=3)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))


def _category_panel(axes: Axes, frame: pandas.DataFrame, name: str) -> list[Line2D]:
    """One line per category, null pairs left out; returns the legend's handles."""
    shown = stats.treatment(stats.without_b(frame))
    handles: list[Line2D] = []
    for index, (category, group) in enumerate(shown.groupby("category", sort=False)):
        table = stats.by_pair(group, name)
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index // len(COLOURS) % len(MARKERS) or index % len(MARKERS)],
            "linewidth": 1.6,
            "markersize": 5,
            "label": f"{category} (n = {len(table)})",
        }
        handles += axes.plot(table.columns, table.mean(), **style)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    return handles


def _dose_handles(frame: pandas.DataFrame) -> list[Any]:
    families = stats.treatment(frame)["family"].nunique()
    handles: list[Any] = [
        Line2D([], [], color="#9DB7C9", linewidth=1, label="one pair"),
        Line2D(
            [],
            [],
            color=MEAN,
            linewidth=2.4,
            marker="o",
            label=f"mean, 95 % interval (n = {families})",
        ),
    ]
    if (frame["control"] == "null").any():
        handles.append(Line2D([], [], color=NULL, linestyle="--", label="null pair (A = B)"))
    return handles


def _numbers(record: Record) -> str:
    if record["finish_reason"] == "error":
        return "ended with an error"
    measures = record["measures"]
    return f"KL {measures['kl_amplified_a']:.2f}, NLL {measures['nll_a']:.2f}"
