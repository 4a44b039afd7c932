"""The measures, against torch's own distributions and against texts whose numbers are known."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from logit_amplification.logits.measures import measure_step, measure_text
from logit_amplification.logits.sampling import Draw
from logit_amplification.logits.vocabulary import PER_TOKEN

torch.manual_seed(0)
A = torch.randn(6, 400) * 3
B = torch.randn(6, 400) * 3
AMPLIFIED = A + 1.5 * (A - B)
TOKENS = torch.tensor([0, 5, 17, 99, 200, 399])


def drawn(tokens):
    return Draw(tokens, -torch.arange(1.0, len(tokens) + 1))


def measured(logits_a=A, logits_b=B, amplified=AMPLIFIED, tokens=TOKENS):
    values = measure_step(logits_a, logits_b, amplified, drawn(tokens))
    return dict(zip(PER_TOKEN, values.T, strict=True))


def close(left, right):
    return torch.allclose(left, right, rtol=1e-4, atol=1e-5)


def test_divergences_and_entropy_are_those_of_torch():
    step = measured()
    amplified, a, b = (Categorical(logits=x) for x in (AMPLIFIED, A, B))
    assert close(step["kl_amplified_a"], kl_divergence(amplified, a))
    assert close(step["kl_a_b"], kl_divergence(a, b))
    assert close(step["entropy"], amplified.entropy())


def test_likelihood_and_rank_are_those_under_a():
    step = measured()
    assert close(step["nll_a"], -Categorical(logits=A).log_prob(TOKENS))
    order = A.argsort(-1, descending=True)
    ranks = [(order[row] == token).nonzero().item() + 1 for row, token in enumerate(TOKENS)]
    assert step["rank_a"].tolist() == ranks


def test_a_favourite_has_rank_one_and_is_plausible():
    step = measured(tokens=A.argmax(-1))
    assert step["rank_a"].tolist() == [1.0] * 6
    assert step["implausible_share"].tolist() == [0.0] * 6


def test_a_token_below_a_tenth_of_the_top_probability_is_implausible():
    a = torch.tensor([[0.60, 0.061, 0.059, 0.28]]).log().expand(3, 4)
    step = measured(a, a, a, torch.tensor([1, 2, 3]))
    assert step["implausible_share"].tolist() == [0.0, 1.0, 0.0]


def test_range_and_spread_are_those_of_the_amplified_logits():
    step = measured()
    assert torch.equal(step["logit_min"], AMPLIFIED.amin(-1))
    assert torch.equal(step["logit_max"], AMPLIFIED.amax(-1))
    assert close(step["logit_std"], AMPLIFIED.std(-1, correction=0))


def test_tokens_that_an_arm_rules_out_count_nowhere():
    """-inf must give no NaN, and the numbers are those of the tokens that are left."""
    kept = torch.zeros(400, dtype=torch.bool)
    kept[TOKENS] = True
    masked = AMPLIFIED.masked_fill(~kept, -torch.inf)
    step = measured(amplified=masked)
    assert all(values.isfinite().all() for values in step.values())
    assert torch.equal(step["logit_min"], AMPLIFIED[:, TOKENS].amin(-1))
    assert close(step["logit_std"], AMPLIFIED[:, TOKENS].std(-1, correction=0))
    assert close(step["entropy"], Categorical(logits=AMPLIFIED[:, TOKENS]).entropy())
    p = masked.softmax(-1)
    expected = (p * (masked.log_softmax(-1) - A.log_softmax(-1))).nan_to_num().sum(-1)
    assert close(step["kl_amplified_a"], expected)


def test_no_amplification_is_no_divergence_exactly():
    step = measured(amplified=A + 0.0 * (A - B))
    assert step["kl_amplified_a"].tolist() == [0.0] * 6


def test_a_row_is_measured_by_itself():
    together = measure_step(A, B, AMPLIFIED, drawn(TOKENS))
    masked = AMPLIFIED.clone()
    masked[0, 7:] = -torch.inf  # another arm in the same batch
    assert torch.equal(measure_step(A, B, masked, drawn(TOKENS))[1:], together[1:])
    third = Draw(*(part[2:3] for part in drawn(TOKENS)))
    assert torch.equal(measure_step(A[2:3], B[2:3], AMPLIFIED[2:3], third)[0], together[2])


def test_gibberish_is_unlikely_and_implausible():
    """Pitfall P20: no value is filtered away, so nonsense must show in the numbers."""
    worst = measured(tokens=A.argmin(-1))
    best = measured(tokens=A.argmax(-1))
    assert (worst["nll_a"] > best["nll_a"] + 5).all()
    assert worst["implausible_share"].tolist() == [1.0] * 6


def test_text_measures_of_a_known_text():
    text = measure_text("abcab", [1, 2, 3, 1, 2])
    assert text["n_characters"] == 5
    assert text["distinct_1"] == pytest.approx(3 / 5)
    assert text["distinct_2"] == pytest.approx(3 / 4)
    assert text["repeated_4gram_share"] == 0


def test_a_loop_repeats_nearly_all_its_4_grams():
    assert measure_text("", [1, 2] * 50)["repeated_4gram_share"] == pytest.approx(1 - 2 / 97)


def test_a_text_too_short_for_a_measure_has_none():
    assert measure_text("", [])["distinct_1"] is None
    assert measure_text("x", [1])["distinct_2"] is None
    assert measure_text("xyz", [1, 2, 3])["repeated_4gram_share"] is None


def test_measures_stay_finite_at_alpha_64():
    extreme = A + 64 * (A - B)
    assert all(v.isfinite().all() for v in measured(amplified=extreme).values())
    assert math.isfinite(float(measured(amplified=extreme)["kl_amplified_a"].max()))


def test_what_an_api_would_have_shown_of_a_step():
    """A's list is ids 0 to 19, B's 10 to 29; half of A's mass is evenly in its list."""
    a, b = torch.full((3, 120), math.log(0.5 / 100)), torch.full((3, 120), math.log(0.1 / 100))
    a[:, :20] = math.log(0.5 / 20)
    b[:, 10:30] = math.log(0.9 / 20)
    step = measured(a, b, a, torch.tensor([5, 25, 40]))
    assert close(step["outside_top20_a"], torch.full((3,), 0.5))
    assert close(step["outside_top20_b"], torch.full((3,), 0.1))
    assert step["overlap_top20"].tolist() == [10, 10, 10]
    assert step["reachable_top20"].tolist() == [1, 1, 0]


def test_a_vocabulary_of_fewer_than_twenty_is_seen_whole():
    a = torch.randn(2, 7)
    step = measured(a, a, a, torch.tensor([0, 6]))
    assert step["overlap_top20"].tolist() == [7, 7] and step["reachable_top20"].tolist() == [1, 1]
    assert step["outside_top20_a"].max() < 1e-6


def test_the_likelihood_under_b_and_of_the_draw_are_kept():
    found = measured()
    expected = -B.log_softmax(-1)[range(len(TOKENS)), TOKENS]
    torch.testing.assert_close(found["nll_b"], expected)
    assert found["logprob_sampled"].tolist() == drawn(TOKENS).logprobs.tolist()
