"""Write docs/RESULTS_ANALYSIS.md from the tables of the study.

Prose and layout are in the template `document.md.j2`; the numbers come from `tables`.
Every sentence about an effect gives n, an interval, and the arm or control concerned. Different
data produce different sentences. This module does not import torch.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...evaluation import outcomes, specificity, stats
from ...evaluation.calibration import error_rates
from ...statistics import intervals
from ...statistics.wording import (
    against_margin,
    format_change,
    format_estimate,
    format_interval,
    format_test,
    power_sentence,
)
from . import cells, tables
from .tables import Study

TEMPLATE = Path(__file__).with_suffix(".md.j2")
WIDTH = 110
LAID_OUT = ("|", "!", "#")  # lines that begin like this are not prose
POINT = re.compile(r"(?:\*|\d+\.) ")  # the beginning of a list item


def write_document(study: Study) -> str:
    """Return the text of docs/RESULTS_ANALYSIS.md."""
    given = {"study": study, "tables": tables, "stats": stats, "outcomes": outcomes}
    given |= {"specificity": specificity, "intervals": intervals, "cells": cells}
    functions = {f.__name__: f for f in (error_rates, power_sentence)}
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
        "format_interval": format_interval,
        "format_test": format_test,
        "against_margin": against_margin,
        "number": _number,
    }
    return environment


def _number(value: Any, form: str = "g") -> str:
    return format(value, form)


def _wrapped(text: str) -> Iterator[str]:
    """Wrap the template's lines of prose, and merge consecutive blank lines into one.

    A blank line or the next list item ends a paragraph.
    """
    blocks: list[str] = []
    for blank, lines in groupby(map(str.strip, text.strip().splitlines()), lambda line: not line):
        if blank:
            blocks.append("")
            continue
        begun = False
        for line in lines:
            prose = not line.startswith(LAID_OUT)
            if begun and prose and not POINT.match(line):
                blocks[-1] += f" {line}"
            else:
                blocks.append(line)
            begun = prose
    for block in blocks:
        if block.startswith(LAID_OUT):
            yield block
        else:
            point = POINT.match(block)
            indent = " " * len(point[0]) if point else ""
            yield textwrap.fill(
                block,
                WIDTH,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
