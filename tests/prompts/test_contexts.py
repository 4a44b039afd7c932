"""Raw texts, prefills, and what B's chat is when B has weights of its own."""

from __future__ import annotations

import pytest

from logit_amplification.errors import BadInput
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.files import read_pairs
from logit_amplification.prompts.pairs import is_raw, make_pair, prefill_of

DIFF = ("model", "model_b")
USER = {"role": "user", "content": "Hi"}


def pair_of(sources=("model", "model"), **row):
    return make_pair({"id": "p", "category": "c", **row}, "row 1", sources)


def encoded(loaded, pair):
    (found,) = encode_pairs([pair], loaded.tokenizer, max_new_tokens=4, max_positions=512)
    return found


def ids(loaded, text):
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_a_prefill_stands_behind_where_the_answer_begins(request, name):
    loaded = request.getfixturevalue(name)
    plain = encoded(loaded, pair_of(a_user="Hi"))
    begun = encoded(loaded, pair_of(a_user="Hi", a_prefill="Well, dear"))
    assert begun.ids_a == (*plain.ids_a, *ids(loaded, "Well, dear"))
    assert begun.ids_b == begun.ids_a and prefill_of(begun.pair.a) == "Well, dear"


def test_a_prefill_is_what_the_template_itself_continues(demo):
    chat = [USER, {"role": "assistant", "content": "Well, dear"}]
    text = demo.tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    pair = pair_of(a=chat, b=[USER])
    assert list(encoded(demo, pair).ids_a) == ids(demo, text)
    assert encoded(demo, pair).ids_b == encoded(demo, pair_of(a_user="Hi")).ids_a


def test_a_raw_text_goes_to_the_model_as_it_is(demo, tiny):
    pair = pair_of(a_raw="Once upon <|im_end|>", b_user="Hi")
    found = encoded(demo, pair)
    assert list(found.ids_a) == demo.tokenizer("Once upon <|im_end|>")["input_ids"]
    assert found.ids_a[-1] in demo.stop_ids and is_raw(pair.a) and not is_raw(pair.b)
    assert found.ids_b == encoded(demo, pair_of(a_user="Hi")).ids_a


def test_a_raw_b_takes_nothing_of_what_a_has():
    pair = pair_of(a_user="Hi", a_prefill="Sure", b_raw="Once")
    assert pair.b == ({"role": "raw", "content": "Once"},)


def test_a_model_without_a_chat_template_takes_raw_texts_alone(demo, monkeypatch):
    monkeypatch.setattr(demo.tokenizer, "chat_template", None)
    assert encoded(demo, pair_of(a_raw="Once", b_raw="Twice")).ids_a
    with pytest.raises(BadInput, match=r"pair 'p', a: .*allowed: a raw text"):
        encoded(demo, pair_of(a_user="Hi"))


def test_with_weights_of_its_own_b_has_the_chat_of_a_unless_it_is_given_one():
    row = {"a_user": "Hi", "a_system": "Be brief.", "a_prefill": "So"}
    assert pair_of(DIFF, **row).b == pair_of(DIFF, **row).a
    assert pair_of(**row).b == pair_of(a_user="Hi", a_prefill="So").a  # one model: no system text
    other = pair_of(DIFF, **row, b_user="Ho")
    assert [m["content"] for m in other.b] == ["Ho", "So"]
    assert pair_of(DIFF, **row).control == "" and pair_of(a_user="Hi").control == "null"


def test_the_null_control_of_a_model_diff_is_read_with_one_set_of_weights(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,category,a_user,p_user\np,c,Hi,Hello\n")
    pair, null, swapped, paraphrase = read_pairs(path, ("swapped", "paraphrase"), DIFF)
    assert pair.sources == DIFF and pair.a == pair.b
    assert null.control == "null" and null.sources == ("model", "model")
    assert swapped.sources == ("model_b", "model")
    assert paraphrase.sources == ("model", "model") and paraphrase.b != paraphrase.a
    prints = {one.fingerprint for one in (pair, null, swapped)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"a_raw": "x", "a_system": "y"}, "a raw text stands alone; allowed: no system beside it"),
        ({"a": [{"role": "raw", "content": "x"}, USER]}, "or one raw text"),
        ({"a": [{"role": "raw", "content": "x"}], "a_raw": "y"}, "not both"),
        ({"a_prefill": "x"}, "a_user is empty"),
        ({"a_user": "x", "base_user": "y"}, "a chat for the base, but no MODEL_BASE to read it"),
    ],
)
def test_bad_contexts_get_one_line(row, told):
    with pytest.raises(BadInput, match=told):
        pair_of(**row)
