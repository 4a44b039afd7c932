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
from .style import COLOURS, MARKERS, STYLE, canvas, legend_below

MOST_ARMS = 8  # as many colours as there are
OUTCOMES = {"on_task": "coherent, no refusal", "refusal": "refusal", "incoherent": "incoherent"}


def draw_arms(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Coherence against alpha, a line per arm: likelihood, incoherent answers, repetition."""
    panels = (
        ("nll_a", "How unlikely the text is under A", "NLL under A, nats per token"),
        ("incoherent", "Answers that are incoherent", "share of answers"),
        ("repeated_4gram_share", "How much the text repeats itself", "share of repeated 4-grams"),
    )
    frame = stats.to_frame(records)
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((13, 5.6), "Arms side by side", run, records)
        for axes, (name, title, label) in zip(grid.subplots(1, 3), panels, strict=True):
            handles = [
                _line(axes, stats.dose(of_arm, name), style, label=arm, place=place)
                for place, (arm, of_arm, style) in enumerate(_arms(frame))
            ]
            axes.set(title=title, xlabel="alpha", ylabel=label)
        legend_below(figure, handles)
    return figure


def draw_outcomes(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Shares of the three outcomes against alpha with 95 % intervals, a panel per arm."""
    frame = stats.to_frame(records)
    arms = list(_arms(frame))[:4]
    with matplotlib.rc_context(STYLE):
        size = (3.4 * max(3, len(arms)), 4.8)
        figure, grid = canvas(size, "Outcomes against alpha", run, records)
        every = grid.subplots(1, len(arms), sharey=True, squeeze=False)[0]
        for axes, (arm, of_arm, _) in zip(every, arms, strict=True):
            handles = [
                _line(axes, stats.dose(of_arm, name), _style(place), label=label, place=place)
                for place, (name, label) in enumerate(OUTCOMES.items())
            ]
            pairs = stats.treatment(of_arm)["pair_id"].nunique()
            axes.set(title=f"{arm}, n = {pairs} pairs", xlabel="alpha", ylim=(-0.03, 1.03))
            axes.set_ylabel("share of answers")
        legend_below(figure, handles)
    return figure


def draw_path(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Behaviour against coherence, with alpha as the path: a line per arm, a point per alpha."""
    frame = stats.to_frame(records)
    panels = (
        ("nll_a", "kl_amplified_a", "Strength against likelihood"),
        ("incoherent", "refusal", "Refusals against incoherence"),
    )
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((12, 6), "Behaviour and coherence as alpha grows", run, records)
        for axes, (across, up, title) in zip(grid.subplots(1, 2), panels, strict=True):
            handles = []
            for arm, of_arm, style in _arms(frame):
                x, y = stats.dose(of_arm, across)["mean"], stats.dose(of_arm, up)["mean"]
                handles += axes.plot(x, y, label=arm, **style)
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
            if MEASURES[up].is_share:  # a few refusals must not look like many
                axes.set_ylim(-0.02, max(0.3, axes.get_ylim()[1]))
        legend_below(figure, handles)
    return figure


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
