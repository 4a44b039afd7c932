"""From chats to token ids: the model's chat template, or Mistral's own way without one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from .pairs import Message, PromptPair, is_raw, prefill_of

MARK = "\ue000{}\ue001"  # from Unicode's private use area: no template writes it


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of the chats, each ending where the assistant's answer begins or goes on."""

    pair: PromptPair
    ids_a: tuple[int, ...]
    ids_b: tuple[int, ...]
    ids_p: tuple[int, ...] | None = None  # of A's paraphrase
    ids_base: tuple[int, ...] | None = None  # of what the difference is added to


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
    """Render and tokenise the chats of every pair.

    Text of the user never becomes a control token, whatever it says. Raises BadInput when a prompt
    and its answer do not fit into `max_positions`, or when the template refuses a chat or puts two
    begin-of-sequence tokens in front.
    """
    by_turns = is_mistral_v1(tokenizer)
    keep_role = not by_turns and accepts_system_role(tokenizer)

    def read(chat: Sequence[Message]) -> list[int]:
        if is_raw(chat):  # as it is: what looks like a control token is one
            return tokenizer(chat[0]["content"])["input_ids"]
        chat = list(chat) if keep_role else fold_system(chat)
        if by_turns:
            return _mistral_v1_ids(tokenizer, chat)
        if not tokenizer.chat_template:
            raise BadInput("the model's tokenizer has no chat template; allowed: a raw text")
        begun = prefill_of(chat)
        ids = _template_ids(tokenizer, chat[:-1] if begun else chat)
        return ids + _text_ids(tokenizer, begun) if begun else ids

    def encode(pair: PromptPair, chat: Sequence[Message], side: str) -> tuple[int, ...]:
        try:
            ids = tuple(read(chat))
        except BadInput as error:
            raise BadInput(f"pair {pair.id!r}, {side}: {error}") from None
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

    def encoded(pair: PromptPair) -> EncodedPair:
        sides = encode(pair, pair.a, "a"), encode(pair, pair.b, "b")
        p = pair.paraphrase and encode(pair, pair.paraphrase, "p")
        base = encode(pair, pair.base or pair.a, "base") if len(pair.sources) > 2 else None
        return EncodedPair(pair, *sides, p, base)

    return [encoded(pair) for pair in pairs]


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
            if message is not chat[-1]:  # else the answer goes on
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
