"""The rule and its arms, on vectors made by hand and on any vectors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logit_amplification.amplification import ARMS, amplify
from logit_amplification.settings import ARM_NAMES

A = torch.tensor([2.0, 1.0, 0.0])
B = torch.tensor([1.0, 1.0, 1.0])

numbers = st.floats(-30, 30, width=32)
vectors = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(numbers, min_size=n, max_size=n), st.lists(numbers, min_size=n, max_size=n)
    )
)
alphas = st.floats(-2, 8, width=32)


def test_the_rule_is_a_plus_alpha_times_a_minus_b():
    assert amplify(A, B, 2.0).tolist() == [4.0, 1.0, -2.0]


def test_a_token_that_a_ranks_last_can_win():
    """The whole vocabulary takes part: no hidden top-k."""
    a = torch.zeros(1000)
    a[0], a[999] = 5.0, -5.0
    b = a.clone()
    b[999] = -25.0
    assert amplify(a, b, 1.0).argmax() == 999


@given(vectors)
def test_alpha_zero_is_a_alone(ab):
    a, b = map(torch.tensor, ab)
    assert torch.equal(amplify(a, b, 0.0), a)


@given(vectors)
def test_alpha_minus_one_is_b_alone(ab):
    a, b = map(torch.tensor, ab)
    assert torch.allclose(amplify(a, b, -1.0), b, atol=1e-4)


@given(vectors, alphas)
def test_equal_contexts_make_alpha_irrelevant(ab, alpha):
    a = torch.tensor(ab[0])
    assert torch.equal(amplify(a, a, alpha), a)


@given(vectors, alphas, numbers)
def test_a_constant_added_to_b_changes_no_probability(ab, alpha, constant):
    a, b = map(torch.tensor, ab)
    shifted = amplify(a, b + constant, alpha).softmax(-1)
    assert torch.allclose(shifted, amplify(a, b, alpha).softmax(-1), atol=1e-4)


@given(vectors, alphas)
def test_it_is_guidance_with_scale_one_plus_alpha(ab, alpha):
    """transformers: scores = scale * (log p_a - log p_b) + log p_b."""
    a, b = (torch.tensor(v).log_softmax(-1) for v in ab)
    guided = (1 + alpha) * (a - b) + b
    assert torch.allclose(
        guided.softmax(-1), amplify(*map(torch.tensor, ab), alpha).softmax(-1), atol=1e-4
    )


@given(vectors, alphas)
def test_it_is_context_aware_decoding_with_weights_one_plus_alpha_and_minus_alpha(ab, alpha):
    a, b = map(torch.tensor, ab)
    assert torch.allclose((1 + alpha) * a - alpha * b, amplify(a, b, alpha), atol=1e-3)


def test_the_rule_takes_a_column_of_alphas():
    rows = amplify(A.expand(2, 3), B.expand(2, 3), torch.tensor([[0.0], [2.0]]))
    assert rows.tolist() == [[2.0, 1.0, 0.0], [4.0, 1.0, -2.0]]


# ------------------------------------------------------------------------------------------ arms


def test_settings_allow_exactly_the_arms_that_exist():
    assert set(ARMS) == set(ARM_NAMES)


def test_the_full_arm_is_the_rule():
    assert torch.equal(ARMS["full"](amplify, A, B, 0.7), amplify(A, B, 0.7))


def test_the_plausible_arm_keeps_tokens_with_a_tenth_of_the_top_probability():
    a = torch.tensor([0.60, 0.061, 0.059, 0.28]).log()
    b = torch.tensor([0.25, 0.25, 0.25, 0.25]).log()
    kept = ARMS["plausible"](amplify, a, b, 1.0) > -torch.inf
    assert kept.tolist() == [True, True, False, True]


def api_example():
    """25 tokens: A's list holds ids 0-19 and falls by id, B's holds 5-24 and rises."""
    a = -torch.arange(25.0)
    b = torch.arange(25.0)
    return a.log_softmax(-1), b.log_softmax(-1)


def test_api_floor_fills_a_missing_value_with_the_smallest_returned_one():
    a, b = api_example()
    amplified = ARMS["api_floor"](amplify, a, b, 1.0)
    assert amplified[3] == pytest.approx(float(2 * a[3] - b[5]))  # not in B's list: B's smallest
    assert amplified[22] == pytest.approx(float(2 * a[19] - b[22]))  # not in A's list: A's smallest
    assert amplified[10] == pytest.approx(float(2 * a[10] - b[10]))  # in both


def test_api_sentinel_fills_a_missing_value_with_minus_9999():
    a, b = api_example()
    amplified = ARMS["api_sentinel"](amplify, a, b, 1.0)
    assert amplified[3] == pytest.approx(float(2 * a[3]) + 9999.0, rel=1e-6)
    assert amplified[22] == pytest.approx(-2 * 9999.0 - float(b[22]), rel=1e-6)


@pytest.mark.parametrize("arm", ["api_floor", "api_sentinel"])
def test_the_api_arms_know_no_token_outside_both_lists(arm):
    torch.manual_seed(0)
    a, b = torch.randn(200), torch.randn(200)
    kept = (ARMS[arm](amplify, a, b, 0.5) > -torch.inf).nonzero()[:, 0].tolist()
    assert set(kept) == set(a.topk(20).indices.tolist()) | set(b.topk(20).indices.tolist())


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_treats_each_row_by_itself(arm):
    torch.manual_seed(1)
    a, b = torch.randn(3, 50), torch.randn(3, 50)
    alphas = torch.tensor([[0.0], [1.0], [3.0]])
    together = ARMS[arm](amplify, a, b, alphas)
    for row in range(3):
        alone = ARMS[arm](amplify, a[row], b[row], float(alphas[row]))
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_uses_the_rule_it_is_given(arm):
    constant = ARMS[arm](lambda a, b, alpha: torch.full_like(a, math.pi), A, B, 1.0)
    assert set(constant.tolist()) <= {torch.tensor(math.pi).item(), -math.inf}
