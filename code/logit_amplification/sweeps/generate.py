"""Generate a few answers for two texts: the sweep's engine without files or settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.batch.batched import BatchedEngine, rows_of_a_slot
from ..engine.batch.slots import slot_bytes
from ..engine.interface import Cell, Contrast, Generation, Request
from ..errors import BadInput
from ..logits.amplification import Rule, amplify
from ..machine import devices, sizes
from ..models.loading import LoadedModel
from ..prompts.chat import EncodedPair, encode_pairs
from ..prompts.pairs import Message, make_pair
from ..settings import ArgumentsAlone, Settings, load_settings
from .recording import make_record


@dataclass(frozen=True)
class Answer:
    """One generation: its text, its tokens, and the means of its measures over the tokens."""

    alpha: float
    sample: int
    text: str
    token_ids: list[int]
    finish_reason: str  # "eos", "length", or "error" when logits became NaN or infinite
    measures: dict[str, float | int | None]


def generate(
    model: LoadedModel,
    a: str | Sequence[Message],
    b: str | Sequence[Message] | None = None,
    alphas: Sequence[float] | float = (0.0, 1.0),
    samples: int = 1,
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 0,
    seed: int = 0,
    arm: str = "full",
    rule: Rule = amplify,
    pair_id: str = "generate",
) -> list[Answer]:
    """Return an answer to A, amplified against B, for every alpha and sample, in that order.

    a, b: a user's text, or messages with role and content. Without b, B reads the same chat; that
    needs a model with an adapter or a second checkpoint. samples: draws per alpha; a sample has the
    same random numbers at every alpha. temperature 0 is greedy, top_p 1 and top_k 0 are off. arm: a
    variant of the rule, as in `Settings`. pair_id: the random numbers are those of the pair with
    this id in a sweep. Nothing is written. Raises BadInput.
    """
    settings = load_settings(
        ArgumentsAlone,
        alphas=alphas if isinstance(alphas, str | int | float) else list(alphas),
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        arms=arm,
    )
    if len(settings.arms) > 1:
        raise BadInput(f"ARMS = {arm!r}; allowed: one")
    names = tuple(model.sources)
    sources = names if "model_b" in names else ("model", *names)
    if b is None and "model_b" not in names:
        raise BadInput("b is missing; allowed: without one, a model with ADAPTER or MODEL_B")
    chats = {"a": _messages(a), "b": _messages(a if b is None else b)}
    pair = make_pair({"id": pair_id, "category": "generate", **chats}, "generate", sources)
    (encoded,) = encode_pairs(
        [pair],
        model.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_positions=model.max_positions,
    )
    asked = [alphas] if isinstance(alphas, int | float) else alphas
    cells = [
        Cell(pair.id, float(alpha), sample, settings.arms[0])
        for alpha in dict.fromkeys(asked)
        for sample in range(settings.samples)
    ]
    made = {one.cell: one for one in _made(model, cells, encoded, settings, rule)}
    return [_answer(made[cell], encoded, model) for cell in cells]


def _messages(chat: str | Sequence[Message]) -> Any:
    if isinstance(chat, str):
        return [{"role": "user", "content": chat}]
    return list(chat) if isinstance(chat, Sequence) else chat


def _made(
    model: LoadedModel,
    cells: Sequence[Cell],
    encoded: EncodedPair,
    settings: Settings,
    rule: Rule,
) -> list[Generation]:
    """Have the engine make the cells, with as many slots as fit in memory."""
    contrast = Contrast.of(encoded)
    length = max(len(stream.ids) for stream in contrast.streams) + settings.max_new_tokens
    each = sum(slot_bytes(rows_of_a_slot(model.sources, [contrast]), length).values())
    fitting = sizes.choose_slots(model.device.type, each, devices.free_memory(model.device))
    engine = BatchedEngine(model.sources, max(1, min(len(cells), fitting)))
    request = Request.of(settings, model.stop_ids, rule=rule)
    return list(engine.generate(cells, {encoded.pair.id: contrast}, request))


def _answer(generation: Generation, encoded: EncodedPair, model: LoadedModel) -> Answer:
    record = make_record(generation, encoded, model)
    names = ("alpha", "sample", "text", "token_ids", "finish_reason", "measures")
    return Answer(**{name: record[name] for name in names})
