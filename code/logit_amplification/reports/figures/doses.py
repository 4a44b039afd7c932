"""What alpha does, measure by measure: means over families with intervals, and single pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy
import pandas
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...evaluation import stats
from ...logits.vocabulary import MEASURES
from ...records.files import Record
from ...statistics import intervals
from . import findings
from .style import MEAN, NULL, PALE, STYLE, SUBDUED, canvas, legend_below, possible

NAMED = 3  # pairs that stand furthest from the others, written beside their lines
NAMES_WIDTH = 0.55  # of the room to the right of the lines, in widths of all lines


def draw_dose_response(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Distance from A, likelihood under A and the contrast against alpha, per pair and on average.

    records: of one arm.
    """
    frame = stats.to_frame(records)
    panels = (
        ("kl_amplified_a", "Distance from A"),
        ("nll_a", "How unlikely the text is under A"),
        ("log_ratio_a_b", "How much likelier under A than under B"),
    )
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((13, 5.4), findings.likelihood(frame), run, records)
        for axes, (name, title) in zip(grid.subplots(1, 3), panels, strict=True):
            _dose_panel(axes, frame, name, names=True)
            axes.set(title=title, ylabel=MEASURES[name].label)
        legend_below(figure, _dose_handles(frame))
    return figure


def draw_response_length(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """How long answers are: which are still going on, which end, and the change by category.

    Answers are cut at a limit, so lengths are compared up to it (restricted means, the area under
    the curves of the first panel). records: of one arm.
    """
    frame = stats.to_frame(records)
    limit = run["sampling"]["max_new_tokens"]
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((13, 5.6), findings.changed(frame, "n_tokens"), run, records)
        going, ended, category = grid.subplots(1, 3)
        alphas = _survival_panel(going, frame, limit)
        going.set(title="Answers longer than so many tokens", ylabel="share of answers")
        _dose_panel(ended, frame, "ended_by_eos", pairs=False)
        ended.set(title="Answers that end by themselves", ylabel="share of answers")
        ended.set_ylim(-0.03, 1.03)
        _category_panel(category, frame, "n_tokens", most=limit)
        category.set_title("Change of the length by category")
        legend_below(figure, [*alphas, *_dose_handles(frame, pairs=False)])
    return figure


def draw_logits(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Range and spread of the amplified logits, entropy, and the change of spread by category.

    records: of one arm.
    """
    frame = stats.to_frame(records)
    panels = (
        ("logit_range", "Range over the vocabulary", "largest - smallest logit"),
        ("logit_std", "Spread over the vocabulary", "standard deviation of logits"),
        ("entropy", "Entropy of the amplified distribution", "nats"),
    )
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((12, 9.4), findings.changed(frame, "logit_std"), run, records)
        every = grid.subplots(2, 2)
        for axes, (name, title, label) in zip(every.flat, panels, strict=False):
            _dose_panel(axes, frame, name)
            axes.set(title=title, ylabel=label)
        _category_panel(every[1, 1], frame, "logit_std")
        every[1, 1].set_title("Change of the spread by category")
        legend_below(figure, _dose_handles(frame))
    return figure


# ---------------------------------------------------------------------------------------- panels


def _dose_panel(
    axes: Axes, frame: pandas.DataFrame, name: str, *, pairs: bool = True, names: bool = False
) -> None:
    """The mean over families with its 95 % interval, the null pair, and a thin line per pair.

    names: write the pairs beside their lines that end furthest from the median pair.
    """
    frame = stats.without_b(frame)
    table = stats.by_pair(stats.treatment(frame), name)
    null = stats.by_pair(frame[frame["control"] == "null"], name)
    if pairs:
        axes.plot(table.columns, table.T, color=PALE, linewidth=0.8, zorder=1)
    if len(table):
        mean = possible(stats.dose(frame, name), name)
        band = {"color": MEAN, "alpha": 0.22, "linewidth": 0, "zorder": 2}
        axes.fill_between(mean.index, mean["lower"], mean["upper"], **band)
        axes.plot(mean.index, mean["mean"], color=MEAN, linewidth=2.4, marker="o", zorder=4)
    if len(null):
        axes.plot(null.columns, null.T, color=NULL, linewidth=1.6, linestyle="--", zorder=3)
    axes.set_xlabel("alpha")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    if names and table.shape[1] > 1:
        _name_furthest(axes, table)


def _name_furthest(axes: Axes, table: pandas.DataFrame) -> None:
    """Name the lines that end furthest from the median, to the right of all lines."""
    ends = table.iloc[:, -1].dropna()
    away = (ends - ends.median()).abs().sort_values(ascending=False)
    shown = ends[away.index[: NAMED * (len(ends) > NAMED)]].sort_values()
    if shown.empty:
        return
    low, high = float(table.min().min()), float(table.max().max())
    least, last = 0.06 * (high - low), -numpy.inf
    for pair_id, value in shown.items():
        last = max(float(value), last + least)
        axes.plot(table.columns, table.loc[pair_id], color=SUBDUED, linewidth=0.9, zorder=2)
        axes.annotate(
            str(pair_id),
            (table.columns[-1], last),
            textcoords="offset points",
            xytext=(5, 0),
            va="center",
            size=8.5,
            color=SUBDUED,
        )
    first, largest = table.columns[0], table.columns[-1]
    axes.set_xticks([tick for tick in axes.get_xticks() if first <= tick <= largest])
    axes.set_xlim(first - 0.05 * (largest - first), largest + NAMES_WIDTH * (largest - first))


def _survival_panel(axes: Axes, frame: pandas.DataFrame, limit: int) -> list[Line2D]:
    """The share of answers longer than t tokens, a curve per alpha; returns legend handles.

    All censoring is at the limit, so this is the Kaplan-Meier estimate. At most four alphas.
    """
    cells = stats.treatment(stats.without_b(frame))
    alphas = sorted(cells["alpha"].unique())
    places = {round(part * (len(alphas) - 1)) for part in (0, 1 / 3, 2 / 3, 1)}
    shown = [alphas[place] for place in sorted(places)] if alphas else []
    colours = matplotlib.colormaps["viridis"](numpy.linspace(0, 0.85, len(shown)))
    steps = numpy.arange(limit + 1)
    handles = []
    for alpha, colour in zip(shown, colours, strict=True):
        lengths = cells.loc[cells["alpha"] == alpha, ["family", "pair_id", "n_tokens"]]
        longer = [
            stats.by_family(lengths.assign(x=(lengths["n_tokens"] > step) * 1.0), "x").mean()
            for step in steps[:-1]
        ]
        axes.step(steps[:-1], longer, where="post", color=colour, linewidth=2)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=f"alpha {alpha:g}"))
    axes.set(xlim=(0, limit), ylim=(-0.03, 1.03), xlabel=f"tokens (cut at {limit})")
    return handles


def _category_panel(
    axes: Axes, frame: pandas.DataFrame, name: str, most: float = numpy.inf
) -> None:
    """The change from alpha 0 to the largest alpha in each category; most: as in `draw_forest`."""
    shown = stats.treatment(stats.without_b(frame))
    largest = shown["alpha"].max()
    rows = []
    for category, group in shown.groupby("category", sort=False):
        table = stats.paired_difference(group, name)
        if largest in table.index and largest > 0 and table.loc[largest, "n"] > 0:
            found = intervals.Estimate(*(table.loc[largest, part] for part in stats.COLUMNS))
            rows.append((f"{category} ({group['family'].nunique()})", found))
    draw_forest(axes, rows, most)
    axes.set(
        xlabel=f"change at alpha {largest:g}, {MEASURES[name].label}", ylabel="category (families)"
    )


def draw_forest(
    axes: Axes, rows: Sequence[tuple[str, intervals.Estimate]], most: float = numpy.inf
) -> None:
    """Draw a row per estimate, the first on top: a point, and its 95 % interval as a line.

    The axis shows all points, and intervals up to three times the furthest of them; an arrowhead
    is where an interval goes on. most: the largest change that there can be.
    """
    means = numpy.array([found.mean for _, found in rows] or [0.0])
    reach = min(most, max(float(numpy.abs(means).max()), 1e-9) * 3)
    bounds = [bound for _, found in rows for bound in (found.lower, found.upper)]
    shown = [*means, 0.0, *numpy.clip([b for b in bounds if not numpy.isnan(b)], -reach, reach)]
    low, high = min(shown), max(shown)
    margin = 0.06 * ((high - low) or 1.0)
    axes.set_xlim(low - margin, high + margin)
    for place, (_, found) in enumerate(reversed(rows)):
        axes.plot([found.mean], [place], marker="o", color=MEAN, linestyle="none")
        ends = numpy.clip([found.lower, found.upper], low, high)
        axes.plot(ends, [place, place], color=MEAN, linewidth=1.4)
        for bound, end, head in zip(found[1:3], ends, "<>", strict=True):
            if bound != end and not numpy.isnan(bound):
                axes.plot([end], [place], marker=head, color=MEAN, markersize=5)
    axes.axvline(0, color=NULL, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])


def _dose_handles(frame: pandas.DataFrame, *, pairs: bool = True) -> list[Any]:
    families = stats.treatment(frame)["family"].nunique()
    thin = [Line2D([], [], color=PALE, linewidth=1.2, label="one pair")] if pairs else []
    label = f"mean, 95 % interval (n = {families} families)"
    handles: list[Any] = [
        *thin,
        Line2D([], [], color=MEAN, linewidth=2.4, marker="o", label=label),
    ]
    if (frame["control"] == "null").any():
        handles.append(Line2D([], [], color=NULL, linestyle="--", label="null pair (A = B)"))
    return handles
