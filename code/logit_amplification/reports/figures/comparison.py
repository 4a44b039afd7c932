"""Figures that set arms, outcomes and strengths against each other; from records alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import pandas
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...evaluation import stats
from ...logits.vocabulary import MEASURES
from ...records.files import Record
from . import findings
from .style import COLOURS, MARKERS, STYLE, canvas, legend_below

MOST_ARMS = 8  # as many colours as there are
OUTCOMES = {"other": "other", "refusal": "refusal", "incoherent": "incoherent"}


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
                    table = stats.dose(of_arm, name)
                    handles[arm] = _line(axes, table, style, label=arm, place=place)
                axes.set(title=title, xlabel="alpha", ylabel=label)
        legend_below(figure, list(handles.values()))
    return figure


def draw_outcomes(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Shares of the three outcomes against alpha with 95 % intervals, a panel per arm."""
    frame = stats.without_b(stats.to_frame(records))
    arms = list(_arms(frame))[:4]
    with matplotlib.rc_context(STYLE):
        size = (3.4 * max(3, len(arms)), 4.8)
        title = findings.incoherence(frame[frame["arm"].isin([arm for arm, _, _ in arms])])
        figure, grid = canvas(size, title, run, records)
        every = grid.subplots(1, len(arms), sharey=True, squeeze=False)[0]
        for axes, (arm, of_arm, _) in zip(every, arms, strict=True):
            handles = [
                _line(axes, stats.dose(of_arm, name), _style(place), label=label, place=place)
                for place, (name, label) in enumerate(OUTCOMES.items())
            ]
            families = stats.treatment(of_arm)["family"].nunique()
            axes.set(title=f"{arm}, n = {families} families", xlabel="alpha", ylim=(-0.03, 1.03))
            axes.set_ylabel("share of answers")
        legend_below(figure, handles)
    return figure


def draw_path(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Behaviour against coherence, with alpha as the path: a line per arm, a point per alpha."""
    frame = stats.without_b(stats.to_frame(records))
    groups = _groups(frame)
    panels = (
        ("kl_sampled_a", "nll_a", "Likelihood against distance from A"),
        ("kl_sampled_a", "log_ratio_a_b", "The contrast against distance from A"),
    )
    with matplotlib.rc_context(STYLE):
        size = (12, 2 + 4 * len(groups))
        title = findings.changed(groups[0][0][1], "log_ratio_a_b")
        figure, grid = canvas(size, title, run, records)
        every = grid.subplots(len(groups), 2, squeeze=False)
        handles = {}
        for axes, arms, (across, up, title) in [
            (axes, arms, panel)
            for row, arms in zip(every, groups, strict=True)
            for axes, panel in zip(row, panels, strict=True)
        ]:
            for arm, of_arm, style in arms:
                x, y = stats.dose(of_arm, across)["mean"], stats.dose(of_arm, up)["mean"]
                (handles[arm],) = axes.plot(x, y, label=arm, **style)
                for alpha in dict.fromkeys([*x.index[:1], *x.index[-1:]]):
                    axes.annotate(
                        f"{alpha:g}",
                        (x[alpha], y[alpha]),
                        textcoords="offset points",
                        xytext=(4, 4),
                        size=8,
                        color=style["color"],
                    )
            axes.set(
                title=f"{title} (numbers: alpha)",
                xlabel=MEASURES[across].label,
                ylabel=MEASURES[up].label,
            )
        legend_below(figure, list(handles.values()))
    return figure


Panelled = tuple[str, pandas.DataFrame, dict[str, Any]]


def _groups(frame: pandas.DataFrame) -> list[list[Panelled]]:
    """The arms by rows of panels: the first arm beside two others at most."""
    first, *others = _arms(frame)
    return [[first, *others[i : i + 2]] for i in range(0, max(1, len(others)), 2)]


def _arms(frame: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame, dict[str, Any]]]:
    """Yield arm, its rows and its style: the same in every panel."""
    for place, arm in enumerate(frame["arm"].unique()[:MOST_ARMS]):
        yield arm, frame[frame["arm"] == arm], _style(place)


def _style(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place], "marker": MARKERS[place], "linewidth": 1.8, "markersize": 5}


def _line(
    axes: Axes, table: pandas.DataFrame, style: dict[str, Any], *, label: str, place: int
) -> Line2D:
    """Means with their 95 % intervals as bars, a little beside those of the other lines."""
    reach = [table["mean"] - table["lower"], table["upper"] - table["mean"]]
    reach = [side.clip(lower=0).fillna(0.0) for side in reach]
    aside = place * 0.006 * (table.index.max() - table.index.min()) if len(table) else 0.0
    axes.errorbar(
        table.index + aside, table["mean"], yerr=reach, elinewidth=0.9, capsize=2, **style
    )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    return Line2D([], [], label=label, **style)
