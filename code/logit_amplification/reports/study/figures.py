"""The figures of the study: what is amplified, how much a limit decides, the law of gap x alpha."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy
import pandas
from matplotlib.figure import Figure

from ...evaluation import outcomes, specificity, stats
from ...statistics.intervals import interval
from ..figures import findings
from ..figures.attribute import draw_distances
from ..figures.style import COLOURS, MARKERS, STYLE, SUBDUED, set_title
from ..report import model_in_words
from . import tables
from .tables import Study

PANELS = (
    ("paraphrase", "shuffled"),
    ("random_direction",),
)


def draw_specificity(study: Study) -> Figure:
    """The declared attribute against the distance from A: the pairs, and the controls."""
    rows = study.contrasts
    with matplotlib.rc_context(STYLE):
        families = rows["family"].nunique()
        note = f"95 % intervals, {families} families"
        figure = _figure((11, 5.2), findings.attribute(study.generations), study, note)
        for axes, controls in zip(figure.subplots(1, 2, sharey=True), PANELS, strict=True):
            handles = draw_distances(axes, rows, (specificity.PAIR, *controls), _change, interval)
            axes.set(
                title=f"Against {' and '.join(name.replace('_', ' ') for name in controls)}",
                ylabel="change of the declared attribute, SD",
            )
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
            axes.legend(handles=handles, ncols=2, **place)
    return figure


def _change(cells: pandas.DataFrame, alpha: float) -> pandas.Series:
    table = stats.by_family_and_alpha(cells, "z")
    return table[alpha] - table[0.0]


def draw_sensitivity(study: Study, arms: Sequence[str], alpha: float) -> Figure:
    """The share of incoherent answers at one alpha against the limit of the excess NLL."""
    limits = numpy.linspace(0.5, 4, 36)
    frame = tables.shared_draws(study, [tables.BASE, *arms])
    with matplotlib.rc_context(STYLE):
        figure = _figure((9, 5), "", study, "means over families")
        axes = figure.subplots()
        for place, arm in enumerate((tables.BASE, *arms)):
            cells = frame[(frame["arm"] == arm) & (frame["alpha"] == alpha)]
            otherwise = cells["evidence"].str.contains("repeated|non-words|no text")
            otherwise &= cells["outcome"] == "incoherent"
            excess = tables.excess(study, cells)
            shares = [
                stats.by_family(cells.assign(x=(otherwise | (excess > limit)) * 1.0), "x").mean()
                for limit in limits
            ]
            axes.plot(limits, shares, color=COLOURS[place], label=arm)
            if place == 0:
                ends = f"{shares[0]:.0%} at {limits[0]:g} nats, {shares[-1]:.0%} at {limits[-1]:g}"
                of_what = f"({arm}, alpha {alpha:g})"
                told = f"The limit decides how many are incoherent: {ends} {of_what}"
                set_title(figure, told, 9)
        axes.axvline(outcomes.EXCESS_LIMIT, color="#7F7F7F", linestyle=":", linewidth=1)
        axes.annotate("the limit set", (outcomes.EXCESS_LIMIT, 0.98), ha="left", va="top")
        axes.set(
            xlabel="limit of the NLL above the usual, nats per token",
            ylabel="share of answers",
            ylim=(-0.02, 1.02),
        )
        axes.legend(frameon=False)
    return figure


def draw_law(study: Study) -> Figure:
    """The NLL under A by fill, against alpha and against gap x alpha."""
    found = tables.law(study)
    found = found[(found["k"] == 20) & (found["gap"] >= 0)]
    names = list(found.groupby("arm")["gap"].first().sort_values().index)
    with matplotlib.rc_context(STYLE):
        told = tables.law_correlations(study)
        title = (
            f"Gap x alpha orders how unlikely text becomes: rank correlation "
            f"{told['gap_alpha']:.2f}, alpha alone {told['alpha']:.2f}"
        )
        note = f"95 % intervals, {found['n'].max()} families"
        figure = _figure((11, 5), title, study, note)
        for axes, across in zip(
            figure.subplots(1, 2, sharey=True), ("alpha", "gap_alpha"), strict=True
        ):
            for place, arm in enumerate(names):
                rows = found[found["arm"] == arm].sort_values("alpha")
                axes.errorbar(
                    rows[across],
                    rows["nll_a"],
                    yerr=[rows["nll_a"] - rows["lower"], rows["upper"] - rows["nll_a"]],
                    color=COLOURS[place % len(COLOURS)],
                    marker=MARKERS[place % len(MARKERS)],
                    linestyle="-" if across == "alpha" else "none",
                    capsize=2,
                    label=f"{arm} (gap {rows['gap'].iloc[0]:.1f})",
                )
            axes.set(ylabel="NLL under A, nats per token")
        figure.axes[0].set(xlabel="alpha", title="Against alpha: a curve per fill")
        figure.axes[1].set(xlabel="gap x alpha, nats", title="Against gap x alpha: all fills")
        figure.axes[1].set_xscale("symlog", linthresh=1)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _figure(size: tuple[float, float], title: str, study: Study, note: str) -> Figure:
    figure = Figure(figsize=size)
    set_title(figure, title, size[0])
    told = f"{model_in_words(study.run)}; {note}"
    figure.text(0.01, 0.005, told, size=8.5, color=SUBDUED)
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
    return figure
