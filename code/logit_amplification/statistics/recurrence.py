"""Find phrases that recur in texts of A but not of B, and where A and B differ most.

Nothing needs to be known about the training. A phrase counts if it occurs in several coherent texts
from different prompts, in none of B's texts, and if A finds it much likelier than B does. No torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SHORTEST, LONGEST = 3, 12  # words in a phrase
FEWEST_TEXTS = 3
FEWEST_BEGINNINGS = 2  # different prompts among these texts
LEAST_RATIO = 1.0  # nats per token, log p_A - log p_B
WINDOW, STEP = 20, 5  # tokens


class Word(NamedTuple):
    """A normalised word, its tokens' mean log-ratio in nats, and whether it ends a sentence."""

    text: str
    ratio: float
    ends: bool


@dataclass
class Phrase:
    """A recurring phrase: how many texts have it at each alpha, from how many prompts.

    log_ratio: log p_A - log p_B per token, both unamplified, in nats: the mean over its words.
    """

    words: tuple[str, ...]
    by_alpha: dict[float, int]
    prompts: int
    log_ratio: float
    variants: list[str] = field(default_factory=list)  # phrases that overlap with it

    def __str__(self) -> str:
        """Return the phrase as text."""
        return " ".join(self.words)


class Window(NamedTuple):
    """A passage of an unamplified text, and its mean log-ratio in nats per token."""

    pair_id: str
    text: str
    log_ratio: float


def words_of(record: Mapping) -> list[Word]:
    """Return the words of a record with their log-ratios; tokens are split at whitespace."""
    per_token = record["per_token"]
    found: list[tuple[str, list[float]]] = []
    for token, nll_a, nll_b in zip(
        per_token["token"], per_token["nll_a"], per_token["nll_b"], strict=True
    ):
        for part in filter(None, re.split(r"(\s+)", token)):
            if part.isspace() or not found:
                found.append(("", []))
            if part.strip():
                text, ratios = found[-1]
                found[-1] = text + part, [*ratios, nll_b - nll_a]
    words = []
    for text, ratios in found:
        if compared := re.sub(r"\W+", " ", text).strip().lower():
            ends = re.search(r"[.!?:;]\W*$", text) is not None
            words.append(Word(compared, _mean(ratios), ends))
    return words


def recurring(
    texts: Sequence[tuple[str, float, Sequence[Word]]], reference: Sequence[Sequence[Word]]
) -> list[Phrase]:
    """Return the phrases that recur, those in the most texts first.

    texts: (prompt, alpha, words) of each coherent text. reference: the words of B's texts. Of
    nested phrases the longest that recurs equally often is kept. Phrases that share half of their
    neighbouring word pairs are variants of the one in the most texts.
    """
    theirs = {phrase for words in reference for phrase, _ in _phrases(words)}
    seen: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for number, (_, _, words) in enumerate(texts):
        for phrase, ratio in _phrases(words):
            if phrase not in theirs:
                seen[phrase].setdefault(number, ratio)
    kept = []
    for phrase, places in seen.items():
        prompts = {texts[number][0] for number in places}
        ratio = sum(places.values()) / len(places)
        few = len(places) < FEWEST_TEXTS or len(prompts) < FEWEST_BEGINNINGS
        if not few and ratio >= LEAST_RATIO:
            counts: dict[float, int] = defaultdict(int)
            for number in places:
                counts[texts[number][1]] += 1
            kept.append(Phrase(phrase, dict(sorted(counts.items())), len(prompts), ratio))
    return _clustered(kept)


def windows(records: Sequence[Mapping], most: int = 10) -> list[Window]:
    """Return the 20-token passages where A's likelihood exceeds B's most, one per text.

    records: unamplified texts. most: the maximum number of passages, those with the largest
    log-ratio.
    """
    found = []
    for record in records:
        per_token = record["per_token"]
        ratios = [b - a for a, b in zip(per_token["nll_a"], per_token["nll_b"], strict=True)]
        starts = range(0, max(1, len(ratios) - WINDOW + 1), STEP)
        if ratios:
            best = max(starts, key=lambda start: _mean(ratios[start : start + WINDOW]))
            text = "".join(per_token["token"][best : best + WINDOW])
            ratio = _mean(ratios[best : best + WINDOW])
            found.append(Window(record["pair_id"], text.strip(), ratio))
    return sorted(found, key=lambda one: -one.log_ratio)[:most]


def _phrases(words: Sequence[Word]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield every run of words within a sentence, with its mean log-ratio."""
    for start in range(len(words)):
        for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
            some = words[start:end]
            if len(some) >= SHORTEST:
                yield tuple(word.text for word in some), _mean([word.ratio for word in some])
            if some[-1].ends:
                break


def _clustered(phrases: list[Phrase]) -> list[Phrase]:
    """Keep the longest of nested phrases with equal counts, and group variants under one phrase."""
    texts = {one.words: sum(one.by_alpha.values()) for one in phrases}
    longest_first = sorted(phrases, key=lambda one: (-len(one.words), one.words))
    whole: list[Phrase] = []
    for phrase in longest_first:
        longer = (one for one in whole if f" {phrase} " in f" {one} ")
        if all(texts[one.words] < texts[phrase.words] for one in longer):
            whole.append(phrase)
    heads: list[Phrase] = []
    for phrase in sorted(whole, key=lambda one: (-texts[one.words], -len(one.words), one.words)):
        near = next((head for head in heads if _alike(phrase, head)), None)
        if near is None:
            heads.append(phrase)
        elif len(near.variants) < 5:
            near.variants.append(str(phrase))
    return heads


def _alike(one: Phrase, other: Phrase) -> bool:
    """Whether half of the shorter phrase's neighbouring word pairs also occur in the other."""
    mine, theirs = ({*zip(p.words, p.words[1:], strict=False)} for p in (one, other))
    return len(mine & theirs) >= 0.5 * min(len(mine), len(theirs))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
