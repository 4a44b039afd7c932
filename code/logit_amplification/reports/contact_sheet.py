"""One page for a sweep: the texts, what was found, and every figure with a caption."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from ..evaluation import stats
from ..records.files import Record
from .figures import gallery, texts
from .figures.style import one_line
from .report import BRACKETS, findings, run_in_words

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
    told = gallery.captions(records)
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


def texts_in_words(records: Sequence[Record]) -> str:
    """Return the answers of the text figure for those who hear the page."""
    arm = records[0]["arm"]
    frame = stats.to_frame(records)
    chosen = stats.typical_pair(frame[frame["arm"] == arm]) or records[0]["pair_id"]
    of_pair = [r for r in records if (r["arm"], r["pair_id"], r["sample"]) == (arm, chosen, 0)]
    answers = [r for r in of_pair if r["alpha"] in texts.default_alphas(of_pair)]
    return " ".join(f"Alpha {r['alpha']:g}: {one_line(r['text'])[:200]}" for r in answers)
