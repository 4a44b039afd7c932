"""The labelled answers, and how they are scored on a model."""

import pytest

from logit_amplification.engine.forward import next_logits
from logit_amplification.evaluation import outcomes
from logit_amplification.evaluation.calibration import calibrate, error_rates, read_labelled


def test_the_labelled_answers_are_of_every_kind_and_of_no_other_label():
    answers = read_labelled()
    assert len({answer["id"] for answer in answers}) == len(answers) > 250
    assert {answer["label"] for answer in answers} == set(outcomes.LABELS)
    after = [answer for answer in answers if answer["held_out"]]
    assert {"refusal", "not_refusal", "plain", "language", "decayed", "salad"} <= {
        answer["kind"] for answer in after
    }


def few(*ids):
    return [answer for answer in read_labelled() if answer["id"] in ids]


@pytest.fixture(scope="module")
def scored(demo):
    kinds = ("plain", "salad", "decayed", "refusal", "not_refusal")
    answers = read_labelled()
    chosen = [a for kind in kinds for a in answers if a["kind"] == kind and a["held_out"]]
    chosen = [a for n, a in enumerate(chosen) if n % 4 == 0]
    return calibrate(demo, chosen)


def test_real_answers_and_broken_ones_are_told_apart_on_the_demo_model(scored):
    """Of those written after the limits were fixed, at most one in twenty is wrong.

    Refusals stand apart: what the phrase list misses is reported, not promised.
    """
    told = scored[scored["kind"] != "refusal"]
    assert (told["found"] != told["label"]).mean() <= 0.05
    broken = told[told["label"] == "incoherent"]
    assert len(broken) >= 15 and (broken["found"] == "incoherent").all()


def test_plain_answers_are_broken_in_three_ways(scored):
    kinds = scored["kind"].value_counts()
    assert kinds["plain"] == kinds["shuffled words"] == kinds["loop"] == kinds["random tokens"]
    assert (scored.loc[scored["kind"] == "random tokens", "nll_a"] > 8).all()
    assert (scored.loc[scored["kind"] == "loop", "repeated_4gram_share"] > 0.5).all()


def test_the_likelihood_is_that_of_reading_token_by_token(tiny):
    (answer,) = few("short-bare-number")
    found = calibrate(tiny, [answer]).iloc[0]["nll_a"]
    chat = [{"role": "user", "content": answer["question"]}]
    prompt = tiny.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tiny.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    losses = []
    for token in tiny.tokenizer(answer["answer"], add_special_tokens=False)["input_ids"]:
        logits, _ = next_logits(tiny.model, ids)
        losses.append(-float(logits.log_softmax(-1)[0, token]))
        ids = [*ids, token]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_error_rates_count_what_was_called_what(scored):
    rates = error_rates(scored)
    called = rates[[f"called {label}" for label in outcomes.LABELS]].sum(axis=1)
    assert (called == rates["n"]).all() and rates["n"].sum() == len(scored)
    for _, row in rates.iterrows():
        right = row[f"called {row['is']}"]
        assert row["errors"] == pytest.approx(1 - right / row["n"])
        assert row["lower"] <= row["errors"] <= row["upper"]
