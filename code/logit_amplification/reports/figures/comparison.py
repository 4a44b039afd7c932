"""Figures that set arms, outcomes and strengths against each other; from records alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from . import findings
from .style import COLOURS, MARKERS, STYLE, SUBDUED, canvas, legend_below, possible

MOST_ARMS = 8  # as many colours as there are
OUTCOMES = {
    "incoherent": "Incoherent answers",
    "refusal": "Refusals",
    "other": "All other answers",
}


def draw_arms(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Coherence against alpha, a line per arm: likelihood, incoherent answers, repetition."""
    panels = (
        ("nll_a", "How unlikely the text is under A", "NLL under A, nats per token"),
        ("incoherent", "Answers that are incoherent", "share of answers"),
        ("repeated_4gram_share", "How much the text repeats itself", "share of repeated 4-grams"),
    )
    frame = stats.without_b(stats.to_frame(records))
    groups = _groups(frame)
    with matplotlib.rc_context(STYLE):
        size = (13, 1.6 + 4 * len(groups))
        figure, grid = canvas(size, findings.incoherence(frame), run, records)
        every = grid.subplots(len(groups), 3, squeeze=False)
        handles = {}
        for row, arms in zip(every, groups, strict=True):
            for axes, (name, title, label) in zip(row, panels, strict=True):
                for place, (arm, of_arm, style) in enumerate(arms):
                    table = possible(stats.dose(of_arm, name), name)
                    handles[arm] = _line(axes, table, style, label=arm, place=place)
                axes.set(title=title, xlabel="alpha", ylabel=label)
        legend_below(figure, list(handles.values()))
    return figure


def draw_outcomes(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """The share of each outcome against alpha with 95 % intervals: a panel each, a line per arm.

    Where refusals cannot be told from the phrase list's errors, the panel says so instead.
    """
    frame = stats.without_b(stats.to_frame(records))
    arms = list(_arms(frame))[:4]
    with matplotlib.rc_context(STYLE):
        title = findings.incoherence(frame[frame["arm"].isin([arm for arm, _, _ in arms])])
        figure, grid = canvas((13, 5.2), title, run, records)
        handles = {}
        for axes, (name, heading) in zip(grid.subplots(1, 3), OUTCOMES.items(), strict=True):
            axes.set(title=heading, xlabel="alpha", ylabel="share of answers", ylim=(-0.03, 1.03))
            why_not = findings.refusals_not_measurable(frame) if name == "refusal" else None
            if why_not:
                axes.text(0.5, 0.5, why_not, transform=axes.transAxes, ha="center", size=11)
                axes.set(xticks=[], yticks=[])
                continue
            for place, (arm, of_arm, style) in enumerate(arms):
                table = stats.dose(of_arm, name)
                handles[arm] = _line(axes, table, style, label=arm, place=place)
        legend_below(figure, list(handles.values()))
    return figure


def draw_path(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Behaviour against coherence: a point per alpha and arm, where alpha has moved the text to.

    Across: the distance from A beyond that at alpha 0, for even there truncated sampling leaves A.
    """
    frame = stats.without_b(stats.to_frame(records))
    groups = _groups(frame)
    panels = (
        ("nll_a", "What it costs: likelihood under A"),
        ("log_ratio_a_b", "What it brings: the contrast of A with B"),
    )
    with matplotlib.rc_context(STYLE):
        size = (13, 1.8 + 4 * len(groups))
        title = findings.changed(groups[0][0][1], "log_ratio_a_b")
        figure, grid = canvas(size, title, run, records)
        every = grid.subplots(len(groups), 2, squeeze=False)
        handles = {}
        for row, arms in zip(every, groups, strict=True):
            for axes, (name, heading) in zip(row, panels, strict=True):
                for arm, of_arm, style in arms:
                    handles[arm] = _path(axes, of_arm, name, style, arm)
                axes.set(title=heading, ylabel=MEASURES[name].label)
                axes.set_xlabel(f"{MEASURES['kl_sampled_a'].short} beyond alpha 0, nats per token")
        legend_below(figure, list(handles.values()))
    return figure


def _path(
    axes: Axes, cells: pandas.DataFrame, name: str, style: dict[str, Any], arm: str
) -> Line2D:
    """A point with its 95 % interval per alpha; the alphas are written where there is room."""
    across, up = stats.dose(cells, "kl_sampled_a")["mean"], possible(stats.dose(cells, name), name)
    far = across - across.iloc[0] if len(across) else across
    reach = _reach(up)
    axes.errorbar(far, up["mean"], yerr=reach, elinewidth=0.9, capsize=2, **style, linestyle=":")
    span, last = float(numpy.ptp(far)) if len(far) else 0.0, None
    for alpha in reversed(far.index):
        if last is None or abs(far[alpha] - last) > 0.05 * span or alpha == far.index[0]:
            axes.annotate(
                f"{alpha:g}",
                (far[alpha], up["mean"][alpha]),
                textcoords="offset points",
                xytext=(5, -11),
                size=9,
                color=SUBDUED,
            )
            last = far[alpha]
    return Line2D([], [], label=f"{arm} (numbers: alpha)", **style, linestyle=":")


Panelled = tuple[str, pandas.DataFrame, dict[str, Any]]


def _groups(frame: pandas.DataFrame) -> list[list[Panelled]]:
    """The arms by rows of panels: the first arm beside two others at most."""
    first, *others = _arms(frame)
    return [[first, *others[i : i + 2]] for i in range(0, max(1, len(others)), 2)]


def _arms(frame: pandas.DataFrame) -> Iterator[Panelled]:
    """Yield arm, its rows and its style: the same in every panel."""
    for place, arm in enumerate(frame["arm"].unique()[:MOST_ARMS]):
        style = {"color": COLOURS[place], "marker": MARKERS[place], "linewidth": 1.8}
        yield arm, frame[frame["arm"] == arm], style | {"markersize": 5}


def _line(
    axes: Axes, table: pandas.DataFrame, style: dict[str, Any], *, label: str, place: int
) -> Line2D:
    """Means with their 95 % intervals as bars, a hair's breadth beside those of other lines."""
    aside = place * 0.006 * (table.index.max() - table.index.min()) if len(table) else 0.0
    bars = {"yerr": _reach(table), "elinewidth": 0.9, "capsize": 2}
    axes.errorbar(table.index + aside, table["mean"], **bars, **style)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    return Line2D([], [], label=label, **style)


def _reach(table: pandas.DataFrame) -> list[pandas.Series]:
    """How far a mean's interval reaches down and up; 0 where there is none."""
    reach = [table["mean"] - table["lower"], table["upper"] - table["mean"]]
    return [side.clip(lower=0).fillna(0.0) for side in reach]
