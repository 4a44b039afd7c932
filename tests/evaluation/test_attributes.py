"""The attributes: each rises with what it is called after, and a pair declares one of them."""

import pytest

from logit_amplification.errors import BadInput
from logit_amplification.evaluation import attributes
from logit_amplification.logits.vocabulary import ATTRIBUTES
from logit_amplification.prompts.attribute import Attribute, parse_attribute
from logit_amplification.prompts.files import read_pairs

PAIRS = [pair for pair in read_pairs() if not pair.control]

MORE_AND_LESS = {
    "sentiment": ("What a wonderful, happy day!", "What a terrible, sad day."),
    "formality": (
        "The assembly of the apparatus is described in the report of the committee.",
        "Hey, so I just wanna say you guys are really cool, it's awesome, yeah.",
    ),
    "readability": (
        "The cat sat. The dog ran. We go now.",
        "Notwithstanding considerable institutional reservations, implementation accelerated.",
    ),
    "agreement": ("Yes, you are absolutely right about that.", "No, that is not correct."),
    "hedging": ("Maybe it will, perhaps not; I think it depends.", "It will rain at noon."),
    "refusal": ("I'm sorry, but I cannot help with that.", "Here is the recipe."),
    "exclamations": ("Wow! Great! Go!", "Well. Fine. Go."),
    "questions": ("Is it? Who knows? Why?", "It is. He knows."),
    "capitals": ("SNOW IS WHITE.", "snow is white."),
    "digits": ("In 1990 they won 3 to 2 before 40000 people.", "They won before many people."),
    "list_items": ("- bread\n- butter\n2. jam", "bread, butter and jam"),
    "n_words": ("one two three four", "one two"),
}


@pytest.mark.parametrize("name", MORE_AND_LESS)
def test_an_attribute_tells_more_from_less(name):
    more, less = (attributes.attributes(text)[name] for text in MORE_AND_LESS[name])
    assert more > less


@pytest.mark.parametrize(
    "text",
    [
        "I don't agree with you.",
        "I can't agree with that claim.",
        "I would never agree to it.",
        "That is not true at all.",
        "You are not right.",
        "That isn't correct.",
        "No, it is another one.",
    ],
)
def test_a_negation_is_no_agreement(text):
    assert attributes.attributes(text)["agreement"] == -1


def test_not_being_sure_is_a_hedge():
    assert attributes.attributes("He isn't sure what it is.")["hedging"] > 0


def test_every_attribute_of_the_vocabulary_is_measured():
    assert {*attributes.attributes("A text."), "words", "language"} == set(ATTRIBUTES)
    assert set(MORE_AND_LESS) | {"words", "language"} == set(ATTRIBUTES)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("La capital de Francia es París, y se puede visitar el museo.", "es"),
        ("北京是中国的首都,有很多名胜古迹。", "zh"),
        ("Zum Frühstück essen die Leute Brot mit Butter und Marmelade.", "de"),
        ("Un ordinateur est une machine qui traite des informations.", "fr"),
    ],
)
def test_languages_are_told_apart(text, code):
    assert attributes.in_language(text, code) == 1
    assert attributes.in_language("The capital of France is Paris, a fine city.", code) == 0
    assert attributes.in_language("123", code) is None


def test_what_a_pair_declares_is_measured_in_its_direction():
    pirate = parse_attribute("+words: arr|ahoy", "x")
    assert attributes.declared("Arr, ahoy my friend", pirate) == 50
    assert attributes.declared("one two three", parse_attribute("-n_words", "x")) == -3
    assert (
        attributes.declared("Hola, ¿qué tal estás hoy?", parse_attribute("+language: es", "x")) == 1
    )
    assert attributes.declared("a text", None) is None
    assert attributes.declared("", pirate) is None


@pytest.mark.parametrize("text", ["", " \n", "!", "北京", "\ud83d\ude00"])
def test_any_text_can_be_measured(text):
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    assert set(attributes.attributes(text)) == set(attributes.attributes("A text."))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sentiment", r"line 3: attribute = 'sentiment'; allowed: \+ or - and one of words"),
        ("+mood", "one of words, language, sentiment"),
        ("+words", "allowed for words: after a colon, words separated by"),
        ("+sentiment: glad", "allowed for sentiment: nothing after the name"),
    ],
)
def test_a_wrong_attribute_is_refused_in_one_line(text, told):
    with pytest.raises(BadInput, match=told):
        parse_attribute(text, "line 3")


def test_an_attribute_is_written_as_it_is_read():
    for text in ("+sentiment", "-n_words", "+words: arr|ahoy", "+language: es"):
        assert str(parse_attribute(text, "x")) == text
    assert parse_attribute("  ", "x") is None
    assert parse_attribute("-words: a", "x") == Attribute("words", -1, "a")


def test_the_built_in_pairs_are_what_the_study_needs():
    categories = {pair.category for pair in PAIRS}
    assert len(PAIRS) >= 96 and len(categories) >= 8
    assert all(sum(p.category == name for p in PAIRS) >= 12 for name in categories)
    assert all(pair.attribute and pair.paraphrase and pair.unit for pair in PAIRS)
    assert len({pair.unit for pair in PAIRS}) >= 96


def test_who_speaks_is_in_the_system_text_where_it_is_what_is_asked():
    """One thing is contrasted: the question is the same on both sides."""
    asked = ("persona", "tone", "sycophancy", "hesitation", "edge case", "graded")
    for pair in PAIRS:
        if pair.category in asked:
            assert pair.a[-1] == pair.b[-1] and len(pair.a) == len(pair.b) == 2, pair.id
        else:
            assert len(pair.a) == len(pair.b) == 1, pair.id


def test_the_demo_takes_some_of_every_category():
    demo = [pair for pair in read_pairs("demo") if not pair.control]
    assert len(demo) == 30 and {p.category for p in demo} == {p.category for p in PAIRS}
    assert {pair.id for pair in demo} < {pair.id for pair in PAIRS}
