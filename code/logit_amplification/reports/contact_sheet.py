"""All figures of a sweep on one page, with captions that are written from the data."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas

from ..evaluation import stats
from ..logits.vocabulary import MEASURES
from ..records.files import Record
from ..statistics.wording import format_change, format_estimate
from .report import arm_points, run_in_words

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;"
    "background:#fff;color:#111}figure{margin:0 0 3em}img{width:100%;height:auto}"
    "figcaption{max-width:60em}small{color:#555}a{color:#0072B2}"
)


def write_page(run: dict[str, Any], records: Sequence[Record], names: Sequence[str]) -> str:
    """Return `index.html`: the figures called `names`, as PNG with a link to SVG. No scripts."""
    told = captions(records)
    shown = []
    for name in names:
        caption = html.escape(told.get(name, ""))
        shown.append(
            f'<figure id="{name}"><a href="{name}.svg"><img src="{name}.png" alt="{caption}"></a>'
            f"<figcaption>{caption} <small>(<a href='{name}.png'>PNG</a>, <a href='{name}.svg'>SVG"
            "</a>)</small></figcaption></figure>"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Figures</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>Figures</h1>\n"
        f"<p>{html.escape(run_in_words(run, records))}</p>\n"
        + "\n".join(shown)
        + "\n</body></html>\n"
    )


def captions(records: Sequence[Record]) -> dict[str, str]:
    """Return a caption for each figure of a sweep, with n and 95 % intervals."""
    frame = stats.to_frame(records)
    arm = records[0]["arm"]
    first = frame[frame["arm"] == arm]
    if stats.treatment(first).empty:
        return {}
    largest = stats.treatment(first)["alpha"].max()
    lines = arm_points(frame, arm)
    shares = [
        f"{name}: {'; '.join(_shares(rows))}" for name, rows in frame.groupby("arm", sort=False)
    ]
    head = f"Arm {arm}, alpha {largest:g}."
    measures = {
        "dose_response": ("kl_amplified_a", "nll_a", "repeated_4gram_share"),
        "response_length_analysis": ("n_tokens", "ended_by_eos"),
        "logits_analysis": ("logit_range", "logit_std"),
    }
    told = {name: f"{head} {_told(first, largest, some)}" for name, some in measures.items()}
    return told | {
        "text_by_alpha": f"Arm {arm}, pair {stats.typical_pair(first)}, sample 0: the pair whose "
        "log p_A - log p_B grows most like the median.",
        "arms": " ".join(lines) or f"Arm {arm} alone.",
        "outcomes": f"At alpha {largest:g}. {'. '.join(shares)}.",
        "behaviour_coherence": "A line per arm, a point per alpha, from "
        f"{stats.without_b(first)['alpha'].min():g} to {largest:g}.",
    }


def _told(frame: pandas.DataFrame, alpha: float, names: Sequence[str]) -> str:
    """What measures are at an alpha, and how that differs from alpha 0."""
    parts = []
    for name in names:
        told = f"{MEASURES[name].described}: {format_estimate(stats.dose(frame, name).loc[alpha])}"
        changes = stats.paired_difference(frame, name)
        parts.append(f"{told}, against alpha 0 {format_change(changes.loc[alpha])}")
    return "; ".join(parts) + "."


def _shares(rows: pandas.DataFrame) -> list[str]:
    alpha = stats.treatment(rows)["alpha"].max()
    return [
        f"{MEASURES[name].described} {format_estimate(stats.dose(rows, name).loc[alpha])}"
        for name in ("other", "refusal", "incoherent")
        if alpha in stats.dose(rows, name).index
    ]
