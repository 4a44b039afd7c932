"""The alpha profile, against brute force in float64 and the envelope in exact fractions."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logit_amplification.engine.forward import next_logits, text_logits
from logit_amplification.logits.alpha_profile import ALPHAS, Change, alpha_at, profile

torch.manual_seed(0)
A = torch.randn(6, 3000) * 3
B = torch.randn(6, 3000) * 3
TEXT = [0, 5, 17, 99, 200, 2999]
PROMPT_A = "<|im_start|>user\nTalk like a pirate. What is tea?<|im_end|>\n<|im_start|>assistant\n"
PROMPT_B = "<|im_start|>user\nWhat is tea?<|im_end|>\n<|im_start|>assistant\n"


def curves(made):
    return torch.stack([made.kl_amplified_a, made.entropy, made.cross_entropy])


def brute_force(logits_a, logits_b, text, alphas):
    """(3, n, positions): the definitions, one alpha after the other."""
    a, b = logits_a.double(), logits_b.double()
    log_a = a.log_softmax(-1)
    rows = []
    for alpha in alphas:
        log_p = (a + alpha * (a - b)).log_softmax(-1)
        p = log_p.exp()
        cross = -log_p.gather(-1, torch.tensor(text)[:, None])[:, 0]
        rows.append(torch.stack([(p * (log_p - log_a)).sum(-1), -(p * log_p).sum(-1), cross]))
    return torch.stack(rows, 1)


def off(logits_a, logits_b, text, alphas=ALPHAS):
    """The largest error of the three curves at any alpha and position."""
    made = curves(profile(logits_a, logits_b, text, alphas))
    return float((made - brute_force(logits_a, logits_b, text, alphas)).abs().max())


def argmax_at(changes, alphas, start):
    """(n,): the argmax of one position, as its changes tell it."""
    tokens = torch.tensor([start, *(change.after for change in changes)])
    at = torch.tensor([change.alpha for change in changes], dtype=torch.float64)
    return tokens[torch.searchsorted(at, alphas, right=True)]


def demo_logits(demo, text):
    ids = [demo.tokenizer(prompt)["input_ids"] for prompt in (PROMPT_A, PROMPT_B)]
    return [text_logits(demo.model, context, text) for context in ids]


# ---------------------------------------------------------------------------------------- curves


def test_the_default_grid():
    assert len(ALPHAS) == 200 and ALPHAS[0] == -1 and ALPHAS[-1] == 8
    assert torch.tensor(ALPHAS).diff().allclose(torch.tensor(9 / 199))


def test_curves_are_those_of_brute_force_on_random_logits():
    assert off(A, B, TEXT) < 1e-6


def test_curves_and_argmaxes_are_those_of_brute_force_on_the_demo_model(demo):
    text = demo.tokenizer("Tea is a drink, matey")["input_ids"][:4]
    a, b = demo_logits(demo, text)
    assert off(a, b, text) < 1e-6
    tokens = torch.stack([(a + x * (a.double() - b)).argmax(-1) for x in (*ALPHAS, 0.0)])
    expected = (tokens[:-1] != tokens[-1]).double().mean(1)
    made = profile(a, b, text)
    assert expected.max() > 0
    assert torch.equal(made.changed_share(), expected)


@pytest.mark.parametrize(
    "alphas",
    [[1.0], [3.0, -2.5, 0.1, 7.77, 0.0], [2.0, 2.5], [-4.0, -3.0], [64.0, 0.5, 20.0, -1.0, 1e-9]],
    ids=["one", "unsorted", "without 0", "negative", "wide"],
)
def test_any_grid_will_do(alphas):
    assert off(A, B, TEXT, alphas) < 1e-6
    assert profile(A, B, TEXT, alphas).alphas.tolist() == alphas


def test_logits_far_apart_neither_overflow_nor_vanish():
    assert off(40 * A[:3], 40 * B[:3], TEXT[:3], [-1.0, 0.0, 0.3, 8.0]) < 1e-6


def test_alpha_zero_is_a_and_alpha_minus_one_is_b():
    made = profile(A, B, TEXT, [-1.0, 0.0, 8.0])
    a, b = (torch.distributions.Categorical(logits=x.double()) for x in (A, B))
    assert made.kl_amplified_a[1].abs().max() < 1e-7
    for row, expected in enumerate((b, a)):
        assert torch.allclose(made.entropy[row], expected.entropy(), atol=1e-6)
        surprise = -expected.log_prob(torch.tensor(TEXT))
        assert torch.allclose(made.cross_entropy[row], surprise, atol=1e-6)


def test_kl_never_falls_from_alpha_zero_and_is_never_negative():
    kl = profile(A, B, TEXT).kl_amplified_a
    assert (kl >= 0).all()
    upwards = kl[torch.tensor(ALPHAS) >= 0]
    assert (upwards.diff(dim=0) > -1e-7).all() and (upwards[-1] > upwards[0] + 1).all()


def test_rounding_makes_no_kl_negative():
    assert (profile(A, B, TEXT, [-1.0, 0.0, 1.0]).kl_amplified_a >= 0).all()


def test_equal_contexts_have_no_divergence_and_no_changes():
    made = profile(A, A, TEXT)
    assert made.changes == []
    assert not made.changed_share().any()
    assert off(A, A, TEXT) < 1e-12


def test_logits_of_another_length_are_refused():
    with pytest.raises(ValueError, match="5 tokens need logits of as many rows"):
        profile(A, B, TEXT[:5])
    with pytest.raises(ValueError, match="3000"):
        profile(A, B[:, :7], TEXT)


# --------------------------------------------------------------------------------------- changes


@pytest.mark.parametrize(("rows", "vocab"), [(50, 7), (2, 20_000)])
def test_argmax_at_random_alphas_is_that_of_brute_force(rows, vocab):
    generator = torch.Generator().manual_seed(vocab)
    a, b = torch.randn(2, rows, vocab, generator=generator) * 3
    alphas = torch.rand(20_000 // rows, generator=generator, dtype=torch.float64) * 9 - 1
    made = profile(a, b, [0] * rows)
    assert len(made.changes) > rows
    for row in range(rows):
        line, slope = a[row].double(), a[row].double() - b[row].double()
        brute = [(line + x * slope).argmax() for x in alphas.tolist()]
        here = [change for change in made.changes if change.position == row]
        told = argmax_at(here, alphas, start=int(b[row].argmax()))
        assert torch.equal(told, torch.stack(brute))


def envelope(a, b, low, high):
    """The changes of one position in exact fractions, from the definition."""
    a, d = [Fraction(x) for x in a], [Fraction(x) - Fraction(y) for x, y in zip(a, b, strict=True)]
    points = {
        (a[v] - a[w]) / (d[w] - d[v]) for v, w in combinations(range(len(a)), 2) if d[v] != d[w]
    }
    inside = sorted({Fraction(low), *(x for x in points if low <= x <= high)})
    top = [max(range(len(a)), key=lambda v: (a[v] + x * d[v], d[v], -v)) for x in inside]
    steps = zip(inside[1:], top, top[1:], strict=False)
    return [Change(0, float(x), before, after) for x, before, after in steps if before != after]


NUMBERS = st.integers(-4, 4).map(float)  # so few that lines coincide and meet in one point
LINES = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6)


@given(lines=LINES, low=st.sampled_from([-1, -2, 0]), high=st.sampled_from([0, 1, 8]))
def test_changes_are_exact_also_where_lines_tie(lines, low, high):
    a, b = zip(*lines, strict=True)
    made = profile(torch.tensor([a]), torch.tensor([b]), [0], [float(low), float(high)])
    assert made.changes == envelope(a, b, low, high)


@given(lines=LINES, low=st.floats(-2, -0.01))
def test_changes_stay_inside_the_grid(lines, low):
    a, b = torch.tensor(lines).T
    changes = profile(100 + a[None], b[None], [0], [low, 3.0]).changes
    at = [change.alpha for change in changes]
    assert at == sorted(at) and all(low <= alpha <= 3 for alpha in at)


def test_changes_and_their_share_of_a_known_case():
    """Row 0: 1 overtakes 0 at alpha 0.5; row 1: the tie at alpha 0 goes to the steeper 2."""
    a = torch.tensor([[1.0, 0.0, -9.0], [0.0, -9.0, 0.0]])
    b = torch.tensor([[1.0, -2.0, -9.0], [0.0, -9.0, -1.0]])
    made = profile(a, b, [0, 0], [2.0, 0.25, 0.5, -0.5])
    assert made.changes == [Change(0, 0.5, 0, 1), Change(1, 0.0, 0, 2)]
    assert made.changed_share().tolist() == [0.5, 0.0, 0.5, 0.5]


def test_changes_are_counted_from_alpha_zero_on_a_grid_without_it():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, -2.0]])
    made = profile(a, b, [0], [2.0, 3.0])
    assert made.changes == [Change(0, 0.5, 0, 1)]
    assert made.changed_share().tolist() == [1.0, 1.0]
    made = profile(b, a, [0], [-3.0, -2.0])
    assert made.changes == [Change(0, -1.5, 1, 0)]
    assert made.changed_share().tolist() == [1.0, 1.0]


# --------------------------------------------------------------------------------- text and target


@pytest.mark.parametrize("text", [[7], [7, 60, 33, 2, 200, 60]], ids=len)
def test_text_logits_are_those_of_one_step_after_the_other(tiny, text):
    ids, cache, steps = [1, 5, 9, 33, 60], None, []
    fed = ids
    for token in text:
        logits, cache = next_logits(tiny.model, fed, cache)
        steps.append(logits)
        fed = [token]
    made = text_logits(tiny.model, ids, text)
    assert made.dtype == torch.float32 and made.is_inference()
    assert torch.allclose(made, torch.cat(steps), atol=1e-4)


def test_the_alpha_of_a_target_is_linear_between_the_grids_values():
    alphas, kl = [4.0, -1.0, 2.0, 1.0], [3.0, 9.0, 1.0, 0.5]
    assert alpha_at(alphas, kl, 2.0) == 3.0
    assert alpha_at(alphas, kl, 0.5) == 1.0
    assert alpha_at(alphas, kl, 0.125) == 0.25  # from KL = 0 at alpha 0, which the grid lacks
    assert alpha_at(torch.tensor(alphas), torch.tensor(kl), 3.0) == 4.0


def test_a_target_out_of_reach_is_nan():
    assert math.isnan(alpha_at([-1.0, 0.0, 1.0], [9.0, 0.0, 1.0], 1.001))
    assert math.isnan(alpha_at([-1.0], [9.0], 1.0))


def test_a_target_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"target = 0\.0"):
        alpha_at([1.0], [1.0], 0.0)


# ------------------------------------------------------------------------------------------ time


def test_two_hundred_alphas_cost_less_than_three_times_one(demo):
    text = (demo.tokenizer("Tea is a drink made of leaves and hot water. ")["input_ids"] * 9)[:100]

    def seconds(alphas):
        start = time.perf_counter()
        profile(*demo_logits(demo, text), text, alphas)
        return time.perf_counter() - start

    one, many = (min(seconds(alphas) for _ in range(3)) for alphas in ([1.0], ALPHAS))
    assert len(text) == 100
    assert many < 3 * one
