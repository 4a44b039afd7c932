"""The figures of the study: what is amplified, how much a limit decides, the law of gap x alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy
from matplotlib.figure import Figure

from ...evaluation import matching, outcomes, specificity, stats
from ...statistics import intervals
from .. import study_tables
from ..report import model_in_words
from ..study_tables import Study
from .style import COLOURS, MARKERS, STYLE, SUBDUED

PANELS = (
    ("paraphrase", "shuffled"),
    ("random_direction",),
)
FURTHEST = 2.0  # nats: beyond, hardly an answer is coherent
NAMES = {
    "pair": "A against B",
    "paraphrase": "A against its paraphrase",
    "shuffled": "A against another pair's B",
    "random_direction": "A in a random direction",
}


# By the study's verdict; other words mean that it is not shown.
NOT_SHOWN = "The declared attribute is not shown to grow more than under the controls"
GROWS = {
    "specific": "The declared attribute grows more than under every control",
    "partly specific": "The declared attribute grows more than under some controls, but not all",
    "not compared": "The declared attribute, with no control at the same distance from A",
}


def draw_specificity(study: Study) -> Figure:
    """The declared attribute against the distance from A: the pairs, and the controls."""
    rows = study.contrasts
    word = study_tables.verdict(study)
    with matplotlib.rc_context(STYLE):
        families = rows["family"].nunique()
        note = f"95 % intervals, {families} families"
        figure = _figure((11, 5.2), GROWS.get(word, NOT_SHOWN), study, note)
        for axes, controls in zip(figure.subplots(1, 2, sharey=True), PANELS, strict=True):
            for kind in (specificity.PAIR, *controls):
                if (rows["kind"] == kind).any():
                    _path(axes, rows[rows["kind"] == kind], kind)
            axes.axhline(0, color="#7F7F7F", linewidth=0.8)
            axes.set(
                xlabel="KL(sampled ‖ A) beyond alpha 0, nats per token",
                ylabel="change of the declared attribute, SD",
                title=f"Against {' and '.join(name.replace('_', ' ') for name in controls)}",
            )
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def _path(axes: Any, cells: Any, kind: str) -> None:
    """A kind of contrast: a point per alpha with its 95 % interval, from alpha 0 on."""
    place = list(NAMES).index(kind)
    far = matching.dose(cells)
    far = far[far - far.iloc[0] <= FURTHEST]
    table = stats.by_family_and_alpha(cells, "z")
    found = [intervals.interval(table[alpha] - table[0.0]) for alpha in far.index]
    mean = numpy.array([one.mean for one in found])
    reach = [mean - [one.lower for one in found], [one.upper for one in found] - mean]
    axes.errorbar(
        far.to_numpy() - far.iloc[0],
        mean,
        yerr=numpy.nan_to_num(numpy.abs(reach)),
        color=COLOURS[place],
        marker=MARKERS[place],
        capsize=2,
        label=NAMES[kind],
    )


def draw_sensitivity(study: Study, arms: Sequence[str], alpha: float) -> Figure:
    """The share of incoherent answers at one alpha against the limit of the excess NLL."""
    limits = numpy.linspace(0.5, 4, 36)
    frame = study_tables.shared_draws(study, [study_tables.BASE, *arms])
    with matplotlib.rc_context(STYLE):
        figure = _figure((9, 5), "", study, "means over families")
        axes = figure.subplots()
        for place, arm in enumerate((study_tables.BASE, *arms)):
            cells = frame[(frame["arm"] == arm) & (frame["alpha"] == alpha)]
            otherwise = cells["evidence"].str.contains("repeated|non-words|no text")
            otherwise &= cells["outcome"] == "incoherent"
            excess = study_tables.excess(study, cells)
            shares = [
                stats.by_family(cells.assign(x=(otherwise | (excess > limit)) * 1.0), "x").mean()
                for limit in limits
            ]
            axes.plot(limits, shares, color=COLOURS[place], label=arm)
            if place == 0:
                ends = f"{shares[0]:.0%} at {limits[0]:g} nats, {shares[-1]:.0%} at {limits[-1]:g}"
                of_what = f"({arm}, alpha {alpha:g})"
                _title(figure, f"The limit decides how many are incoherent: {ends} {of_what}")
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
    found = study_tables.law(study)
    found = found[(found["k"] == 20) & (found["gap"] >= 0)]
    names = list(found.groupby("arm")["gap"].first().sort_values().index)
    with matplotlib.rc_context(STYLE):
        told = study_tables.law_correlations(study)
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
    _title(figure, title)
    told = f"{model_in_words(study.run)}; {note}"
    figure.text(0.01, 0.005, told, size=8.5, color=SUBDUED)
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
    return figure


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", weight="bold")
