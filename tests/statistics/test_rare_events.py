"""The rate at alpha 0 from draws at all alphas, held to exact enumeration on a toy model."""

import itertools
import math
from dataclasses import replace

import numpy
import pytest

from logit_amplification.statistics.rare_events import Draws, estimate

VOCABULARY, STEPS = 4, 5
LEVELS = (0.0, 1.0, 2.0)
EVENT = 3  # a rare token under A; B has even less of it
GENERATOR = numpy.random.default_rng(7)
RARE = numpy.array([0, 0, 0, 1.0])
LOGITS_A = GENERATOR.normal(0, 1, (VOCABULARY + 1, VOCABULARY)) - 5.0 * RARE
LOGITS_B = LOGITS_A + GENERATOR.normal(0, 0.2, LOGITS_A.shape) - 1.5 * RARE


def log_softmax(logits):
    return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))


# By level, the state (the last token, or the start) and the next token.
LOG_P = numpy.stack([log_softmax(LOGITS_A + a * (LOGITS_A - LOGITS_B)) for a in LEVELS])


def log_p_of(text):
    states = [VOCABULARY, *text[:-1]]
    return LOG_P[:, states, list(text)].sum(1)


def decided(text):
    """The text up to where the event is in it; all of it where it is not."""
    return text[: text.index(EVENT) + 1] if EVENT in text else text


def truth():
    """The probability at alpha 0 that the token is anywhere in the text, over all 1,024 texts."""
    texts = itertools.product(range(VOCABULARY), repeat=STEPS)
    return sum(math.exp(log_p_of(text)[0]) for text in texts if EVENT in text)


CUMULATED = numpy.exp(LOG_P).cumsum(-1)


def drawn(generator, per_level, *, common=False):
    """Texts of every level, and what an estimator is given of them.

    common: those of a sample have the same random numbers at every level, as in a sweep.
    """
    texts, alphas, samples = [], [], []
    shared = generator.random((per_level, STEPS))
    for place, alpha in enumerate(LEVELS):
        for sample, own in enumerate(generator.random((per_level, STEPS))):
            text, state = [], VOCABULARY
            for number in shared[sample] if common else own:
                state = min(VOCABULARY - 1, int((CUMULATED[place, state] < number).sum()))
                text.append(state)
            texts.append(text)
            alphas.append(alpha)
            samples.append(sample)
    hits = numpy.array([EVENT in text for text in texts])
    log_p = numpy.array([log_p_of(decided(text)) for text in texts])
    numbers = numpy.array(samples) if common else numpy.empty(0)
    return Draws("f", LEVELS, numpy.array(alphas), hits, log_p, numbers)


def test_the_event_is_rare_and_amplification_brings_it_up():
    few = drawn(numpy.random.default_rng(0), 400)
    shares = [few.hits[few.alphas == alpha].mean() for alpha in LEVELS]
    assert truth() < 0.05 < 5 * truth() < shares[2]


def test_it_is_unbiased_and_its_interval_holds_the_truth_as_often_as_it_says():
    generator, found = numpy.random.default_rng(1), []
    for _ in range(2000):
        found.append(estimate([drawn(generator, 60)]))
    errors = numpy.array([one.estimate for one in found]) - truth()
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(len(errors))
    held = numpy.mean([one.lower <= truth() <= one.upper for one in found])
    assert 0.93 <= held <= 0.97


def test_common_random_numbers_are_resampled_together():
    """Else the interval would be that of independent draws, and too narrow."""
    generator, held, apart = numpy.random.default_rng(11), [], []
    for _ in range(600):
        one = drawn(generator, 60, common=True)
        found = estimate([one])
        held.append(found.lower <= truth() <= found.upper)
        narrow = estimate([replace(one, samples=numpy.empty(0))])
        apart.append((narrow.upper - narrow.lower) / (found.upper - found.lower))
    assert 0.92 <= numpy.mean(held) <= 0.98
    assert numpy.mean(apart) < 0.95


def test_control_variates_lower_the_error_and_leave_the_mean():
    generator, with_them, without = numpy.random.default_rng(12), [], []
    for _ in range(300):
        one = drawn(generator, 60)
        with_them.append(estimate([one]).estimate)
        without.append(numpy.where(one.hits, one.weights, 0).mean())
    rmse = [(((numpy.array(found) - truth()) ** 2).mean()) ** 0.5 for found in (with_them, without)]
    assert rmse[0] < 0.9 * rmse[1]


def test_it_errs_less_than_counting_the_same_number_of_texts():
    generator = numpy.random.default_rng(2)
    found = [estimate([drawn(generator, 60)]) for _ in range(150)]
    errors = numpy.array([one.estimate for one in found]) - truth()
    counted = generator.binomial(180, truth(), 5000) / 180 - truth()
    assert (errors**2).mean() ** 0.5 < 0.5 * (counted**2).mean() ** 0.5


def test_the_mean_weight_is_one_and_no_weight_is_above_the_bound():
    one = drawn(numpy.random.default_rng(3), 2000)
    assert one.weights.mean() == pytest.approx(1.0, abs=0.05)
    assert one.weights.max() <= len(LEVELS) + 1e-9


def test_a_sample_of_the_others_stands_for_all_of_them():
    """Hits are all known and weigh little where alpha brought them up: that must not bias."""
    whole = drawn(numpy.random.default_rng(6), 600)
    some = whole.log_p.copy()
    others = numpy.flatnonzero(~whole.hits)
    some[numpy.random.default_rng(0).permutation(others)[200:]] = numpy.nan
    full = estimate([whole])
    part = estimate([Draws("f", LEVELS, whole.alphas, whole.hits, some)])
    plain = numpy.where(whole.hits, whole.weights, 0).mean()  # without control variates
    assert part.estimate == pytest.approx(plain, rel=1e-12)
    assert part.estimate == pytest.approx(full.estimate, rel=0.2)
    assert part.verdict == full.verdict == "estimated"
    assert part.mean_weight == pytest.approx(full.mean_weight, abs=0.08)
    assert part.ess == pytest.approx(full.ess, rel=0.1)


def test_draws_at_alpha_0_alone_are_counting():
    log_p = numpy.zeros((50, 1))
    hits = numpy.arange(50) < 8
    found = estimate([Draws("f", (0.0,), numpy.zeros(50), hits, log_p)])
    assert found.estimate == pytest.approx(8 / 50) and found.counted == pytest.approx(8 / 50)
    assert found.ess_hits == pytest.approx(8) and found.verdict == "estimated"
    assert found.lower < 0.16 < found.upper


def test_without_a_hit_there_is_an_upper_bound_and_no_estimate():
    one = drawn(numpy.random.default_rng(0), 20)
    none = Draws("f", LEVELS, one.alphas, one.hits & False, one.log_p)
    found = estimate([none])
    assert (found.estimate, found.lower, found.upper) == (0.0, 0.0, 3 / 20)
    assert found.verdict.startswith("not estimable: no hit")


def test_too_few_effective_hits_are_told():
    one = drawn(numpy.random.default_rng(4), 60)
    few = numpy.zeros_like(one.hits)
    few[numpy.flatnonzero(one.hits)[:2]] = True
    found = estimate([Draws("f", LEVELS, one.alphas, few, one.log_p)])
    assert "effective hits" in found.verdict and found.estimate > 0


def test_log_probabilities_that_are_not_those_of_the_draws_are_found_out():
    """The free check: known normalisers make the mean weight 1."""
    one = drawn(numpy.random.default_rng(5), 200)
    wrong = one.log_p + numpy.array([1.5, 0.0, 0.0])
    found = estimate([Draws("f", LEVELS, one.alphas, one.hits, wrong)])
    assert "the mean weight is" in found.verdict


def test_pairs_of_one_family_count_once():
    def all_hits(share, family):
        hits = numpy.arange(40) < 40 * share
        return Draws(family, (0.0,), numpy.zeros(40), hits, numpy.zeros((40, 1)))

    found = estimate([all_hits(0.5, "f"), all_hits(0.5, "f"), all_hits(1.0, "g")])
    assert found.estimate == pytest.approx(0.75)


def test_one_sample_of_one_pair_has_no_interval():
    levels = tuple(float(n) for n in range(20))
    log_p = numpy.zeros((20, 20))
    one = Draws("f", levels, numpy.array(levels), numpy.arange(20) < 10, log_p, numpy.zeros(20))
    found = estimate([one])
    assert found.verdict.startswith("not estimable") and found.upper <= 1


def test_a_rate_near_one_stays_within_one():
    one = drawn(numpy.random.default_rng(9), 100)
    found = estimate([replace(one, hits=numpy.ones_like(one.hits))])
    assert found.lower <= found.estimate <= found.upper <= 1
