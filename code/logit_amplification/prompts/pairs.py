"""Prompt pairs: read them from a file, check them, render them with the model's chat template.

A pair is one chat to amplify (A) and one to hold against it (B). Reading never guesses: a file with
a fault is refused with one line that names the file and the place.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..locations import shipped_file

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": "..."}

COLUMNS = ("id", "category", "a_user", "b_user", "a_system", "b_system", "p_user", "p_system")
FIELDS = (*COLUMNS, "a", "b", "p")
NULL_CATEGORY = "control"  # not "null": readers of the CSV take that word for no value


@dataclass(frozen=True)
class PromptPair:
    """One contrast: chat `a` is amplified, chat `b` is what it is held against."""

    id: str
    category: str
    a: tuple[Message, ...]
    b: tuple[Message, ...]
    paraphrase: tuple[Message, ...] | None = None  # A in other words
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
    def _sides(self) -> list[tuple[str, tuple[Message, ...]]]:
        return list(zip(self.sources, (self.a, self.b), strict=True))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with either chat, and with what it is read with."""
        sources = [] if set(self.sources) == {"model"} else [self.sources]
        chats = json.dumps([self.a, self.b, *sources], ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(chats.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of both chats, each ending where the assistant's answer begins."""

    pair: PromptPair
    ids_a: tuple[int, ...]
    ids_b: tuple[int, ...]


# --------------------------------------------------------------------------------------- reading


def read_pairs(path: str | Path | None = None, controls: Sequence[str] = ()) -> list[PromptPair]:
    """Read the pairs of a .csv, .json or .jsonl file; a null pair is added when it has none.

    The null pair (category `control`) holds the first pair's A against itself: a control that alpha
    must not move. path: None is the built-in file. controls: see `with_controls`. Raises BadInput
    naming the file and the row.
    """
    path = shipped_file("prompt_pairs.csv") if path is None else Path(path)
    pairs: list[PromptPair] = []
    seen: set[str] = set()
    for place, row in _rows(path):
        pair = make_pair(row, f"{path.name}, {place}")
        if pair.id in seen:
            raise BadInput(
                f"{path.name}, {place}: the id {pair.id!r} is used twice; ids are unique"
            )
        seen.add(pair.id)
        pairs.append(pair)
    if not pairs:
        raise BadInput(f"{path.name}: no prompt pairs in it; at least one is needed")
    if not any(pair.control == "null" for pair in pairs):
        if "null-control" in seen:
            raise BadInput(f"{path.name}: the id 'null-control' is kept for the pair with A = B")
        pairs.append(PromptPair("null-control", NULL_CATEGORY, pairs[0].a, pairs[0].a))
    return with_controls(pairs, controls)


def with_controls(pairs: Sequence[PromptPair], controls: Sequence[str]) -> list[PromptPair]:
    """Return the pairs and, behind them, the controls that are derived from them.

    `swapped` amplifies B against A, `shuffled` A against the B of another pair, and `paraphrase` A
    against A in other words, for the pairs that have these. Raises BadInput where there are none.
    """
    made = list(pairs)
    plain = [pair for pair in pairs if not pair.control]
    for control in controls:
        others = DERIVED[control](plain)
        if not others:
            raise BadInput(f"CONTROLS = {control}: no pair of this prompt file allows it")
        for pair, (a, b) in others:
            name, category = f"{pair.id}~{control}", f"{NULL_CATEGORY}: {control}"
            made.append(PromptPair(name, category, a, b, derived=control, origin=pair.id))
    if len({pair.id for pair in made}) < len(made):
        raise BadInput("CONTROLS: an id of the prompt file ends as that of a derived control does")
    return made


Derived = list[tuple[PromptPair, tuple[tuple[Message, ...], tuple[Message, ...]]]]


def _swapped(pairs: Sequence[PromptPair]) -> Derived:
    return [(pair, (pair.b, pair.a)) for pair in pairs]


def _shuffled(pairs: Sequence[PromptPair]) -> Derived:
    """Half the list further on, for neighbours are often of one family; then the next that fits."""
    made: Derived = []
    for place, pair in enumerate(pairs):
        first = place + len(pairs) // 2
        bs = [pairs[(first + step) % len(pairs)].b for step in range(len(pairs))]
        other = next((b for b in bs if b not in (pair.a, pair.b)), None)
        if other is not None:
            made.append((pair, (pair.a, other)))
    return made


def _paraphrase(pairs: Sequence[PromptPair]) -> Derived:
    return [(pair, (pair.a, pair.paraphrase)) for pair in pairs if pair.paraphrase]


DERIVED = {"swapped": _swapped, "shuffled": _shuffled, "paraphrase": _paraphrase}


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a prompt file, where place is worded for an error message."""
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise BadInput(f"PROMPTS = {str(path)!r}; allowed: a .csv, .json or .jsonl file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise BadInput(f"PROMPTS = {str(path)!r}: {error.strerror or error}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadInput(f"{path.name}, line {line}: a NUL byte; a text file has none")
    yield from readers[path.suffix.lower()](path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row:
                raise BadInput(f"{path.name}, {place}: more cells than the header has columns")
            yield place, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        raise BadInput(f"{path.name}, line {reader.reader.line_num}: {error}") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{path.name}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise BadInput(f"{path.name}: a list of pairs is expected, not {type(rows).__name__}")
    yield from ((f"item {number}", row) for number, row in enumerate(rows, start=1))


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadInput(f"{path.name}, line {number}: not JSON: {error}") from None


# -------------------------------------------------------------------------------------- checking


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
    pair = PromptPair(name, category, *_chats(row, name, place))
    if pair.paraphrase == pair.a:
        raise BadInput(f"{place}: the paraphrase of the pair {name!r:.60} is its chat A, unchanged")
    return pair


def _chats(row: Mapping[str, Any], name: str, place: str) -> Iterator[tuple[Message, ...] | None]:
    """Yield A, B and, if there is one, the paraphrase of A."""
    if any(side in row for side in "abp"):
        if extra := [column for column in COLUMNS[2:] if row.get(column)]:
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


# -------------------------------------------------------------------------- rendering, tokenising

MARK = "\ue000{}\ue001"  # from Unicode's private use area: no template writes it


def is_mistral_v1(tokenizer: Any) -> bool:
    """Whether a chat is written `<s>[INST] text [/INST]answer</s>`, without tokens of its own.

    So are Mistral 7B Instruct v0.1 and v0.2, at every revision of their chat template.
    """
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except Exception:  # a template may raise what it likes
        return False
    known = tokenizer.get_vocab()
    return text.replace(" ", "") == "<s>[INST]x[/INST]" and "[INST]" not in known


def accepts_system_role(tokenizer: Any) -> bool:
    """Whether the chat template renders a system message (some refuse it, some drop it)."""
    probe = [{"role": "system", "content": "PROBE-7391"}, {"role": "user", "content": "x"}]
    try:
        return "PROBE-7391" in tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # templates refuse with jinja2's TemplateError or whatever they raise
        return False


def describe_chat(tokenizer: Any) -> dict[str, str]:
    """Say for the metadata how chats become tokens, and what becomes of a system message."""
    folded = "folded into the first user message"
    if is_mistral_v1(tokenizer):
        return {"format": "Mistral v1, turn by turn as mistral-common does", "system_role": folded}
    if accepts_system_role(tokenizer):
        return {"format": "chat template", "system_role": "rendered by the chat template"}
    return {"format": "chat template", "system_role": f"refused by the chat template: {folded}"}


def fold_system(chat: Sequence[Message]) -> list[Message]:
    """Put the system text in front of the first user text, as mistral-common does."""
    if chat[0]["role"] != "system":
        return list(chat)
    system, first, *rest = chat
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def encode_pairs(
    pairs: Sequence[PromptPair], tokenizer: Any, *, max_new_tokens: int, max_positions: int
) -> list[EncodedPair]:
    """Render and tokenise both chats of every pair.

    Text of the user never becomes a control token, whatever it says. Raises BadInput when a prompt
    and its answer do not fit into `max_positions`, or when the template refuses a chat or puts two
    begin-of-sequence tokens in front.
    """
    by_turns = is_mistral_v1(tokenizer)
    keep_role = not by_turns and accepts_system_role(tokenizer)

    def encode(pair: PromptPair, chat: Sequence[Message], side: str) -> tuple[int, ...]:
        chat = list(chat) if keep_role else fold_system(chat)
        try:
            ids = tuple((_mistral_v1_ids if by_turns else _template_ids)(tokenizer, chat))
        except Exception as error:
            raise BadInput(
                f"pair {pair.id!r}, {side}: the chat template refuses it: {error}"
            ) from None
        if len(ids) + max_new_tokens > max_positions:
            raise BadInput(
                f"pair {pair.id!r}, {side}: {len(ids)} prompt tokens and max_new_tokens = "
                f"{max_new_tokens} exceed the model's context of {max_positions} tokens"
            )
        if ids[:2] == (tokenizer.bos_token_id,) * 2:
            raise BadInput(f"pair {pair.id!r}, {side}: two begin-of-sequence tokens in front")
        return ids

    return [
        EncodedPair(pair, encode(pair, pair.a, "a"), encode(pair, pair.b, "b")) for pair in pairs
    ]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """Yield the text that each token adds; "" for one that is a part of a character only.

    What a token adds depends on those in front of it; eight of them are enough.
    """
    shown = 0  # the first token whose text has not been shown
    for end in range(1, len(ids) + 1):
        start = max(0, shown - 8)
        before, now = (tokenizer.decode(ids[start:to]) for to in (shown, end))
        if now.endswith("\ufffd") and end < len(ids):
            yield ""
        else:
            yield now[len(before) :] if now.startswith(before) else tokenizer.decode(ids[shown:end])
            shown = end


def _text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of plain text: what looks like a control token is text too."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _mistral_v1_ids(tokenizer: Any, chat: Sequence[Message]) -> list[int]:
    """Encode each turn by itself, as Mistral's own library does and the model was trained with.

    Revisions of the chat template differ from that and from each other in spaces around turns.
    """
    # SentencePiece puts a space in front of every piece of text. Some conversions of the tokenizer
    # do so only where there is none: these get it from us.
    adds_none = _text_ids(tokenizer, " x") == _text_ids(tokenizer, "x")
    space = " " if adds_none else ""
    ids = [tokenizer.bos_token_id]
    for message in chat:
        if message["role"] == "user":
            ids += _text_ids(tokenizer, f"{space}[INST] {message['content']} [/INST]")
        else:
            ids += _text_ids(tokenizer, space + message["content"])
            ids.append(tokenizer.eos_token_id)
    return ids


def _template_ids(tokenizer: Any, chat: Sequence[Message]) -> list[int]:
    """Encode what the chat template writes; control tokens are those that the template wrote."""

    def rendered(replacement: Mapping[str, str]) -> str:
        replaced = []
        for message in chat:
            text = message["content"]
            for control in found:
                text = text.replace(control, replacement[control])
            replaced.append({**message, "content": text})
        return tokenizer.apply_chat_template(replaced, tokenize=False, add_generation_prompt=True)

    def in_parts(text: str, inside: Mapping[str, str]) -> list[int]:
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, controls)) + ")", text):
            if part in controls:
                ids.append(tokenizer.convert_tokens_to_ids(part))
            elif part:
                for mark, control in inside.items():
                    part = part.replace(mark, control)
                ids += _text_ids(tokenizer, part)
        return ids

    added = tokenizer.added_tokens_decoder.values()
    controls = sorted((token.content for token in added if token.special), key=len, reverse=True)
    found = [c for c in controls if any(c in message["content"] for message in chat)]
    if not found:
        # The template has written its own special tokens: adding more would double the BOS.
        text = rendered({})
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = {control: MARK.format(number) for number, control in enumerate(found)}
    harmless = rendered(dict.fromkeys(found, "x"))
    if in_parts(harmless, {}) != tokenizer(harmless, add_special_tokens=False)["input_ids"]:
        raise ValueError(f"{found[0]!r} in its text is a control token, and cannot be written out")
    return in_parts(rendered(marks), {mark: control for control, mark in marks.items()})
