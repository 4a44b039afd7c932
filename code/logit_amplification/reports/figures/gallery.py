"""The figures of a sweep: how each is drawn, and what is written below it. No model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas
from matplotlib.figure import Figure

from ...evaluation import stats
from ...records.files import Record
from . import captions as told
from .attribute import draw_attribute
from .comparison import draw_arms, draw_outcomes, draw_path
from .doses import draw_dose_response, draw_logits, draw_response_length
from .texts import draw_texts


class Kind(NamedTuple):
    """A figure of a sweep."""

    draw: Callable[[dict[str, Any], Sequence[Record]], Figure]
    caption: Callable[[pandas.DataFrame, str], str]  # see `captions`
    every_arm: bool = False  # otherwise of the arm that was swept first


# By the name of its files; the one to read first in front.
FIGURES = {
    "text_by_alpha": Kind(draw_texts, told.texts),
    "declared_attribute": Kind(draw_attribute, told.attribute, every_arm=True),
    "arms": Kind(draw_arms, told.arms, every_arm=True),
    "behaviour_coherence": Kind(draw_path, told.path, every_arm=True),
    "outcomes": Kind(draw_outcomes, told.outcomes, every_arm=True),
    "dose_response": Kind(draw_dose_response, told.dose_response),
    "response_length_analysis": Kind(draw_response_length, told.lengths),
    "logits_analysis": Kind(draw_logits, told.logits),
}


def draw_all(run: dict[str, Any], records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure by its name."""
    finished = stats.without_errors(records) or records
    first = [record for record in records if record["arm"] == finished[0]["arm"]]
    return {
        name: kind.draw(run, records if kind.every_arm else first) for name, kind in FIGURES.items()
    }


def captions(records: Sequence[Record]) -> dict[str, str]:
    """Return the caption of each figure by its name; none where only controls finished."""
    frame, arm = stats.to_frame(records), records[0]["arm"]
    if stats.treatment(frame[frame["arm"] == arm]).empty:
        return {}
    return {name: kind.caption(frame, arm) for name, kind in FIGURES.items()}
