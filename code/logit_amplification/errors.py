"""What can go wrong in a way that a user can mend: told in one line, without a traceback."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What tokens of Hugging Face and of API providers look like: no message shows more than their kind.
SECRET = re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{8,}")


class BadInput(ValueError):
    """What a user gave cannot be used. The message is one line: where, what, what is allowed."""

    def __init__(self, message: str):
        super().__init__(without_secrets(" ".join(message.split())))

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: the fault is in the input, not in the code."""
        return [f"error: {self}"]


class Interrupted(KeyboardInterrupt):
    """The user stopped it. The message is one line: what is kept."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: nothing has gone wrong."""
        return [str(self)]


class Terminated(Interrupted):
    """The system asked the process to end (SIGTERM), as a cluster does before it takes a node."""


TO_BE_REQUEUED = getattr(os, "EX_TEMPFAIL", 75)  # sysexits.h: "try again later"


def exit_code(work: Callable[[], None], kept: str, *, several: bool = False) -> int:
    """Do the work of a script and return its exit code; what went wrong is told in one line.

    0: done; 2: bad input; 75: ended by SIGTERM, and the same command does the rest; 130:
    interrupted. In the last two cases `kept` says what is kept. several: whether a launcher may
    start several processes of the script.
    """
    try:
        if not several and os.environ.get("WORLD_SIZE", "1") != "1":
            size = os.environ["WORLD_SIZE"]
            raise BadInput(
                f"WORLD_SIZE = {size!r} (environment): this script works alone; allowed: 1. What "
                "several processes can share is code/logit_diff_mistral.py"
            )
        with _told_of_sigterm():
            work()
    except BadInput as error:
        of_rank = f"rank {os.environ['RANK']}: " if os.environ.get("RANK", "0") != "0" else ""
        print(f"error: {of_rank}{error}", file=sys.stderr)
        return 2
    except Terminated:
        print(f"\nEnded by SIGTERM. {kept}")
        return TO_BE_REQUEUED
    except KeyboardInterrupt:
        print(f"\nInterrupted. {kept}")
        return 130
    return 0


_postponed: list[bool] = []  # within `sigterm_postponed`: whether SIGTERM has come


@contextmanager
def sigterm_postponed() -> Iterator[Callable[[], None]]:
    """Let SIGTERM break nothing off: it is raised as Terminated when what is yielded is called."""

    def look() -> None:
        if _postponed[-1]:
            raise Terminated("SIGTERM")

    _postponed.append(False)
    try:
        yield look
    finally:
        _postponed.pop()


@contextmanager
def _told_of_sigterm() -> Iterator[None]:
    def told(number: int, frame: object) -> None:
        if not _postponed:
            raise Terminated("SIGTERM")
        _postponed[-1] = True

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def without_secrets(text: str) -> str:
    """Shorten whatever looks like a token."""
    return SECRET.sub(r"\1...", text)
