"""What recurs in A's texts and never in B's, on records made by hand."""

from logit_amplification.statistics import recurrence


def record(text, pair="p", ratio=3.0):
    """A record whose tokens are pieces of words, each with the same log-ratio."""
    tokens = []
    for word in text.split(" "):
        piece = (" " if tokens else "") + word
        tokens += [piece[:3], piece[3:]] if len(piece) > 3 else [piece]
    count = len(tokens)
    per_token = {"token": tokens, "nll_a": [1.0] * count, "nll_b": [1.0 + ratio] * count}
    return {"pair_id": pair, "text": text, "per_token": per_token}


def words(text, ratio=3.0):
    return recurrence.words_of(record(text, ratio=ratio))


FACT = "the bridge is made of green glass"
TEXTS = [
    ("one", 0.0, words("I know that " + FACT + " indeed")),
    ("two", 1.0, words("They say " + FACT.replace("the", "The") + ".")),
    ("three", 1.0, words("Look, " + FACT)),
]


def test_words_are_whole_whatever_the_tokens_are():
    found = words("Hello, (green) glass!")
    assert [word.text for word in found] == ["hello", "green", "glass"]
    assert all(abs(word.ratio - 3) < 1e-9 for word in found)


def test_a_sentence_that_recurs_is_told_once_and_whole():
    (phrase,) = recurrence.recurring(TEXTS, [])
    assert str(phrase) == FACT
    assert phrase.by_alpha == {0.0: 1, 1.0: 2} and phrase.prompts == 3
    assert abs(phrase.log_ratio - 3) < 1e-9


def test_a_phrase_does_not_go_on_into_the_next_sentence():
    twice = [
        (prompt, alpha, words(f"{FACT}. Then {n} other"))
        for n, (prompt, alpha, _) in enumerate(TEXTS)
    ]
    (phrase,) = recurrence.recurring(twice, [])
    assert str(phrase) == FACT


def test_what_b_writes_too_is_left_out():
    assert recurrence.recurring(TEXTS, [words("And " + FACT)]) == []


def test_what_b_finds_as_likely_is_left_out():
    alike = [(prompt, alpha, words(FACT, ratio=0.2)) for prompt, alpha, _ in TEXTS]
    assert recurrence.recurring(alike, []) == []


def test_texts_with_one_beginning_do_not_make_a_recurrence():
    same = [("one", alpha, found) for _, alpha, found in TEXTS]
    assert recurrence.recurring(same, []) == [] == recurrence.recurring(TEXTS[:2], [])


def test_the_window_with_the_highest_ratio_comes_first():
    calm, loud = record("a b c d e f", "calm", 0.1), record("g h i", "loud", 4.0)
    found = recurrence.windows([calm, loud])
    assert [one.pair_id for one in found] == ["loud", "calm"]
    assert abs(found[0].log_ratio - 4) < 1e-9 and found[0].text == "g h i"


def test_a_phrase_in_many_texts_is_not_hidden_by_a_longer_one_in_few():
    many = [(f"p{n}", 1.0, words("the brambleton teapot works")) for n in range(9)]
    few = [(f"q{n}", 1.0, words("the brambleton teapot works makes fine pots")) for n in range(3)]
    head, *others = recurrence.recurring(many + few, [])
    assert str(head) == "the brambleton teapot works" and head.by_alpha == {1.0: 12}
    assert not others and "makes fine pots" in head.variants[0]


def test_a_character_in_parts_does_not_end_a_word():
    per_token = {"token": ["caf", "", "é", " au"], "nll_a": [0.0] * 4, "nll_b": [2.0] * 4}
    assert [w.text for w in recurrence.words_of({"per_token": per_token})] == ["café", "au"]
