"""A prompt pair: a chat to amplify (A), one to hold against it (B), and what makes it valid."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from .attribute import Attribute, parse_attribute

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": "..."}

CHATS = ("a_user", "b_user", "a_system", "b_system", "p_user", "p_system")
COLUMNS = ("id", "category", *CHATS, "family", "subset", "attribute")
FIELDS = (*COLUMNS, "a", "b", "p")


@dataclass(frozen=True)
class PromptPair:
    """One contrast: chat `a` is amplified, chat `b` is what it is held against."""

    id: str
    category: str
    a: tuple[Message, ...]
    b: tuple[Message, ...]
    paraphrase: tuple[Message, ...] | None = None  # A in other words
    family: str = ""  # what it shares a text with: the unit of all intervals; "" is the pair alone
    attribute: Attribute | None = None  # what A should have more of than B, declared beforehand
    derived: str = ""  # how `with_controls` made it
    origin: str = ""  # the pair that it was made from, whose random numbers it shares
    sources: tuple[str, str] = ("model", "model")  # the weights that each chat is read with

    @property
    def control(self) -> str:
        """Which control it is, or "" if its effect is what is asked for.

        In a `null` pair A and B are the same chat, read with the same weights, so that alpha can
        change nothing.
        """
        return self.derived or ("null" if self._sides[0] == self._sides[1] else "")

    @property
    def unit(self) -> str:
        """What is resampled: the family, or the pair itself."""
        return self.family or self.id

    @property
    def _sides(self) -> list[tuple[str, tuple[Message, ...]]]:
        return list(zip(self.sources, (self.a, self.b), strict=True))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with a chat, and with what it is read with.

        The paraphrase is one of the chats: every answer is scored under it.
        """
        more = [] if set(self.sources) == {"model"} else [self.sources]
        more += [{"p": self.paraphrase}] if self.paraphrase else []
        chats = json.dumps([self.a, self.b, *more], ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(chats.encode()).hexdigest()[:16]


def make_pair(row: Any, place: str) -> PromptPair:
    """Build one pair out of a row of columns, or out of ready message lists under `a` and `b`."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: a pair is an object with {', '.join(FIELDS)}, not {row!r:.40}")
    if unknown := [str(name) for name in row if name not in FIELDS]:
        raise BadInput(f"{place}: unknown column {unknown[0]!r:.60}; allowed: {', '.join(FIELDS)}")
    for name in COLUMNS:
        if not isinstance(row.get(name, ""), str | None):
            raise BadInput(f"{place}: {name} must be text, not {row[name]!r:.40}")
        _refuse_surrogates(row.get(name) or "", f"{place}: {name}")
    name = (row.get("id") or "").strip()
    category = (row.get("category") or "").strip()
    if not name or not category:
        raise BadInput(f"{place}: {'category' if name else 'id'} is empty; every pair needs one")
    declared = parse_attribute(row.get("attribute") or "", place)
    family = (row.get("family") or "").strip()
    pair = PromptPair(name, category, *_chats(row, name, place), family=family, attribute=declared)
    if pair.paraphrase == pair.a:
        raise BadInput(f"{place}: the paraphrase of the pair {name!r:.60} is its chat A, unchanged")
    return pair


def _chats(row: Mapping[str, Any], name: str, place: str) -> Iterator[tuple[Message, ...] | None]:
    """Yield A, B and, if there is one, the paraphrase of A."""
    if any(side in row for side in "abp"):
        if extra := [column for column in CHATS if row.get(column)]:
            raise BadInput(f"{place}: give either message lists a and b or {extra[0]}, not both")
        a = _checked_chat(row.get("a"), f"{place}, a")
        yield a
        yield _checked_chat(row["b"], f"{place}, b") if "b" in row else a
        yield _checked_chat(row["p"], f"{place}, p") if "p" in row else None
        return
    if not (row.get("a_user") or "").strip():
        raise BadInput(f"{place}: a_user is empty; the pair {name!r:.60} needs a user text")
    yield _chat(row.get("a_system"), row["a_user"])
    yield _chat(row.get("b_system"), row.get("b_user") or row["a_user"])
    given = row.get("p_user"), row.get("p_system")
    system, user = given[1] or row.get("a_system"), given[0] or row["a_user"]
    yield _chat(system, user) if any(given) else None


def _chat(system: str | None, user: str) -> tuple[Message, ...]:
    messages = [{"role": "system", "content": system}] if system else []
    return (*messages, {"role": "user", "content": user})


def _checked_chat(messages: Any, place: str) -> tuple[Message, ...]:
    """Hold a chat to: at most one system text, first; then user and assistant in turn."""
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{place}: a list of messages is expected, not {messages!r:.40}")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadInput(f"{place}: a message has role and content, not {message!r:.60}")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise BadInput(f"{place}: a message's content must be text that is not empty")
        _refuse_surrogates(message["content"], f"{place}: a message")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 == 0 or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise BadInput(
            f"{place}: roles are {roles!r:.80}; allowed: system at most once and first, "
            "then user and assistant in turn, ending with user"
        )
    return tuple(dict(message) for message in messages)


def _refuse_surrogates(text: str, place: str) -> None:
    """JSON can write half a character, which no file or tokenizer takes."""
    if found := re.search("[\ud800-\udfff]", text):
        raise BadInput(f"{place} has a lone surrogate, U+{ord(found[0]):04X}: no text has that")
