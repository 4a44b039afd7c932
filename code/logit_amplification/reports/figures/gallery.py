"""Every figure of a sweep by its name. They need its records only: no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ...evaluation import stats
from ...records.files import Record
from .comparison import draw_arms, draw_outcomes, draw_path
from .doses import draw_dose_response, draw_logits, draw_response_length
from .texts import draw_texts


def draw_all(run: dict[str, Any], records: Sequence[Record]) -> dict[str, Figure]:
    """Return every figure by its name, the one to read first in front.

    Figures of one arm are of the arm that was swept first.
    """
    finished = stats.without_errors(records) or records
    first = [record for record in records if record["arm"] == finished[0]["arm"]]
    return {
        "text_by_alpha": draw_texts(run, first),
        "arms": draw_arms(run, records),
        "behaviour_coherence": draw_path(run, records),
        "outcomes": draw_outcomes(run, records),
        "dose_response": draw_dose_response(run, first),
        "response_length_analysis": draw_response_length(run, first),
        "logits_analysis": draw_logits(run, first),
    }
