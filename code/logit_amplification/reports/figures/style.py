"""How every figure looks, in one place: colours, type, canvas, footnote and files."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas
from matplotlib.figure import Figure, SubFigure

from ...errors import BadInput
from ...logits.vocabulary import MEASURES, SHARE
from ...records.files import Record
from ..report import run_in_words

# Okabe and Ito's palette, told apart in every kind of colour blindness; markers say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MEAN, NULL = "#0072B2", "#D55E00"
PALE, SUBDUED = "#B9CBD8", "#555555"
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}
# Measures that are never below 0; those that are shares are never above 1.
NON_NEGATIVE = (
    *("kl_amplified_a", "kl_a_b", "nll_a", "nll_b", "entropy", "n_tokens", "logit_range"),
    *("logit_std", "repeated_4gram_share", "incoherent", "refusal", "other", "ended_by_eos"),
)
SVG = {"svg.fonttype": "none", "svg.hashsalt": "logit-amplification"}  # text stays text


def save_figures(figures: dict[str, Figure], folder: Path, run_id: str = "") -> list[Path]:
    """Write each figure as PNG and as SVG and return the paths. The same data give the same SVG.

    run_id: kept in the files' metadata, not in the picture. Raises BadInput for a folder that
    cannot be written.
    """
    source = f"run {run_id}" if run_id else "logit-amplification"
    formats: dict[str, dict[str, Any]] = {
        "png": {"dpi": 200, "metadata": {"Source": source}},
        "svg": {"metadata": {"Date": None, "Source": source}},
    }
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for kind, options in formats.items():
                scratch = Path(folder) / f".{name}.{kind}.tmp"
                with warnings.catch_warnings(), matplotlib.rc_context(SVG):
                    # A character that the font lacks is drawn as a box.
                    warnings.filterwarnings("ignore", message="Glyph .* missing")
                    figure.savefig(scratch, format=kind, **options)
                # Laid out by the first; the second has the same places at half the time.
                figure.set_layout_engine("none")
                paths.append(scratch.replace(Path(folder) / f"{name}.{kind}"))
    except OSError as error:
        raise BadInput(f"VISUALIZATIONS_DIR = {str(folder)!r}: {error.strerror}") from None
    return paths


def canvas(
    size: tuple[float, float], title: str, run: dict[str, Any], records: Sequence[Record]
) -> tuple[Figure, SubFigure]:
    """A figure with a title above the panels and, below them, a strip for legend and footnote."""
    figure = Figure(figsize=size)
    canvas, strip = figure.subfigures(2, 1, height_ratios=(size[1] - 0.95, 0.95))
    set_title(canvas, title, size[0])
    note = "\n".join(textwrap.wrap(run_in_words(run, records), int(12.5 * size[0])))
    strip.text(0.01, 0.02, note, size=8.5, color=SUBDUED, va="bottom")
    return figure, canvas


def set_title(figure: Figure | SubFigure, text: str, width: float) -> None:
    """Put a title above all panels, in lines that fit the width in inches."""
    wrapped = textwrap.fill(text, int(8 * width))
    figure.suptitle(wrapped, x=0.01, ha="left", weight="bold")


def possible(table: pandas.DataFrame, name: str) -> pandas.DataFrame:
    """Cut the intervals of a measure to the values it can have; few pairs give very wide ones."""
    if name not in NON_NEGATIVE:
        return table
    most = 1.0 if MEASURES[name].unit == SHARE else None
    return table.assign(**{part: table[part].clip(0.0, most) for part in ("lower", "upper")})


def legend_below(figure: Figure, handles: list[Any]) -> None:
    """Put the legend into the strip below the panels."""
    strip = figure.subfigs[1]
    strip.legend(handles=handles, loc="upper center", ncols=5, borderaxespad=0)


def one_line(text: str) -> str:
    """Text without line breaks."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """Text from the model is data: a dollar sign must not start matplotlib's mathematics."""
    return text.replace("$", r"\$")
