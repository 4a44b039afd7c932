"""The labelled answers, and how they are scored on a model."""

import collections

import pytest

from logit_amplification.engine.forward import next_logits
from logit_amplification.evaluation import outcomes
from logit_amplification.evaluation.calibration import (
    READ,
    calibrate,
    error_rates,
    read_generated,
    read_labelled,
    readings,
)
from logit_amplification.prompts.files import read_pairs

USUAL = 1.2  # nats: about that of the demo model's own text
GENERATED = read_generated()


def test_the_written_answers_are_refusals_and_what_only_looks_so():
    answers = read_labelled()
    assert len({answer["id"] for answer in answers}) == len(answers) > 200
    assert {answer["label"] for answer in answers} == {"refusal", "other"}
    after = {answer["kind"] for answer in answers if answer["held_out"]}
    assert {"refusal", "not_refusal", "plain", "language"} <= after


def test_three_hundred_answers_are_labelled_twice_and_a_third_is_held_out():
    assert len({answer["id"] for answer in GENERATED}) == len(GENERATED) == 300
    assert sum(answer["held_out"] for answer in GENERATED) == 100
    for answer in GENERATED:
        for reading in ("first", "second"):
            assert set(answer[reading]) == set(READ)
            assert answer[reading]["outcome"] in outcomes.LABELS
    arms = collections.Counter(answer["arm"] for answer in GENERATED)
    assert arms["full"] > 150 and len(arms) >= 4
    assert len({answer["alpha"] for answer in GENERATED}) >= 5


def test_the_labelled_generations_answer_built_in_prompts():
    pairs = {pair.id: pair for pair in read_pairs()}
    for answer in GENERATED:
        chat = {m["role"]: m["content"] for m in pairs[answer["pair_id"]].a}
        assert chat["user"] == answer["question"] and chat.get("system", "") == answer["system"]


def test_kappa_is_cohens():
    """Worked by hand: 4 of 5 alike, 0.48 alike by chance."""
    labels = [("yes", "yes"), ("yes", "yes"), ("no", "no"), ("yes", "no"), ("no", "no")]
    plain = {"outcome": "other", "tone": "neutral", "stance": "neither", "register": "formal"}
    answers = [
        {"answer": "Maybe.", "first": plain | {"hedged": one}, "second": plain | {"hedged": two}}
        for one, two in labels
    ]
    row = readings(answers).set_index("question").loc["hedged"]
    assert row["agreed"] == 0.8 and row["n_agreed"] == 4
    assert row["kappa"] == pytest.approx((0.8 - 0.48) / 0.52)


@pytest.fixture(scope="module")
def scored(demo):
    held_out = [answer for answer in GENERATED if answer["held_out"]]
    return calibrate(demo, held_out[::2] + read_labelled()[::6], USUAL)


def test_most_held_out_answers_are_scored_as_both_readings_say(scored):
    """What the scorer misses is reported, not promised: it must be far better than chance."""
    told = scored[scored["kind"] == "amplified"]
    wrong = told["found"] != told["label"]
    assert len(told) > 30 and wrong.mean() < 0.35
    other = told[told["label"] == "other"]
    assert (other["found"] == "incoherent").mean() < 0.2


def test_of_what_the_model_did_not_write_the_likelihood_is_left_out(scored):
    own = scored["kind"] == "amplified"
    assert scored.loc[own, "excess"].notna().all() and scored.loc[~own, "excess"].isna().all()


def test_an_answer_on_which_the_readings_differ_is_left_out(demo):
    differ = [answer for answer in GENERATED if answer["label"] is None]
    alike = next(answer for answer in GENERATED if answer["label"])
    assert differ and len(calibrate(demo, [*differ[:2], alike], USUAL)) == 1


def test_the_likelihood_is_that_of_reading_token_by_token(tiny):
    answer = next(a for a in GENERATED if a["label"] and a["system"] and len(a["answer"]) < 80)
    found = calibrate(tiny, [answer], 5.0).iloc[0]["nll_a"]
    text = f"{answer['system']}\n\n{answer['question']}"
    prompt = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
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
        assert row["lower"] - 1e-9 <= row["errors"] <= row["upper"] + 1e-9
