"""End an answer at given stop texts, whatever tokens they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopTexts:
    """Tells when an answer has reached one of several stop texts, and cuts it off there."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self.tokenizer = tokenizer
        self.texts = tuple(text for text in texts if text)
        # A token adds at least one byte of text, and what it adds can depend on the one before it.
        self.reach = 1 + max((len(text.encode()) for text in self.texts), default=0)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these tokens has completed one of the stop texts."""
        if not self.texts:
            return False
        tail = self.tokenizer.decode(tokens[-self.reach :])  # special tokens too: they can be stops
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> str:
        """Return a text up to the first stop text in it."""
        places = [place for end in self.texts if (place := text.find(end)) >= 0]
        return text[: min(places)] if places else text
