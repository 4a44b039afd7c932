"""The draw: nucleus against transformers' own, the inverse CDF, the random numbers."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from logit_amplification.locations import ROOT
from logit_amplification.logits import sampling
from logit_amplification.logits.sampling import draw, keep_top_k, make_sampler, nucleus, uniforms


def kept_ids(logits, top_p):
    ids, probabilities = nucleus(logits, top_p)
    return [set(row[p > 0].tolist()) for row, p in zip(ids, probabilities, strict=True)]


def test_the_token_that_crosses_top_p_stays():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept_ids(logits, 0.7) == [{0, 1}]
    assert kept_ids(logits, 0.81) == [{0, 1, 2}]
    assert kept_ids(logits, 0.01) == [{0}]


def test_top_p_one_keeps_every_token():
    assert kept_ids(torch.randn(1, 300), 1.0) == [set(range(300))]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_nucleus_is_that_of_transformers(top_p, scale):
    """Flat rows need more than the first 256 candidates, peaked ones do not."""
    torch.manual_seed(0)
    logits = scale * torch.randn(8, 3000, dtype=torch.float64)
    theirs = TopPLogitsWarper(top_p)(None, logits.clone()) > -torch.inf
    assert kept_ids(logits, top_p) == [set(row.nonzero()[:, 0].tolist()) for row in theirs]


def test_a_flat_row_beside_a_peaked_one_changes_neither(monkeypatch):
    torch.manual_seed(0)
    rows = torch.stack([torch.randn(2000) * 8, torch.randn(2000) * 0.01])
    together = kept_ids(rows, 0.9)
    assert together == [kept_ids(row[None], 0.9)[0] for row in rows]
    monkeypatch.setattr(sampling, "FIRST_WIDTH", 2000)  # a full sort from the start
    assert kept_ids(rows, 0.9) == together


def test_among_equally_likely_tokens_the_smaller_id_comes_first():
    assert kept_ids(torch.zeros(1, 1000), 0.25) == [set(range(250))]


def test_top_k_is_that_of_transformers():
    torch.manual_seed(0)
    logits = torch.randn(4, 100)
    assert torch.equal(keep_top_k(logits, 7), TopKLogitsWarper(7)(None, logits.clone()))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.8), (5, 1.0), (5, 0.8)])
def test_draws_follow_the_truncated_distribution(top_k, top_p):
    """Evenly spaced uniform numbers meet every token in proportion to its probability."""
    torch.manual_seed(3)
    logits = torch.randn(1, 20)
    count = 20_000
    spaced = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = make_sampler(0.7, top_k, top_p)(logits.expand(count, 20), spaced).tokens
    expected = logits.double() / 0.7
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    shares = torch.bincount(drawn, minlength=20) / count
    assert torch.allclose(shares.double(), expected.softmax(-1)[0], atol=2e-4)


def test_temperature_zero_is_argmax_whatever_the_number():
    torch.manual_seed(0)
    logits = torch.randn(5, 30)
    for number in (0.0, 0.4, 0.999999):
        drawn = make_sampler(0.0, 3, 0.5)(logits, torch.full((5,), number)).tokens
        assert torch.equal(drawn, logits.argmax(-1))


def test_the_draw_is_the_inverse_cdf():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    for uniform, index in [
        (0.0, 1),
        (0.2499, 1),
        (0.25, 3),
        (0.7499, 3),
        (0.75, 4),
        (1 - 2**-53, 4),
    ]:
        assert draw(probabilities, torch.tensor([uniform], dtype=torch.float64)).item() == index


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50).filter(lambda p: sum(p) > 0),
    st.floats(0, 1, exclude_max=True),
)
def test_a_token_of_probability_zero_is_never_drawn(probabilities, uniform):
    row = torch.tensor([probabilities])
    index = draw(row, torch.tensor([uniform], dtype=torch.float64)).item()
    assert 0 <= index < len(probabilities) and row[0, index] > 0


# --------------------------------------------------------------------------------- random numbers


def test_the_uniform_numbers_are_in_range_and_look_uniform():
    numbers = uniforms(0, "pair", 0, 20_000)
    assert numbers.dtype == torch.float64 and numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01 and abs(numbers.var() - 1 / 12) < 0.002


def test_a_longer_list_begins_with_the_shorter_one():
    assert torch.equal(uniforms(5, "pair", 2, 10), uniforms(5, "pair", 2, 100)[:10])


@pytest.mark.parametrize("other", [(1, "pair", 0), (0, "other", 0), (0, "pair", 1)])
def test_seed_pair_and_sample_each_give_other_numbers(other):
    assert not torch.equal(uniforms(0, "pair", 0, 5), uniforms(*other, 5))


def test_another_process_draws_the_same_numbers():
    """Python's own hash() is salted per process; ours must not be."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'code')!r}); "
        "from logit_amplification.logits.sampling import uniforms; "
        "print(uniforms(3, 'ä pair', 1, 4).tolist())"
    )
    for salt in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
        )
        assert told.stdout.strip() == str(uniforms(3, "ä pair", 1, 4).tolist()), told.stderr


def by_enumeration(logits, temperature, top_k, top_p):
    """The distribution over a toy vocabulary, token by token, in Python's own numbers."""
    weights = [math.exp(value / temperature) for value in logits]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    order = order[: top_k or len(order)]
    total, mass, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if mass < top_p * total:
            kept.append(token)
        mass += weights[token]
    share = sum(weights[token] for token in kept)
    return {token: weights[token] / share for token in kept}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("top_p", [0.6, 0.93, 1.0])
def test_a_draws_log_probability_is_that_of_its_distribution(temperature, top_k, top_p):
    logits = [0.1, 2.0, -1.0, 1.4, 0.7, -2.2, 1.1]
    expected = by_enumeration(logits, temperature, top_k, top_p)
    spaced = torch.linspace(0, 1 - 1e-9, 3000, dtype=torch.float64)
    rows = torch.tensor(logits).expand(len(spaced), -1)
    drawn = make_sampler(temperature, top_k, top_p)(rows, spaced)
    assert set(drawn.tokens.tolist()) == set(expected)
    for token, logprob in zip(*(part.tolist() for part in drawn), strict=True):
        assert logprob == pytest.approx(math.log(expected[token]), abs=1e-5)
    for token, probability in expected.items():  # and it is drawn as often as that says
        share = (drawn.tokens == token).double().mean()
        assert share == pytest.approx(probability, abs=1e-3)


def test_what_is_certain_has_log_probability_zero():
    drawn = make_sampler(0.0)(torch.randn(4, 9), torch.zeros(4))
    assert drawn.logprobs.tolist() == [0.0] * 4
