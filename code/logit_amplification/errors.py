"""What can go wrong in a way that a user can mend: told in one line, without a traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

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


def exit_code(work: Callable[[], None], kept: str) -> int:
    """Do the work of a script and return its exit code; what went wrong is told in one line.

    0: done; 2: bad input; 130: interrupted, and `kept` says what is kept.
    """
    try:
        work()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. {kept}")
        return 130
    return 0


def without_secrets(text: str) -> str:
    """Shorten whatever looks like a token."""
    return SECRET.sub(r"\1...", text)
