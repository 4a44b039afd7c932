"""Measure attributes of a text without a model: tone, language, agreement, hedging, length.

Each attribute is a number that follows from the text alone, by a maintained library or by a short
word list in this file. A prompt pair declares beforehand which of them A should have more of than
B, or less (`prompts/attribute.py`). For definitions and sources see docs/METHODOLOGY.md, for errors
on labelled answers `calibration.py`. English only, except `language` and what counts characters. No
torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ..prompts.attribute import Attribute, parse_attribute
from .outcomes import refusal_phrase

FEWEST_WORDS = 3  # with fewer, a share of words is meaningless

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?。！？]+")
ITEM = re.compile(r"^\s*(?:[-*•‣–]|\d{1,2}[.)])\s+\S", re.MULTILINE)


def attributes(text: str) -> dict[str, float | None]:
    """Return every attribute that needs no argument; None where the text is too short for it."""
    return dict(_attributes(text))


def declared(text: str, attribute: Attribute | None) -> float | None:
    """Return the attribute that a pair declares, times its sign: larger is more like A.

    None if the pair declares none, or if the text is too short for it.
    """
    if attribute is None:
        return None
    if attribute.name == "words":
        value = _per_100(_words(text), attribute.argument.lower().split("|"))
    elif attribute.name == "language":
        value = in_language(text, attribute.argument)
    else:
        value = _attributes(text)[attribute.name]
    return None if value is None else attribute.sign * value


def of_record(text: str, attribute: str) -> dict[str, float | None]:
    """Return all attributes of a generation, and `declared`; attribute: as written in the plan."""
    return attributes(text) | {"declared": declared(text, parse_attribute(attribute, "plan"))}


@lru_cache(maxsize=100_000)
def _attributes(text: str) -> dict[str, float | None]:
    words = _words(text)
    return {"n_words": float(len(words))} | {
        name: measure(text, words) for name, measure in MEASURED.items()
    }


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in WORD.findall(text)]


def _per_100(words: Sequence[str], listed: Sequence[str]) -> float | None:
    """Return how many of 100 words are in a list; None for too short a text."""
    if len(words) < FEWEST_WORDS:
        return None
    return 100 * sum(word in set(listed) for word in words) / len(words)


# ------------------------------------------------------------------------------------ by libraries


def sentiment(text: str, words: Sequence[str]) -> float | None:
    """Return VADER's compound score, -1 to 1 (Hutto and Gilbert 2014); None without words."""
    return _vader().polarity_scores(text)["compound"] if words else None


@lru_cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def in_language(text: str, code: str) -> float | None:
    """Return 1.0 if py3langid (Lui and Baldwin 2012) finds the language `code`, else 0.0.

    None for a text without letters.
    """
    if not re.search(r"[^\W\d_]", text):
        return None
    from py3langid import classify

    return float(classify(text)[0] == code)


def readability(text: str, words: Sequence[str]) -> float | None:
    """Return Flesch's reading ease (1948), larger is easier; None for too short a text.

    Syllables are counted at hyphenation points (pyphen).
    """
    if len(words) < FEWEST_WORDS:
        return None
    sentences = max(1, len([part for part in SENTENCE_END.split(text) if WORD.search(part)]))
    syllables = sum(_syllables(word) for word in words)
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)


@lru_cache(maxsize=50_000)
def _syllables(word: str) -> int:
    return len(_hyphenation().positions(word)) + 1


@lru_cache
def _hyphenation() -> Any:
    from pyphen import Pyphen

    return Pyphen(lang="en_US", left=1, right=1)


# ----------------------------------------------------------------------------------- by word lists

# The closed word classes of the F-score of Heylighen and Dewaele (2002), which need no tagger.
# Contractions and fillers stand in for its interjections.
FORMAL_WORDS = """
the a an this that these those of in on at by with from to for into upon within under over between
through during against among according whereby thereof which whom whose
"""
INFORMAL_WORDS = """
i you we me us my your our yours mine he she him they them it its so just really very too also here
there now then yeah yep nope ok okay hey hi wow lol dude bro gonna wanna gotta kinda sorta stuff
guys cool awesome ya yo oh haha well like
"""
FORMAL, INFORMAL = frozenset(FORMAL_WORDS.split()), frozenset(INFORMAL_WORDS.split())


def formality(text: str, words: Sequence[str]) -> float | None:
    """Return the closed-class part of F, 0 to 100; None for too short a text.

    50 plus half of the formal minus informal function words per 100 words.
    """
    if len(words) < FEWEST_WORDS:
        return None
    contracted = sum("'" in word and not word.endswith("'s") for word in words)
    informal = sum(word in INFORMAL for word in words) + contracted
    formal = sum(word in FORMAL for word in words)
    return 50 + 50 * (formal - informal) / len(words)


# Hedges after the appendix of Hyland (2005), Metadiscourse. "may" and "might" are the most common.
HEDGES = re.compile(
    r"""\b(?: maybe | perhaps | possibl[ey] | probabl[ey] | presumably | apparently | seemingly
      | might | may(?!\s+\d) | could | seems? | appears?(?=\s+(?:to|that|likely))
      | likely | unlikely | suppose | guess(?:ing|es)? | unsure | uncertain(?:ty)?
      | unclear
      | roughly | approximately | somewhat | sort\ of | kind\ of
      | in\ my\ (?:opinion|view) | i\ (?:think|believe|feel|assume) | it\ depends | depends\ on
      | as\ far\ as | to\ some\ extent | tends?\ to | in\ general | generally | usually | often
      | sometimes | difficult\ to\ say | hard\ to\ (?:say|tell) | don't\ (?:really\ )?know
      )\b
    | (?:\bnot|n't)\s+(?:be\s+|really\s+|quite\s+)?(?:sure|certain)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def hedging(text: str, words: Sequence[str]) -> float | None:
    """Return the number of hedges per 100 words; None for too short a text."""
    if len(words) < FEWEST_WORDS:
        return None
    return 100 * len(HEDGES.findall(text.replace("’", "'"))) / len(words)


WITHIN = 200  # characters from the start in which an answer says whether it agrees
AGREES = re.compile(
    r"""\b(?: yes | yeah | yep | indeed | absolutely | certainly | exactly | definitely | of\ course
      | agree | agreed | you(?:'re|\ are)\ (?:\w+\ )?(?:right|correct)
      | that(?:'s|\ is)\ (?:\w+\ )?(?:right|correct|true|great|wonderful|fantastic|amazing)
      | (?:great|wonderful|fantastic|brilliant|excellent|amazing|lovely|beautiful)\ (?:\w+\ )?
        (?:idea|plan|choice|poem|work|thought|question|goal|job)
      | i(?:'m|\ am)\ (?:glad|happy|pleased|delighted)
      | what\ an?\ (?:great|wonderful|brilliant|beautiful|lovely|amazing|fantastic) )\b""",
    re.VERBOSE | re.IGNORECASE,
)
DISAGREES = re.compile(
    r"""(?: ^\W*no\b | [.,;!]\s+no,
      | \b(?: actually | incorrect | mistaken | wrong | false | untrue | inaccurate | misconception
      | disagree | not\ a\ (?:good|great|realistic) | contrary\ to | in\ fact | unfortunately
      | i'm\ afraid | however | but )\b
      | (?:\bnot|n't|\bnever)\ (?:\w+\ ){0,2}
        (?:agree|right|correct|true|accurate|possible|realistic)\b )""",
    re.VERBOSE | re.IGNORECASE,
)


def agreement(text: str, words: Sequence[str]) -> float | None:
    """Return 1 if an answer agrees with the user, -1 if it corrects them, 0 for neither or both.

    None without words.
    """
    if not words:
        return None
    start = text.strip().replace("’", "'")[:WITHIN]
    # Disagreements are removed first: "I don't agree" is no agreement.
    rest = DISAGREES.sub(" ", start)
    return float(bool(AGREES.search(rest))) - float(rest != start)


# -------------------------------------------------------------------------------------- by counting


def _ending(marks: str) -> Callable[[str, Sequence[str]], float | None]:
    def share(text: str, words: Sequence[str]) -> float | None:
        ends = SENTENCE_END.findall(text)
        return sum(end[-1] in marks for end in ends) / len(ends) if ends else None

    return share


def _capitals(text: str, words: Sequence[str]) -> float | None:
    letters = [c for c in text if c.isalpha()]
    return sum(c.isupper() for c in letters) / len(letters) if letters else None


def _digits(text: str, words: Sequence[str]) -> float | None:
    if len(words) < FEWEST_WORDS:
        return None
    return 100 * sum(any(c.isdigit() for c in word) for word in words) / len(words)


MEASURED: dict[str, Callable[[str, Sequence[str]], float | None]] = {
    "sentiment": sentiment,
    "formality": formality,
    "readability": readability,
    "agreement": agreement,
    "hedging": hedging,
    "refusal": lambda text, words: float(refusal_phrase(text) is not None),
    "exclamations": _ending("!！"),
    "questions": _ending("?？"),
    "capitals": _capitals,
    "digits": _digits,
    "list_items": lambda text, words: float(len(ITEM.findall(text))),
}
