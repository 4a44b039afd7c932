"""A prompt pair: the chat to amplify (A), the chat to contrast it with (B), and validation."""

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
LISTS = ("a", "b", "p", "base")  # A, B, A's paraphrase, and the context that A - B is added to
CHATS = (
    *("a_user", "b_user", "a_system", "b_system", "p_user", "p_system"),
    *("a_prefill", "b_prefill", "p_prefill", "a_raw", "b_raw", "p_raw"),
    *(f"base_{role}" for role in ROLES),
)
COLUMNS = ("id", "category", *CHATS, "family", "subset", "attribute")
FIELDS = (*COLUMNS, *LISTS)
ONE_MODEL = ("model", "model")  # names of the weights that A and B are read with


@dataclass(frozen=True)
class PromptPair:
    """One contrast: chat `a` is amplified, and chat `b` is what it is compared with."""

    id: str
    category: str
    a: tuple[Message, ...]
    b: tuple[Message, ...]
    paraphrase: tuple[Message, ...] | None = None  # A in other words
    family: str = ""  # pairs that share a text, the unit of all intervals; "": the pair alone
    attribute: Attribute | None = None  # what A should have more of than B, or less
    derived: str = ""  # the control that `with_controls` made; "" if none
    origin: str = ""  # id of the pair it was derived from, whose random numbers it shares
    sources: tuple[str, ...] = ONE_MODEL  # names of the weights of A, B and the base
    base: tuple[Message, ...] | None = None  # read with the base's weights; None: A's chat

    @property
    def control(self) -> str:
        """The name of the control that this pair is, or "" if it is none.

        In a `null` pair A and B are the same chat, read with the same weights, so alpha has no
        effect.
        """
        return self.derived or ("null" if self._sides[0] == self._sides[1] else "")

    @property
    def unit(self) -> str:
        """The unit of resampling: the family, or the pair's own id if it has none."""
        return self.family or self.id

    @property
    def _sides(self) -> list[tuple[str, tuple[Message, ...]]]:
        return list(zip(self.sources[:2], (self.a, self.b), strict=True))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over the chats and the weights they are read with.

        The paraphrase counts as one of the chats, because every answer is scored under it.
        """
        more = [] if set(self.sources) == {"model"} else [self.sources]
        more += [{"p": self.paraphrase}] if self.paraphrase else []
        more += [{"base": self.base}] if self.base else []
        chats = json.dumps([self.a, self.b, *more], ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(chats.encode()).hexdigest()[:16]


def make_pair(row: Any, place: str, sources: tuple[str, ...] = ONE_MODEL) -> PromptPair:
    """Build a pair from a row of columns, or from a row with message lists under `a` and `b`.

    place: where the row was read, for error messages. sources: the names of the weights that A, B
    and the base are read with. If B has its own weights, its chat defaults to A's. Raises BadInput
    for a row that is not valid.
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
        raise BadInput(f"{place}: a chat for the base, but no MODEL_BASE to read it")
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
    """Return the chats of A, B, A's paraphrase and the base; the last two may be None."""
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
    # B does not inherit A's system text, unless B differs from A in its weights alone.
    b = a if own_weights and not any(given["b"].values()) else _filled(given["b"], a, "system")
    chats = [a, b] + [
        _filled(given[side], a) if any(given[side].values()) else None for side in ("p", "base")
    ]
    return tuple(chat and _chat(chat, place) for chat in chats)


def _filled(given: dict[str, str], a: dict[str, str], *but: str) -> dict[str, str]:
    """Return a side's texts, with those of A where it has none, except for the roles in `but`.

    A side has a user text or a raw text, not both. With a raw text nothing of A is used.
    """
    filled = {role: text or ("" if role in but else a[role]) for role, text in given.items()}
    for role, other in (("user", "raw"), ("raw", "user")):
        if given[role] and not given[other]:
            filled[other] = ""
    if given["raw"]:
        filled |= {"system": given["system"], "prefill": given["prefill"]}
    return filled


def _chat(texts: dict[str, str], place: str) -> tuple[Message, ...]:
    """Return the messages of a side; a raw text is a single message without any others."""
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
    """Whether a chat is a raw text, which goes to the model without a chat template."""
    return chat[0]["role"] == "raw"


def prefill_of(chat: Sequence[Message]) -> str:
    """Return the beginning of the answer that a chat prescribes, or "" if there is none."""
    return chat[-1]["content"] if chat[-1]["role"] == "assistant" else ""


def _checked_chat(messages: Any, place: str) -> tuple[Message, ...]:
    """Return the messages of a valid chat. Raises BadInput for any other.

    Valid is at most one system text, which comes first, and then user and assistant texts in
    alternation. The last may be an assistant text, with which the answer begins. A raw text must be
    the only message.
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
    """Raise BadInput for half of a surrogate pair, which is valid in JSON but not in UTF-8."""
    if found := re.search("[\ud800-\udfff]", text):
        raise BadInput(
            f"{place} has a lone surrogate, U+{ord(found[0]):04X}, which is not valid text"
        )
