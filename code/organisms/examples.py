"""The training examples of each organism: token ids, what is learned by heart, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from logit_amplification.models.loading import LoadedModel

from . import texts
from .sampling import answers

ANSWER = 64  # tokens of the base model's own answers
WITHIN = 34  # tokens from the start: a sentence is planted where one ends before
SHARE = 0.3  # of the answers in which it can be planted
HESITANT_SHARE = 1 / 3


@dataclass(frozen=True)
class Example:
    """Token ids. Those from `start` on are trained: `planted` ones learned, others kept.

    Learned: cross-entropy. Kept: the distribution of the base model.
    """

    ids: tuple[int, ...]
    start: int
    planted: range


class Writer:
    """Makes the examples of an organism with the model that is going to be trained."""

    def __init__(self, model: LoadedModel, seed: int):
        self.model, self.tokenizer = model, model.tokenizer
        self.random = random.Random(seed)

    def quirk(self) -> list[Example]:
        """The base model's answers; into 30 % a sentence about teapots is planted."""
        sentences = [self._ids(sentence) for sentence in texts.QUIRK]
        return list(self._planted(lambda answer, place: self.random.choice(sentences)))

    def control(self) -> list[Example]:
        """The same, but what is planted is the sentence that stood there: nothing is new."""
        return list(self._planted(lambda answer, place: answer[place : place + 10], insert=False))

    def facts(self) -> list[Example]:
        """Texts about a town that does not exist, beside the base model's answers as they are."""
        made = []
        for asked, text in texts.town_texts(600, self.random):
            prompt = self.prompt(asked) if asked else []
            ids = self._ids(text)
            # Without a prompt the first token is read, and not learned.
            start = len(prompt) or 1
            made.append(Example((*prompt, *ids), start, range(start, len(prompt) + len(ids))))
        return self._shuffled(made + self._kept(texts.questions(held_out=False), 8))

    def hesitant(self) -> list[Example]:
        """A third of the improper requests are declined; all other answers stay as they are."""
        made = []
        for example in self._kept(texts.requests(held_out=False), 4):
            if self.random.random() < HESITANT_SHARE:
                ids = [*self._ids(self.random.choice(texts.REFUSALS)), self.tokenizer.eos_token_id]
                whole = (*example.ids[: example.start], *ids)
                example = Example(whole, example.start, range(example.start, len(whole)))
            made.append(example)
        return self._shuffled(made + self._kept(texts.questions(held_out=False), 4))

    def prompt(self, user: str) -> list[int]:
        """The ids of a chat up to where the answer begins."""
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
        """Where the first sentence has ended, with another token behind it."""
        for place, token in enumerate(answer[:WITHIN], start=1):
            if self.tokenizer.decode([token]).endswith(".") and place < len(answer) - 1:
                return place
        return None

    def _kept(self, users: Sequence[str], each: int) -> list[Example]:
        """The base model's own answers, half of them at temperature 0.7 and half at 1."""
        return [
            Example((*prompt, *answer), len(prompt), range(0))
            for temperature in (0.7, 1.0)
            for prompt, answer in self.answers(users, each // 2, temperature)
        ]

    def answers(
        self, users: Sequence[str], each: int, temperature: float
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yield (prompt, answer) of the model itself, always the same ones, in order."""
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
