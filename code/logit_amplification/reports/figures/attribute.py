"""The declared attribute against the distance from A, beside the controls, and one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy
import pandas
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...evaluation import matching, specificity, stats
from ...logits.vocabulary import MEASURES
from ...records.files import Record
from ...statistics import intervals
from . import findings
from .style import COLOURS, MARKERS, STYLE, canvas, legend_below

FURTHEST = 2.0  # nats: beyond, hardly an answer is coherent
KINDS = {
    specificity.PAIR: "A against B",
    "paraphrase": "A against its paraphrase",
    "shuffled": "A against another pair's B",
    "random_direction": "A in a random direction",
}
NOTHING = (
    "Nothing to draw: no pair declares an attribute that varies in the texts of A and B.\n"
    "The column “attribute” of a prompt file says what A should have more of than B, or less."
)


def draw_attribute(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Draw in how many families the declared attribute rises: by distance, and by attribute.

    Signs and not sizes, because a run has too few texts to give attributes a common unit.
    records: of all arms, for the random direction is one.
    """
    frame = stats.to_frame(records)
    arm = frame["arm"].iloc[0] if len(frame) else ""
    rows = specificity.by_kind(frame, arm)
    own = rows[rows["kind"] == specificity.PAIR]
    with matplotlib.rc_context(STYLE):
        figure, grid = canvas((13, 5.6), findings.attribute(frame, arm), run, records)
        if specificity.directions(own, 0.0).empty:
            grid.text(0.5, 0.5, NOTHING, ha="center", va="center", size=11)
            return figure
        by_distance, by_attribute = grid.subplots(1, 2)
        handles = draw_distances(
            by_distance, rows, KINDS, specificity.directions, intervals.share_difference
        )
        by_distance.set(
            title="More often up than down, by distance from A",
            ylabel="families where it rises - where it falls, share",
            ylim=(-1.03, 1.03),
        )
        _count_panel(by_attribute, own)
        legend_below(figure, handles)
    return figure


def draw_distances(
    axes: Axes,
    rows: pandas.DataFrame,
    kinds: Iterable[str],
    changes: Callable[[pandas.DataFrame, float], pandas.Series],
    estimate: Callable[[pandas.Series], intervals.Estimate],
) -> list[Line2D]:
    """Draw changes from alpha 0: a line per kind, a point with its 95 % interval per alpha.

    rows: from `specificity`. changes: returns those of one kind at an alpha, by family. Returns
    handles for a legend.
    """
    handles = []
    for kind in kinds:
        cells = rows[rows["kind"] == kind]
        if not (cells["alpha"] == 0).any():
            continue
        place = list(KINDS).index(kind)
        far = matching.dose(cells)
        far = far[far - far[0.0] <= FURTHEST]
        found = [estimate(changes(cells, alpha)) for alpha in far.index]
        mean = numpy.array([one.mean for one in found])
        reach = [mean - [one.lower for one in found], [one.upper for one in found] - mean]
        style = {"color": COLOURS[place], "marker": MARKERS[place]}
        bars = {"yerr": numpy.nan_to_num(numpy.abs(reach)), "capsize": 2}
        axes.errorbar(far.to_numpy() - far[0.0], mean, **bars, **style)
        handles.append(Line2D([], [], label=KINDS[kind], **style))
    axes.axhline(0, color="#7F7F7F", linewidth=0.8)
    axes.set_xlabel("KL(sampled ‖ A) beyond alpha 0, nats per token")
    return handles


def _count_panel(axes: Axes, own: pandas.DataFrame) -> None:
    """The number of families in which each attribute rises (to the right) and falls (left)."""
    largest = own["alpha"].max()
    rows = {}
    for name, cells in own.groupby("measure"):
        found = specificity.directions(cells, largest)
        rows[name] = {"all": len(found), "up": (found > 0).sum(), "down": (found < 0).sum()}
    table = pandas.DataFrame.from_dict(rows, orient="index").sort_values(["all", "up"])
    for place, row in enumerate(table.itertuples()):
        axes.barh(place, row.up, color=COLOURS[0], height=0.6)
        axes.barh(place, -row.down, color=COLOURS[1], height=0.6)
    labels = [f"{MEASURES[row.Index].short} ({row.all})" for row in table.itertuples()]
    axes.set_yticks(range(len(labels)), labels)
    axes.axvline(0, color="#7F7F7F", linewidth=0.8)
    reach = max(1, table[["up", "down"]].to_numpy().max()) + 0.5
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set(
        title="Attribute by attribute",
        xlim=(-reach, reach),
        xlabel=f"families where it falls (left) and rises (right) at alpha {largest:g}",
        ylabel="attribute (families)",
    )
