"""`generate`: the engine's answers to two texts, without settings and files."""

import pytest

from decoding import chat
from logit_amplification.errors import BadInput
from logit_amplification.prompts.pairs import PromptPair
from logit_amplification.sweeps.generate import generate
from logit_amplification.sweeps.sweep import sweep


def test_it_gives_what_a_sweep_of_the_same_pair_gives(tiny, settings):
    pair = PromptPair("generate", "x", chat("Tell me of a fox."), chat("Hi"))
    swept = sweep(tiny, [pair], settings).records
    options = {"alphas": settings.alphas, "samples": 2, "max_new_tokens": 6}
    made = generate(tiny, "Tell me of a fox.", list(pair.b), **options)
    assert [(one.alpha, one.sample, one.token_ids, one.text) for one in made] == [
        (r["alpha"], r["sample"], r["token_ids"], r["text"]) for r in swept
    ]
    assert made[0].measures == swept[0]["measures"]
    assert made[0].finish_reason == swept[0]["finish_reason"]


def test_alphas_are_those_that_are_asked_for(tiny):
    assert [one.alpha for one in generate(tiny, "x", "y", [2, 1, 2], max_new_tokens=2)] == [2, 1]
    assert [one.alpha for one in generate(tiny, "x", "y", 3, max_new_tokens=2)] == [3]


def test_a_rule_of_ones_own_and_an_arm_are_used(tiny):
    plain, other = (
        generate(tiny, "x", "y", [2], max_new_tokens=5, arm=arm)[0].token_ids
        for arm in ("full", "api_sentinel_top5")
    )
    only_b = generate(tiny, "x", "y", [2], max_new_tokens=5, rule=lambda a, b, alpha: b)
    assert plain != other
    assert only_b[0].token_ids == generate(tiny, "x", "y", [-1], max_new_tokens=5)[0].token_ids


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"alphas": ["much"]}, "ALPHAS ="),
        ({"alphas": 1000}, "ALPHAS = 1000"),
        ({"samples": 0}, r"SAMPLES = 0 \(argument\); allowed: a whole number from 1"),
        ({"arm": "half"}, "ARMS = 'half'"),
        ({"arm": "full,plausible"}, "ARMS = 'full,plausible'; allowed: one"),
        ({"temperature": -1}, "TEMPERATURE = -1"),
        ({"max_new_tokens": 600}, "exceed the model's context of 512 tokens"),
        ({"a": " "}, "generate, a: a message's content must be text that is not empty"),
        ({"b": []}, "generate, b: a list of messages is expected"),
        ({"b": 3}, "generate, b: a list of messages is expected"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tiny, changed, told):
    with pytest.raises(BadInput, match=told):
        generate(tiny, **{"a": "x", "b": "y"} | changed)


def test_another_programs_environment_does_not_matter(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMPLES", "many")
    (tmp_path / ".env").write_text("DATABASE=x\n")
    monkeypatch.setattr("logit_amplification.settings.ENV_FILES", (tmp_path / ".env",))
    assert len(generate(tiny, "x", "y", max_new_tokens=2)) == 2
