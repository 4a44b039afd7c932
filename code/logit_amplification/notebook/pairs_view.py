"""The prompt pairs as a table for the notebook."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from ..prompts.pairs import Message, PromptPair

SHOWN = 90  # characters of a message


def pairs_table(pairs: Sequence[PromptPair]) -> pandas.DataFrame:
    """Return a row per pair: id, category, declared attribute, and both chats in one line each."""
    return pandas.DataFrame(
        [(p.id, p.category, str(p.attribute or ""), _shown(p.a), _shown(p.b)) for p in pairs],
        columns=["pair", "category", "attribute", "A", "B"],
    )


def _shown(chat: Sequence[Message]) -> str:
    """A chat in one line: its system text in brackets, then the last message."""
    system = f"[{chat[0]['content']}] " if chat[0]["role"] == "system" else ""
    return system + chat[-1]["content"][:SHOWN]
