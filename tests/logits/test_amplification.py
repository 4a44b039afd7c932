"""The rule, on vectors made by hand and on any vectors."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from logit_amplification.logits.amplification import amplify

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
