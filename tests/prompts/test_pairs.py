"""Prompt files: good ones are read as meant, bad ones get one line; and the chat template."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.prompts.chat import accepts_system_role, encode_pairs, fold_system
from logit_amplification.prompts.files import read_pairs
from logit_amplification.prompts.pairs import COLUMNS, PromptPair

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
HEADER = ",".join(COLUMNS) + "\n"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path):
    with pytest.raises(BadInput) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ the built-in pairs


def test_the_built_in_pairs_are_what_the_readme_says():
    pairs = read_pairs(ROOT / "data" / "prompt_pairs.csv")
    contrasts = [pair for pair in pairs if not pair.control]
    assert len(contrasts) >= 24
    assert len({pair.category for pair in contrasts}) >= 6
    assert sum(pair.control == "null" for pair in pairs) >= 1
    users = {pair.id for pair in contrasts if pair.a[-1] != pair.b[-1]}
    systems = {pair.id for pair in contrasts if pair.a[0] != pair.b[0]} - users
    assert len(users) >= 5 and len(systems) >= 5
    graded = [pair for pair in pairs if pair.category == "graded"]
    families = {pair.unit for pair in graded}
    assert len(graded) == 12 and len(families) == 3
    for family in families:
        members = [frozen(pair) for pair in graded if pair.unit == family]
        assert len(members) == 4 and len({pair.b for pair in members}) == 1


def frozen(pair):
    """The pair with hashable chats."""
    chats = [tuple(tuple(message.items()) for message in chat) for chat in (pair.a, pair.b)]
    return PromptPair(pair.id, pair.category, *chats)


# ----------------------------------------------------------------------------------- good files


def test_csv_columns_become_two_chats(tmp_path):
    text = HEADER + 'p1,tone,"Say ""hi"",\nplease",,You are kind.,\n'
    pair, null = read_pairs(write(tmp_path, "pairs.csv", text))
    assert pair.a == (
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": 'Say "hi",\nplease'},
    )
    assert pair.b == ({"role": "user", "content": 'Say "hi",\nplease'},)
    assert null.control == "null" and null.category == "control" and null.a == pair.a


def test_json_lines_json_and_csv_say_the_same(tmp_path):
    row = {"id": "ü", "category": "c", "a_user": "A\u2028x", "b_user": "B", "a_system": "S"}
    csv = HEADER + "ü,c,A\u2028x,B,S,\n"
    files = [
        write(tmp_path, "p.csv", csv),
        write(tmp_path, "bom.csv", b"\xef\xbb\xbf" + csv.encode()),
        write(tmp_path, "p.json", json.dumps([row])),
        write(tmp_path, "p.jsonl", "\n" + json.dumps(row, ensure_ascii=False) + "\n\n"),
    ]
    assert len({str(read_pairs(path)) for path in files}) == 1


def test_message_lists_are_taken_as_they_are(tmp_path):
    turns = [SYSTEM, USER, {"role": "assistant", "content": "Yes?"}, USER]
    row = {"id": "p", "category": "c", "a": turns, "b": [USER]}
    pair, _ = read_pairs(write(tmp_path, "p.json", json.dumps([row])))
    assert pair.a == tuple(turns) and pair.b == (USER,)


def test_a_file_with_a_null_pair_gets_no_second_one(tmp_path):
    text = HEADER + "p,c,Hi,,,\n"
    (pair,) = read_pairs(write(tmp_path, "p.csv", text))
    assert pair.control == "null"


def test_the_fingerprint_changes_with_either_chat():
    one = PromptPair("p", "c", (USER,), (SYSTEM, USER))
    assert one.fingerprint == PromptPair("other", "x", (USER,), (SYSTEM, USER)).fingerprint
    assert one.fingerprint != PromptPair("p", "c", (SYSTEM, USER), (USER,)).fingerprint


# ------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.txt", "x", ".csv, .json or .jsonl"),
        ("p.csv", "", "no prompt pairs"),
        ("p.csv", HEADER, "no prompt pairs"),
        ("p.csv", HEADER + "p,c,,b,,\n", "line 2: a_user is empty"),
        ("p.csv", HEADER + ",c,Hi,,,\n", "line 2: id is empty"),
        ("p.csv", HEADER + "p,,Hi,,,\n", "line 2: category is empty"),
        ("p.csv", HEADER + "p,c,Hi,,,\np,c,Ho,,,\n", "line 3: the id 'p' is used twice"),
        ("p.csv", HEADER + "p,c,Hi" + 40 * "," + "extra\n", "line 2: more cells"),
        ("p.csv", HEADER + 'p,c,"Hi,,,\n', "line 2"),
        ("p.csv", "id,category,a_user,colour\np,c,Hi,red\n", "unknown column 'colour'"),
        ("p.csv", HEADER.encode() + b"p,c,\xff\xfe,,,\n", "not UTF-8"),
        ("p.csv", HEADER + "p,c,H\0i,,,\n", "line 2: a NUL byte"),
        ("p.csv", HEADER + "null-control,c,Hi,Ho,,\n", "null-control"),
        ("p.json", "{", "not JSON"),
        ("p.json", "[" * 100_000, "not JSON"),
        ("p.json", '{"id": 1}', "a list of pairs"),
        ("p.json", "[3]", "item 1"),
        ("p.json", '[{"id": 7, "category": "c", "a_user": "Hi"}]', "item 1: id must be text"),
        ("p.jsonl", '{"id": "p", "category": "c", "a_user": "Hi"}\n{', "line 2: not JSON"),
        ("p.json", json.dumps([{"id": "p", "category": "c", "a": []}]), "a list of messages"),
        ("p.json", json.dumps([{"id": "p", "category": "c", "a": [SYSTEM]}]), "roles are"),
        ("p.json", json.dumps([{"id": "p", "category": "c", "a": [USER, USER]}]), "roles are"),
        (
            "p.json",
            json.dumps([{"id": "p", "category": "c", "a": [{"role": "wizard", "content": "x"}]}]),
            "roles are",
        ),
        (
            "p.json",
            json.dumps([{"id": "p", "category": "c", "a": [{"role": "user", "content": ""}]}]),
            "content must be text",
        ),
        (
            "p.json",
            json.dumps([{"id": "p", "category": "c", "a": [USER], "a_user": "Hi"}]),
            "not both",
        ),
    ],
)
def test_a_bad_file_gets_one_line_with_the_place(tmp_path, name, content, told):
    assert told in complaint(write(tmp_path, name, content))


def test_a_file_that_is_not_there_or_is_a_folder_is_told(tmp_path):
    assert "No such file" in complaint(tmp_path / "missing.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "directory" in complaint(tmp_path / "folder.csv")


@hypothesis_settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["p.csv", "p.json", "p.jsonl"]))
def test_any_bytes_give_pairs_or_one_line(tmp_path_factory, content, name):
    path = write(tmp_path_factory.mktemp("fuzz"), name, content)
    try:
        assert read_pairs(path)
    except BadInput as error:
        assert "\n" not in str(error)


# --------------------------------------------------------------------------------- chat template


def encode_one(loaded, a, b=None, **options):
    options = {"max_new_tokens": 10, "max_positions": loaded.max_positions} | options
    return encode_pairs(
        [PromptPair("p", "c", tuple(a), tuple(b or a))], loaded.tokenizer, **options
    )[0]


def test_a_template_that_refuses_the_system_role_gets_it_folded_into_the_user_text(tiny):
    """Mistral 7B Instruct v0.2's own template refuses it."""
    assert not accepts_system_role(tiny.tokenizer)
    text = tiny.tokenizer.decode(encode_one(tiny, [SYSTEM, USER]).ids_a)
    assert text == "<s>[INST] Be brief.\n\nHi [/INST]"


def test_a_template_that_has_a_system_role_is_used_as_it_is(demo):
    assert accepts_system_role(demo.tokenizer)
    text = demo.tokenizer.decode(encode_one(demo, [SYSTEM, USER]).ids_a)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_drops_the_system_text_silently_is_noticed(tiny):
    class Dropping:
        def apply_chat_template(self, chat, tokenize):
            return chat[-1]["content"]

    assert not accepts_system_role(Dropping())


def test_mistral_gets_exactly_one_begin_of_sequence_token(tiny):
    for chat in ([USER], [SYSTEM, USER]):
        pair = encode_one(tiny, chat, [USER])
        for ids in (pair.ids_a, pair.ids_b):
            assert ids[0] == tiny.tokenizer.bos_token_id
            assert ids.count(tiny.tokenizer.bos_token_id) == 1


def test_folding_changes_nothing_without_a_system_text():
    assert fold_system((USER,)) == [USER]


def test_a_prompt_longer_than_the_context_is_named(tiny):
    long = {"role": "user", "content": "x" * 600}
    with pytest.raises(BadInput, match=r"pair 'p', b: \d+ prompt tokens .* context of 512"):
        encode_one(tiny, [USER], [long])


def test_prompt_and_answer_may_fill_the_context_exactly(tiny):
    used = len(encode_one(tiny, [USER]).ids_a)
    assert encode_one(tiny, [USER], max_new_tokens=512 - used)
    with pytest.raises(BadInput, match="exceed"):
        encode_one(tiny, [USER], max_new_tokens=513 - used)


# -------------------------------------------------------------------------------------- controls

CONTROLLED = HEADER + "one,x,Hi,Ho,S,,Hey,T\ntwo,y,Ha,He,,,,\nthree,y,Hu,Hy,,,Huh,\n"


def test_controls_are_derived_from_the_pairs_and_say_from_which(tmp_path):
    path = write(tmp_path, "p.csv", CONTROLLED)
    pairs = {p.id: p for p in read_pairs(path, ("swapped", "shuffled", "paraphrase"))}
    one, swapped = pairs["one"], pairs["one~swapped"]
    assert (swapped.a, swapped.b) == (one.b, one.a)
    assert swapped.control == "swapped" and swapped.origin == "one"
    assert swapped.category == "control: swapped"
    shuffled = pairs["one~shuffled"]
    assert shuffled.a == one.a and shuffled.b in (pairs["two"].b, pairs["three"].b)
    paraphrase = pairs["one~paraphrase"]
    assert paraphrase.a == one.a
    assert [m["content"] for m in paraphrase.b] == ["T", "Hey"]
    assert "two~paraphrase" not in pairs and "three~paraphrase" in pairs
    assert not [name for name in pairs if name.startswith("null-control~")]
    assert len(pairs) == 3 + 1 + 3 + 3 + 2


def test_a_paraphrase_takes_what_it_does_not_say_from_a(tmp_path):
    path = write(tmp_path, "p.csv", HEADER + "one,x,Hi,Ho,S,,Hey,\ntwo,x,Hi,Ho,S,,,T\n")
    one, two = read_pairs(path)[:2]
    assert [m["content"] for m in one.paraphrase] == ["S", "Hey"]
    assert [m["content"] for m in two.paraphrase] == ["T", "Hi"]


@pytest.mark.parametrize(
    ("rows", "controls", "told"),
    [
        ("one,x,Hi,Ho,,,,\n", ("paraphrase",), "CONTROLS = paraphrase: no pair"),
        ("one,x,Hi,Ho,,,,\n", ("shuffled",), "CONTROLS = shuffled: no pair"),
        ("one,x,Hi,Ho,,,Hi,\n", (), "the paraphrase of the pair 'one' is its chat A"),
        ("one,x,Hi,Ho,,,,\none~swapped,x,Hi,Ha,,,,\n", ("swapped",), "CONTROLS: an id"),
    ],
)
def test_controls_that_cannot_be_are_refused(tmp_path, rows, controls, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        read_pairs(write(tmp_path, "p.csv", HEADER + rows), controls)


def test_a_paraphrase_can_be_a_message_list(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    row = {"id": "x", "category": "c", "a": chat, "b": [chat[0] | {"content": "Ho"}]}
    row["p"] = [{"role": "user", "content": "Hey"}]
    (pair, *_) = read_pairs(write(tmp_path, "p.json", json.dumps([row])))
    assert pair.paraphrase[0]["content"] == "Hey"


def test_the_built_in_pairs_all_have_a_paraphrase_but_the_null_pair():
    pairs = read_pairs(ROOT / "data" / "prompt_pairs.csv")
    assert all(pair.paraphrase for pair in pairs if not pair.control)
    assert all(pair.paraphrase != pair.a for pair in pairs)
