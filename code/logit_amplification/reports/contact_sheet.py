"""One page for a sweep: the texts, what was found, and every figure with a caption."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas

from ..evaluation import stats
from ..logits.vocabulary import MEASURES
from ..records.files import Record
from ..statistics.wording import format_change, format_estimate
from .figures import texts
from .figures.style import one_line
from .report import BRACKETS, arm_points, findings, run_in_words

STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.55 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;"
    "background:#fff;color:#111}figure{margin:0 0 3em}img{width:100%;height:auto}"
    "figcaption,ol,p{max-width:60em}li{margin:.4em 0}small{color:#555}a{color:#0063a0}"
    "@media(prefers-color-scheme:dark){body{background:#16181c;color:#e8e8e8}"
    "small{color:#aaa}a{color:#7cc4f5}img{background:#fff}}"
)


def write_page(run: dict[str, Any], records: Sequence[Record], names: Sequence[str]) -> str:
    """Return `index.html`: the texts, the findings, and the other figures called `names`.

    Figures are PNG with a link to SVG; no scripts.
    """
    told = captions(records)
    spoken = told | {"text_by_alpha": texts_in_words(records)}
    shown = [_figure(name, told.get(name, ""), spoken.get(name, "")) for name in names]
    points = "\n".join(f"<li>{html.escape(text)}</li>" for text in findings(run, records))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>What this run says</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>What this run says</h1>\n"
        f"<p>{html.escape(run_in_words(run, records))}; run {run['id']}</p>\n"
        + "\n".join(shown[:1])
        + f"\n<h2>Findings</h2>\n<p>{BRACKETS}</p>\n<ol>\n{points}\n</ol>\n<h2>Figures</h2>\n"
        + "\n".join(shown[1:])
        + "\n</body></html>\n"
    )


def _figure(name: str, caption: str, spoken: str) -> str:
    caption, spoken = html.escape(caption), html.escape(spoken)
    return (
        f'<figure id="{name}"><a href="{name}.svg"><img src="{name}.png" alt="{spoken}"></a>'
        f"<figcaption>{caption} <small>(<a href='{name}.png'>PNG</a>, <a href='{name}.svg'>SVG"
        "</a>)</small></figcaption></figure>"
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
    head = f"Arm {arm}, alpha {largest:g}:"
    measures = {
        "dose_response": ("kl_amplified_a", "nll_a", "log_ratio_a_b"),
        "response_length_analysis": ("n_tokens", "ended_by_eos"),
        "logits_analysis": ("logit_range", "logit_std", "entropy"),
    }
    titles = {
        "dose_response": "Distance from A, likelihood and contrast against alpha, with a line per "
        "pair.",
        "response_length_analysis": "How long answers are: curves of the answers still going on, "
        "the share that ends, and the change by category.",
        "logits_analysis": "Range, spread and entropy of the amplified logits against alpha, and "
        "the change of the spread by category.",
    }
    told = {
        name: f"{titles[name]} {head} {_told(first, largest, some)}"
        for name, some in measures.items()
    }
    answers = stats.dose(stats.without_b(first), "incoherent")["mean"]
    return told | {
        "text_by_alpha": f"Answers to one question, from B over A to larger alpha; arm {arm}, pair "
        f"{stats.typical_pair(first)}, whose log p_A - log p_B grows most like the median.",
        "arms": "Coherence against alpha, a line per arm: likelihood under A, incoherent answers, "
        f"repetition. Incoherent answers of arm {arm} go from {answers.iloc[0]:.0%} at alpha "
        f"{answers.index[0]:g} to {answers.iloc[-1]:.0%} at alpha {largest:g}. {' '.join(lines)}",
        "outcomes": "Incoherent answers, refusals and all others against alpha. At alpha "
        f"{largest:g}. {'. '.join(shares)}.",
        "behaviour_coherence": "What amplification costs (likelihood under A) and what it brings "
        "(the contrast of A with B) against the distance from A: a line per arm, a point per "
        f"alpha, from {stats.without_b(first)['alpha'].min():g} to {largest:g}.",
    }


def texts_in_words(records: Sequence[Record]) -> str:
    """Return the answers of the text figure for those who hear the page."""
    arm = records[0]["arm"]
    frame = stats.to_frame(records)
    chosen = stats.typical_pair(frame[frame["arm"] == arm]) or records[0]["pair_id"]
    of_pair = [r for r in records if (r["arm"], r["pair_id"], r["sample"]) == (arm, chosen, 0)]
    answers = [r for r in of_pair if r["alpha"] in texts.default_alphas(of_pair)]
    return " ".join(f"Alpha {r['alpha']:g}: {one_line(r['text'])[:200]}" for r in answers)


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
