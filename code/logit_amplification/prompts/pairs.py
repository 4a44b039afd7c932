"""A prompt pair: a chat to amplify (A), one to hold against it (B), and what makes it valid."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from .attribute import Attribute, parse_attribute

Message = dict[str, str]  # {"role": "system" | "user" | "assistant" | "raw", "content": "..."}

ROLES = ("user", "system", "prefill", "raw")
LISTS = ("a", "b", "p", "base")  # A, B, A's paraphrase, and what the difference is added to
CHATS = (
    *("a_user", "b_user", "a_system", "b_system", "p_user", "p_system"),
    *("a_prefill", "b_prefill", "p_prefill", "a_raw", "b_raw", "p_raw"),
    *(f"base_{role}" for role in ROLES),
)
COLUMNS = ("id", "category", *CHATS, "family", "subset", "attribute")
FIELDS = (*COLUMNS, *LISTS)
ONE_MODEL = ("model", "model")  # the names of the weights that A and B are read with


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
    sources: tuple[str, ...] = ONE_MODEL  # the weights that A, B and the base are read with
    base: tuple[Message, ...] | None = None  # what is read with the base's weights, if not A's chat

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
        return list(zip(self.sources[:2], (self.a, self.b), strict=True))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with a chat, and with what it is read with.

        The paraphrase is one of the chats: every answer is scored under it.
        """
        more = [] if set(self.sources) == {"model"} else [self.sources]
        more += [{"p": self.paraphrase}] if self.paraphrase else []
        more += [{"base": self.base}] if self.base else []
        chats = json.dumps([self.a, self.b, *more], ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(chats.encode()).hexdigest()[:16]


def make_pair(row: Any, place: str, sources: tuple[str, ...] = ONE_MODEL) -> PromptPair:
    """Build one pair out of a row of columns, or out of ready message lists under `a` and `b`.

    sources: the weights that A, B and the base are read with. Where B has weights of its own, its
    chat is A's unless the row gives one.
    """
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
    a, b, paraphrase, base = _chats(row, name, place, sources)
    if base and len(sources) < 3:
        raise BadInput(f"{place}: a chat for the base, and no MODEL_BASE that reads it")
    pair = PromptPair(
        *(name, category, a, b, paraphrase),
        family=family,
        attribute=declared,
        sources=sources,
        base=base,
    )
    if pair.paraphrase == pair.a:
        raise BadInput(f"{place}: the paraphrase of the pair {name!r:.60} is its chat A, unchanged")
    return pair


def _chats(
    row: Mapping[str, Any], name: str, place: str, sources: tuple[str, ...]
) -> tuple[tuple[Message, ...] | None, ...]:
    """Return A, B, the paraphrase of A and the base's chat; the last two may be None."""
    if any(side in row for side in LISTS):
        if extra := [column for column in CHATS if row.get(column)]:
            raise BadInput(f"{place}: give either message lists a and b or {extra[0]}, not both")
        a = _checked_chat(row.get("a"), f"{place}, a")
        rest = (
            _checked_chat(row[side], f"{place}, {side}") if side in row else None
            for side in ("b", "p", "base")
        )
        b, paraphrase, base = rest
        return a, b or a, paraphrase, base
    given = {side: {role: row.get(f"{side}_{role}") or "" for role in ROLES} for side in LISTS}
    a = given["a"]
    if not (a["user"].strip() or a["raw"].strip()):
        raise BadInput(f"{place}: a_user is empty; the pair {name!r:.60} needs a user text")
    own_weights = sources[1] != sources[0]
    # B has no system text but its own, unless it is told apart by its weights alone.
    b = a if own_weights and not any(given["b"].values()) else _filled(given["b"], a, "system")
    chats = [a, b] + [
        _filled(given[side], a) if any(given[side].values()) else None for side in ("p", "base")
    ]
    return tuple(chat and _chat(chat, place) for chat in chats)


def _filled(given: dict[str, str], a: dict[str, str], *but: str) -> dict[str, str]:
    """A side's texts, those of A where it has none; the user's text or a raw one, not both."""
    filled = {role: text or ("" if role in but else a[role]) for role, text in given.items()}
    for role, other in (("user", "raw"), ("raw", "user")):
        if given[role] and not given[other]:
            filled[other] = ""
    if given["raw"]:
        filled |= {"system": given["system"], "prefill": given["prefill"]}
    return filled


def _chat(texts: dict[str, str], place: str) -> tuple[Message, ...]:
    """The messages of a side; a raw text is one message, and stands alone."""
    if texts["raw"]:
        if other := [role for role in ROLES[:3] if texts[role]]:
            raise BadInput(f"{place}: a raw text stands alone; allowed: no {other[0]} beside it")
        return ({"role": "raw", "content": texts["raw"]},)
    messages = [{"role": "system", "content": texts["system"]}] if texts["system"] else []
    messages.append({"role": "user", "content": texts["user"]})
    if texts["prefill"]:
        messages.append({"role": "assistant", "content": texts["prefill"]})
    return tuple(messages)


def is_raw(chat: Sequence[Message]) -> bool:
    """Whether a chat is a text that goes to the model as it is, without a chat template."""
    return chat[0]["role"] == "raw"


def prefill_of(chat: Sequence[Message]) -> str:
    """Return the beginning of the answer that a chat gives, "" if it gives none."""
    return chat[-1]["content"] if chat[-1]["role"] == "assistant" else ""


def _checked_chat(messages: Any, place: str) -> tuple[Message, ...]:
    """Hold a chat to: at most one system text, first; then user and assistant in turn.

    It may end with the beginning of an answer; a raw text stands alone.
    """
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
    if roles != ["raw"] and (
        not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)]
    ):
        raise BadInput(
            f"{place}: roles are {roles!r:.80}; allowed: system at most once and first, then user "
            "and assistant in turn (a last assistant text is what the answer begins with), or one "
            "raw text"
        )
    return tuple(dict(message) for message in messages)


def _refuse_surrogates(text: str, place: str) -> None:
    """JSON can write half a character, which no file or tokenizer takes."""
    if found := re.search("[\ud800-\udfff]", text):
        raise BadInput(f"{place} has a lone surrogate, U+{ord(found[0]):04X}: no text has that")
