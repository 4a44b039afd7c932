"""The attribute that a pair declares: what A should have more of than B, or less of."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadInput
from ..logits.vocabulary import ATTRIBUTES

TAKES = {"words": "words separated by |", "language": "an ISO 639-1 code, as es"}


@dataclass(frozen=True)
class Attribute:
    """A measure of a text, and the direction in which A should differ from B.

    name: a key of `ATTRIBUTES`. sign: +1 or -1. argument: the words for `words`, the code for
    `language`, otherwise empty.
    """

    name: str
    sign: int
    argument: str = ""

    def __str__(self) -> str:
        """As it is written in the prompt file."""
        told = f": {self.argument}" if self.argument else ""
        return f"{'+' if self.sign > 0 else '-'}{self.name}{told}"


def parse_attribute(text: str, place: str) -> Attribute | None:
    """Parse an attribute such as `+sentiment`, `-n_words` or `+words: arr|ahoy`; None if empty.

    place: where the text was read, for error messages. Raises BadInput for an unknown sign or name,
    and for an argument that is missing or not expected.
    """
    if not text.strip():
        return None
    name, _, argument = (part.strip() for part in text.strip()[1:].partition(":"))
    allowed = ", ".join(ATTRIBUTES)
    if text.strip()[0] not in "+-" or name not in ATTRIBUTES:
        raise BadInput(
            f"{place}: attribute = {text!r:.60}; allowed: + or - and one of {allowed}, "
            "as +sentiment or +words: arr|ahoy"
        )
    if (name in TAKES) != bool(argument):
        told = f"after a colon, {TAKES[name]}" if name in TAKES else "nothing after the name"
        raise BadInput(f"{place}: attribute = {text!r:.60}; allowed for {name}: {told}")
    return Attribute(name, 1 if text.strip()[0] == "+" else -1, argument)
