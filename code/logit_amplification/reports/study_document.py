"""The document of results, written from the tables of the study: docs/RESULTS_ANALYSIS.md.

The prose and the layout stand in `study_document.md.j2`, the numbers come from `study_tables`: a
sentence about an effect carries n, interval and the arm or control it is held against. Other data
give other sentences. No torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation import outcomes, stats
from ..evaluation.calibration import error_rates
from ..evaluation.wording import format_change, format_estimate, power_sentence
from . import study_tables
from .report import trend_sentence
from .study_tables import Study

TEMPLATE = Path(__file__).with_suffix(".md.j2")
WIDTH = 110
LAID_OUT = ("|", "!", "#")  # how a line begins that is no prose


def write_document(study: Study) -> str:
    """Return docs/RESULTS_ANALYSIS.md."""
    given = {"study": study, "tables": study_tables, "stats": stats, "outcomes": outcomes}
    functions = {f.__name__: f for f in (error_rates, power_sentence, trend_sentence)}
    text = _environment().get_template(TEMPLATE.name).render(given | functions)
    return "\n".join(_wrapped(text)) + "\n"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "format_estimate": format_estimate,
        "format_change": format_change,
        "number": _number,
    }
    return environment


def _number(value: Any, form: str = "g") -> str:
    return format(value, form)


def _wrapped(text: str) -> Iterator[str]:
    """Break the lines of prose anew, for the template's are of any length; one blank line at most.

    A blank line ends a paragraph, and so does the next point of a list.
    """
    blocks: list[str] = []
    for blank, lines in groupby(map(str.strip, text.strip().splitlines()), lambda line: not line):
        if blank:
            blocks.append("")
            continue
        begun = False
        for line in lines:
            prose = not line.startswith(LAID_OUT)
            if begun and prose and not line.startswith("* "):
                blocks[-1] += f" {line}"
            else:
                blocks.append(line)
            begun = prose
    for block in blocks:
        if block.startswith(LAID_OUT):
            yield block
        else:
            indent = "  " * block.startswith("* ")
            yield textwrap.fill(
                block,
                WIDTH,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
