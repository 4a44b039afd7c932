"""What every alpha would do to a fixed text: curves over 200 alphas, from two forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import MEAN, NULL, PALE, STYLE

PANELS = (
    ("kl_amplified_a", "Distance from A", "KL(amplified ‖ A), nats per token"),
    ("entropy", "Entropy of the amplified distribution", "nats"),
    ("cross_entropy", "How unlikely the text of alpha 0 becomes", "cross-entropy, nats per token"),
    ("changed_share", "Positions whose likeliest token changes", "share of positions"),
)


def draw_profile(
    profiles: pandas.DataFrame, changes: pandas.DataFrame, alphas: Sequence[float], title: str
) -> Figure:
    """Draw KL, entropy, cross-entropy and changed argmax against alpha.

    profiles: a row per pair and alpha, as `alpha_profile.to_frame` makes it; changes: a row per
    change of an argmax. alphas: those of a sweep, marked.
    """
    pairs = profiles["pair_id"].nunique()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8))
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        for axes, (name, heading, label) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            table = profiles.pivot_table(index="alpha", columns="pair_id", values=name)
            if pairs > 1:
                axes.plot(table.index, table, color=PALE, linewidth=0.8)
            axes.plot(table.index, table.mean(axis=1), color=MEAN, linewidth=2.4)
            swept = [alpha for alpha in alphas if table.index[0] <= alpha <= table.index[-1]]
            for alpha in swept:
                axes.axvline(alpha, color=NULL, linewidth=0.8, linestyle=":")
            axes.set(title=heading, xlabel="alpha", ylabel=label)
        axes.set_title(f"{PANELS[-1][1]} ({len(changes)} changes)")
        what = f"mean of {pairs} pairs" if pairs > 1 else "this text"
        handles = [
            *([Line2D([], [], color=PALE, linewidth=1.2, label="one pair")] if pairs > 1 else []),
            Line2D([], [], color=MEAN, linewidth=2.4, label=what),
            Line2D([], [], color=NULL, linewidth=0.8, linestyle=":", label="alphas of the sweep"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
