"""A progress bar that works in a terminal, in a notebook and in a log file.

In a terminal and in a notebook the bar redraws its line. Anywhere else it prints a new line every
`LOG_SECONDS` seconds, in ASCII and without control characters.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 20.0
LOG_WIDTH = 110
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class Bar(tqdm):
    """A tqdm bar on standard output, or on the stream given as `file`."""

    def __init__(self, *args: Any, **options: Any):
        out = options.pop("file", None) or sys.stdout
        if not _redraws(out):
            out = _Lines(out)
            options |= {"mininterval": LOG_SECONDS, "ascii": True, "ncols": LOG_WIDTH}
        super().__init__(*args, file=out, **options)


class SweepBar(Bar):
    """A bar over the tokens of a sweep.

    The total starts at answers * max_new_tokens and shrinks whenever an answer ends early.
    """

    def __init__(self, answers: int, max_new_tokens: int):
        self.done, self.answers, self.longest = 0, answers, max_new_tokens
        self.elsewhere = (0, 0)  # answers and tokens made by other processes
        super().__init__(
            total=answers * max_new_tokens,
            desc="sweep",
            unit=" tokens",
            mininterval=0.5,
            disable=not answers,
            postfix=f"0 of {answers} answers",
            bar_format="{desc}: {percentage:3.0f}%|{bar:16}| {rate_noinv_fmt}, {remaining} left"
            "{postfix}",
        )

    def answered(self, tokens: int, text: str) -> None:
        """Count a finished answer of `tokens` tokens, and show how its text begins."""
        self.done += 1
        self.total -= self.longest - tokens
        told = f"{self.done} of {self.answers} answers"
        self.set_postfix_str(f"{told}, {glimpse(text)}" if text else told, refresh=False)

    def answered_elsewhere(self, answers: int, tokens: int) -> None:
        """Count what other processes have made.

        answers, tokens: totals so far, without unfinished answers.
        """
        more = answers - self.elsewhere[0], tokens - self.elsewhere[1]
        if more[0]:
            self.elsewhere = answers, tokens
            self.done += more[0]
            self.total -= more[0] * self.longest - more[1]
            self.update(more[1])

    def ended(self, tokens: int) -> None:
        """Show that all answers are finished; they have `tokens` tokens in total."""
        self.done, self.total = self.answers, tokens
        self.set_postfix_str(f"{self.answers} of {self.answers} answers", refresh=False)
        self.update(tokens - self.n)


@contextmanager
def only_first_speaks() -> Iterator[None]:
    """Silence standard output in every process of a launch except the first (RANK 0)."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def glimpse(text: str) -> str:
    """Return the start of an answer on one line: 40 characters at most, no control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())
    return line if len(line) <= 40 else line[:39] + "…"


def _redraws(out: TextIO) -> bool:
    return out.isatty() or type(out).__module__.startswith("ipykernel")


class _Lines:
    """A stream that writes each redraw of a line as a separate line, without repeats."""

    def __init__(self, out: TextIO):
        self.out, self.encoding = out, "ascii"
        self.last = ""

    def write(self, text: str) -> None:
        line = CONTROL.sub("", text).strip()
        if line and line != self.last:
            self.out.write(line + "\n")
            self.last = line

    def flush(self) -> None:
        self.out.flush()
