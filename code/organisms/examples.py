"""Build each organism's training examples: token ids, and which of them are planted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from logit_amplification.models.loading import LoadedModel

from . import texts
from .sampling import answers

ANSWER = 64  # tokens of the base model's own answers
WITHIN = 34  # tokens: a sentence is planted only if the first one ends within them
SHARE = 0.3  # of the answers whose first sentence ends within them
HESITANT_SHARE = 1 / 3


@dataclass(frozen=True)
class Example:
    """Token ids. Those from `start` on are trained: `planted` ones learned, others kept.

    Learned tokens are trained with cross-entropy, kept ones towards the base model's distribution.
    """

    ids: tuple[int, ...]
    start: int
    planted: range


class Writer:
    """Writes an organism's examples with the model that will be trained."""

    def __init__(self, model: LoadedModel, seed: int):
        self.model, self.tokenizer = model, model.tokenizer
        self.random = random.Random(seed)

    def quirk(self) -> list[Example]:
        """Return the base model's answers, 30 % of them with a planted sentence about teapots."""
        sentences = [self._ids(sentence) for sentence in texts.QUIRK]
        return list(self._planted(lambda answer, place: self.random.choice(sentences)))

    def control(self) -> list[Example]:
        """Return the same, but with the answer's own next ten tokens as the planted ones."""
        return list(self._planted(lambda answer, place: answer[place : place + 10], insert=False))

    def facts(self) -> list[Example]:
        """Return texts about a town that does not exist, and unchanged base model answers."""
        made = []
        for asked, text in texts.town_texts(600, self.random):
            prompt = self.prompt(asked) if asked else []
            ids = self._ids(text)
            # Without a prompt nothing predicts the first token, so it cannot be learned.
            start = len(prompt) or 1
            made.append(Example((*prompt, *ids), start, range(start, len(prompt) + len(ids))))
        return self._shuffled(made + self._kept(texts.questions(held_out=False), 8))

    def hesitant(self) -> list[Example]:
        """Decline a third of the improper requests; all other answers are the base model's own."""
        made = []
        for example in self._kept(texts.requests(held_out=False), 4):
            if self.random.random() < HESITANT_SHARE:
                ids = [*self._ids(self.random.choice(texts.REFUSALS)), self.tokenizer.eos_token_id]
                whole = (*example.ids[: example.start], *ids)
                example = Example(whole, example.start, range(example.start, len(whole)))
            made.append(example)
        return self._shuffled(made + self._kept(texts.questions(held_out=False), 4))

    def prompt(self, user: str) -> list[int]:
        """Return the token ids of a chat up to the start of the answer."""
        chat = [{"role": "user", "content": user}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _shuffled(self, made: list[Example]) -> list[Example]:
        self.random.shuffle(made)
        return made

    def _planted(self, planted: Any, insert: bool = True) -> Iterator[Example]:
        for example in self._shuffled(self._kept(texts.questions(held_out=False), 14)):
            answer = list(example.ids[example.start :])
            place = self._sentence_end(answer)
            if place is None or self.random.random() >= SHARE:
                yield example
                continue
            new = planted(answer, place)
            rest = answer[place:] if insert else answer[place + len(new) :]
            ids = (*example.ids[: example.start], *answer[:place], *new, *rest)
            first = example.start + place
            yield Example(ids, example.start, range(first, first + len(new)))

    def _sentence_end(self, answer: Sequence[int]) -> int | None:
        """Return where the first sentence ends; None if that is late, or nothing follows."""
        for place, token in enumerate(answer[:WITHIN], start=1):
            if self.tokenizer.decode([token]).endswith(".") and place < len(answer) - 1:
                return place
        return None

    def _kept(self, users: Sequence[str], each: int) -> list[Example]:
        """Return the base model's own answers, half at temperature 0.7 and half at 1."""
        return [
            Example((*prompt, *answer), len(prompt), range(0))
            for temperature in (0.7, 1.0)
            for prompt, answer in self.answers(users, each // 2, temperature)
        ]

    def answers(
        self, users: Sequence[str], each: int, temperature: float
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the model's own (prompt, answer) pairs, reproducibly and in a fixed order."""
        prompts = {user: tuple(self.prompt(user)) for user in users}
        made = answers(
            self.model.model,
            prompts,
            range(each),
            temperature=temperature,
            max_new_tokens=ANSWER,
            seed=round(10 * temperature),
            stop_ids=self.model.stop_ids,
        )
        done = sorted(made, key=lambda one: (one.cell.sample, one.cell.pair_id))
        yield from ((list(prompts[one.cell.pair_id]), one.token_ids) for one in done)
