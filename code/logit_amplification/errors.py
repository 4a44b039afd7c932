"""Errors that a user can fix, reported in one line without a traceback, and exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Matches access tokens of Hugging Face and of API providers; messages show only their prefix.
SECRET = re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{8,}")


class BadInput(ValueError):
    """A user's input cannot be used.

    The message is one line: where the input is, what it is, and what is allowed. Line breaks are
    replaced by spaces, and access tokens are shortened (`without_secrets`).
    """

    def __init__(self, message: str):
        super().__init__(without_secrets(" ".join(message.split())))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback: the input is at fault, not the code."""
        return [f"error: {self}"]


class Interrupted(KeyboardInterrupt):
    """The user stopped the work. The message is one line that says what is kept."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback: nothing has gone wrong."""
        return [str(self)]


class Terminated(Interrupted):
    """SIGTERM: the system asked the process to end, as a cluster does before it takes a node."""


TO_BE_REQUEUED = getattr(os, "EX_TEMPFAIL", 75)  # sysexits.h: "try again later"


def exit_code(work: Callable[[], None], kept: str, *, several: bool = False) -> int:
    """Run `work`, a script's main function, and return the exit code; print errors in one line.

    0: done. 2: bad input. 75: ended by SIGTERM; the same command continues the work. 130:
    interrupted. In the last two cases `kept` is printed, which says what is kept. All other
    exceptions propagate. several: whether a launcher may start several processes of the script; if
    not, a WORLD_SIZE other than 1 is bad input.
    """
    try:
        if not several and os.environ.get("WORLD_SIZE", "1") != "1":
            size = os.environ["WORLD_SIZE"]
            raise BadInput(
                f"WORLD_SIZE = {size!r} (environment): this script runs as one process; allowed: "
                "1. Several processes can share code/logit_diff_mistral.py"
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


def not_installed(error: ModuleNotFoundError) -> str:
    """Return the line for a script that was started with a Python that lacks the packages."""
    return f"error: this Python has no {error.name}; run make demo, then use .venv/bin/python"


_postponed: list[bool] = []  # one per active `sigterm_postponed`: whether SIGTERM has arrived


@contextmanager
def sigterm_postponed() -> Iterator[Callable[[], None]]:
    """Defer SIGTERM: yield a function that raises Terminated if the signal has arrived.

    Within this context SIGTERM itself interrupts nothing. A signal that arrives after the last call
    of the yielded function is dropped.
    """

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
        yield  # signal handlers can be set in the main thread only
        return
    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def without_secrets(text: str) -> str:
    """Shorten everything in `text` that looks like an access token to its prefix."""
    return SECRET.sub(r"\1...", text)
