"""Turn chats into token ids, with the chat template or in Mistral's own format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from .pairs import Message, PromptPair, is_raw, prefill_of

MARK = "\ue000{}\ue001"  # from Unicode's private use area, so no template writes it


@dataclass(frozen=True)
class EncodedPair:
    """A pair's chats as token ids, each ending where generation begins, after any prefill."""

    pair: PromptPair
    ids_a: tuple[int, ...]
    ids_b: tuple[int, ...]
    ids_p: tuple[int, ...] | None = None  # of A's paraphrase
    ids_base: tuple[int, ...] | None = None  # of the context that the difference is added to


def is_mistral_v1(tokenizer: Any) -> bool:
    """Whether chats are written `<s>[INST] text [/INST]answer</s>`, and `[INST]` is no token.

    True for Mistral 7B Instruct v0.1 and v0.2, at every revision of their chat template.
    """
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except Exception:  # a template may raise any exception
        return False
    known = tokenizer.get_vocab()
    return text.replace(" ", "") == "<s>[INST]x[/INST]" and "[INST]" not in known


def accepts_system_role(tokenizer: Any) -> bool:
    """Whether the chat template renders a system message (some refuse it, others drop it)."""
    probe = [{"role": "system", "content": "PROBE-7391"}, {"role": "user", "content": "x"}]
    try:
        return "PROBE-7391" in tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # jinja2's TemplateError, or anything else that a template raises
        return False


def describe_chat(tokenizer: Any) -> dict[str, str]:
    """Describe for the metadata how chats are tokenised and how system messages are treated."""
    folded = "folded into the first user message"
    if is_mistral_v1(tokenizer):
        return {"format": "Mistral v1, turn by turn as mistral-common does", "system_role": folded}
    if accepts_system_role(tokenizer):
        return {"format": "chat template", "system_role": "rendered by the chat template"}
    return {"format": "chat template", "system_role": f"refused by the chat template: {folded}"}


def fold_system(chat: Sequence[Message]) -> list[Message]:
    """Prepend the system text to the first user text, as mistral-common does."""
    if chat[0]["role"] != "system":
        return list(chat)
    system, first, *rest = chat
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def encode_pairs(
    pairs: Sequence[PromptPair], tokenizer: Any, *, max_new_tokens: int, max_positions: int
) -> list[EncodedPair]:
    """Render and tokenise the chats of every pair.

    Text in a chat never becomes a control token, whatever it says; only a raw text may contain
    them. Raises BadInput when a prompt and its answer (`max_new_tokens`) do not fit in
    `max_positions`, when there is no chat template or it refuses a chat, and when the ids start
    with two begin-of-sequence tokens.
    """
    by_turns = is_mistral_v1(tokenizer)
    keep_role = not by_turns and accepts_system_role(tokenizer)

    def read(chat: Sequence[Message]) -> list[int]:
        if is_raw(chat):  # tokenised unchanged: what looks like a control token is one
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
    """Yield the text that each token adds; "" for a token that leaves a character unfinished.

    What a token adds depends on the tokens before it; eight of them are enough.
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
    """Return the ids of plain text, with anything that looks like a control token spelled out."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _mistral_v1_ids(tokenizer: Any, chat: Sequence[Message]) -> list[int]:
    """Encode each turn by itself, as Mistral's library mistral-common does and as in training.

    Revisions of the chat template differ from that, and from each other, in spaces around turns.
    """
    # SentencePiece puts a space in front of every text. Some conversions of the tokenizer do so
    # only if the text has none; with those we add the space ourselves.
    adds_none = _text_ids(tokenizer, " x") == _text_ids(tokenizer, "x")
    space = " " if adds_none else ""
    ids = [tokenizer.bos_token_id]
    for message in chat:
        if message["role"] == "user":
            ids += _text_ids(tokenizer, f"{space}[INST] {message['content']} [/INST]")
        else:
            ids += _text_ids(tokenizer, space + message["content"])
            if message is not chat[-1]:  # the last one is a prefill, which the answer continues
                ids.append(tokenizer.eos_token_id)
    return ids


def _template_ids(tokenizer: Any, chat: Sequence[Message]) -> list[int]:
    """Encode a chat with the template; only what the template itself writes is a control token.

    Control tokens that occur in the text are replaced by marks before rendering and put back as
    plain text afterwards. Raises ValueError where that is not possible.
    """

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
        # The template writes special tokens itself, so adding them here would double the BOS.
        text = rendered({})
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = {control: MARK.format(number) for number, control in enumerate(found)}
    harmless = rendered(dict.fromkeys(found, "x"))
    if in_parts(harmless, {}) != tokenizer(harmless, add_special_tokens=False)["input_ids"]:
        raise ValueError(f"{found[0]!r} in its text is a control token, and cannot be written out")
    return in_parts(rendered(marks), {mark: control for control, mark in marks.items()})
