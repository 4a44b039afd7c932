"""Texts that end an answer, whatever tokens they are written with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopTexts:
    """Says whether an answer has come to one of some texts, and cuts it off there."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self.tokenizer = tokenizer
        self.texts = tuple(text for text in texts if text)
        # A token is a byte of text at least, and what it adds can depend on the one before it.
        self.reach = 1 + max((len(text.encode()) for text in self.texts), default=0)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these tokens has completed one of the texts."""
        if not self.texts:
            return False
        tail = self.tokenizer.decode(tokens[-self.reach :])  # with special tokens: one may be it
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> str:
        """Return a text up to the first of those that end it."""
        places = [place for end in self.texts if (place := text.find(end)) >= 0]
        return text[: min(places)] if places else text
