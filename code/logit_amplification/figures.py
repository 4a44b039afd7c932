"""From records to matplotlib figures. They need the records only: redraw them on any laptop."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pandas
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from . import stats
from .report import run_in_words
from .settings import BadInput
from .store import Record

# Okabe and Ito's palette, told apart in every kind of colour blindness; markers say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MEAN, NULL = "#0072B2", "#D55E00"
STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
}
DPI = 200


def draw_all(run: dict[str, Any], records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure by its file name, for the arm swept first."""
    arm = records[0]["arm"]
    records = [record for record in records if record["arm"] == arm]
    return {
        "response_length_analysis.png": draw_response_length(run, records),
        "logits_analysis.png": draw_logits(run, records),
        "dose_response.png": draw_dose_response(run, records),
        "text_by_alpha.png": draw_texts(run, records),
    }


def save_figures(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write the figures as PNG files and return their paths."""
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            scratch = Path(folder) / f".{name}.tmp"
            with warnings.catch_warnings():  # a character that the font lacks is drawn as a box
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                figure.savefig(scratch, format="png", dpi=DPI)
            paths.append(scratch.replace(Path(folder) / name))
    except OSError as error:
        raise BadInput(f"VISUALIZATIONS_DIR = {str(folder)!r}: {error.strerror}") from None
    return paths


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
        figure, canvas = _canvas((13, 5.2), "Dose and response of amplification", run, records)
        axes = canvas.subplots(1, 3)
        for panel, (name, title, label) in zip(axes, panels, strict=True):
            _dose_panel(panel, frame, name)
            panel.set(title=title, xlabel="alpha", ylabel=label)
        _legend(figure, _dose_handles(frame))
    return figure


def draw_response_length(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Length of the answers against alpha, over all pairs, by category, and how they ended."""
    frame = stats.to_frame(records)
    limit = run["sampling"]["max_new_tokens"]
    with matplotlib.rc_context(STYLE):
        figure, canvas = _canvas((13, 5.4), "Response length", run, records)
        every, category, ended = canvas.subplots(1, 3)
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
        _legend(figure, [*_dose_handles(frame), *handles])
    return figure


def draw_logits(run: dict[str, Any], records: Sequence[Record]) -> Figure:
    """Range and spread of the amplified logits against alpha; length against spread."""
    frame = stats.to_frame(records)
    with matplotlib.rc_context(STYLE):
        figure, canvas = _canvas((11, 9.4), "The amplified logits", run, records)
        (extent, spread), (category, scatter) = canvas.subplots(2, 2)
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
        shown = frame[~frame["is_null"]]
        points = scatter.scatter(
            shown["logit_std"],
            shown["n_tokens"],
            c=shown["alpha"],
            cmap="viridis",
            s=22,
            alpha=0.85,
        )
        canvas.colorbar(points, ax=scatter, label="alpha")
        scatter.set(
            title="Length against spread, one point per generation",
            xlabel="standard deviation of logits",
            ylabel="tokens per answer",
        )
        _legend(figure, [*_dose_handles(frame), *handles])
    return figure


def draw_texts(
    run: dict[str, Any], records: Sequence[Record], pair_id: str | None = None
) -> Figure:
    """The answers to one prompt at every alpha; by default the first pair, not a chosen one."""
    pair_id = pair_id or records[0]["pair_id"]
    shown = [r for r in records if r["pair_id"] == pair_id and r["sample"] == 0]
    pair = next(pair for pair in run["pairs"] if pair["id"] == pair_id)
    blocks = [(f"alpha {r['alpha']:g}", _clean(r["text"]), _numbers(r)) for r in shown]
    blocks = [
        (head, textwrap.wrap(text, 138) or ["(nothing)"], foot) for head, text, foot in blocks
    ]
    height = sum(len(text) + 1.1 for _, text, _ in blocks) + 5.0
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(12, 0.2 * height + 0.5))
        axes = figure.add_axes((0.02, 0.03, 0.96, 0.95))
        axes.set(xlim=(0, 1), ylim=(height, 0))
        axes.axis("off")
        axes.text(0, 0.5, f"One prompt at every alpha: {pair_id}", weight="bold", size=12)
        for line, side in ((2.0, "a"), (3.1, "b")):
            axes.text(0, line, side.upper(), weight="bold", color=MEAN if side == "a" else NULL)
            chat = "  |  ".join(f"{m['role']}: {_clean(m['content'])}" for m in pair[side])
            axes.text(0.02, line, _plain(textwrap.shorten(chat, 150, placeholder=" …")), size=9.5)
        line = 4.6
        for index, (head, text, foot) in enumerate(blocks):
            if index % 2 == 0:
                axes.axhspan(line - 0.9, line + len(text) + 0.2, color="#F3F3F3")
            axes.text(0.005, line, head, weight="bold", va="baseline")
            axes.text(0.005, line + 1, foot, size=8, color="#555555", va="baseline")
            for offset, part in enumerate(text):
                axes.text(0.16, line + offset, _plain(part), size=9.5, va="baseline")
            line += max(len(text), 2) + 1.1
        axes.set_ylim(line + 1.0, 0)
        model = run["model"]
        axes.text(
            0,
            line + 0.6,
            f"{model['name']}, {model['dtype']}, run {run['id']}",
            size=8,
            color="#555555",
        )
        figure.set_size_inches(12, 0.2 * (line + 1.0) + 0.4)
    return figure


# ---------------------------------------------------------------------------------------- panels


def _dose_panel(axes: Axes, frame: pandas.DataFrame, name: str, *, lines: bool = True) -> None:
    """A thin line per pair, the mean over pairs with its 95 % interval, and the null pair."""
    table = stats.by_pair(frame[~frame["is_null"]], name)
    null = stats.by_pair(frame[frame["is_null"]], name)
    if lines:
        axes.plot(table.columns, table.T, color="#9DB7C9", linewidth=0.7, alpha=0.7, zorder=1)
    if len(table):
        mean, lower, upper = numpy.array([stats.interval(table[a]) for a in table.columns]).T
        axes.fill_between(
            table.columns, lower, upper, color=MEAN, alpha=0.22, linewidth=0, zorder=2
        )
        axes.plot(table.columns, mean, color=MEAN, linewidth=2.4, marker="o", zorder=4)
    if len(null):
        axes.plot(null.columns, null.T, color=NULL, linewidth=1.6, linestyle="--", zorder=3)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6))


def _category_panel(axes: Axes, frame: pandas.DataFrame, name: str) -> list[Line2D]:
    """One line per category, null pairs left out; returns the legend's handles."""
    shown = frame[~frame["is_null"]]
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
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
    return handles


def _dose_handles(frame: pandas.DataFrame) -> list[Any]:
    pairs = frame.loc[~frame["is_null"], "pair_id"].nunique()
    handles: list[Any] = [
        Line2D([], [], color="#9DB7C9", linewidth=1, label="one pair"),
        Line2D(
            [],
            [],
            color=MEAN,
            linewidth=2.4,
            marker="o",
            label=f"mean, 95 % interval (n = {pairs})",
        ),
    ]
    if frame["is_null"].any():
        handles.append(Line2D([], [], color=NULL, linestyle="--", label="null pair (A = B)"))
    return handles


def _canvas(
    size: tuple[float, float], title: str, run: dict[str, Any], records: Sequence[Record]
) -> tuple[Figure, SubFigure]:
    """A figure with a title above the panels and, below them, a strip for legend and footnote."""
    figure = Figure(figsize=size)
    canvas, strip = figure.subfigures(2, 1, height_ratios=(size[1] - 0.9, 0.9))
    canvas.suptitle(title, x=0.01, ha="left", weight="bold")
    note = "\n".join(textwrap.wrap(run_in_words(run, records), int(13 * size[0])))
    strip.text(0.01, 0.02, note, size=8, color="#555555", va="bottom")
    return figure, canvas


def _legend(figure: Figure, handles: list[Any]) -> None:
    strip = figure.subfigs[1]
    strip.legend(handles=handles, loc="upper center", ncols=5, borderaxespad=0)


def _numbers(record: Record) -> str:
    if record["finish_reason"] == "error":
        return "ended with an error"
    measures = record["measures"]
    return f"KL {measures['kl_amplified_a']:.2f}, NLL {measures['nll_a']:.2f}"


def _clean(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Text from the model is data: a dollar sign must not start matplotlib's mathematics."""
    return text.replace("$", r"\$")
