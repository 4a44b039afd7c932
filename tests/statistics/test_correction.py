"""Rates corrected for the scorer's errors: right on average, and as wide as the errors ask for."""

import math

import numpy
import pandas
import pytest

from logit_amplification.statistics import intervals
from logit_amplification.statistics.correction import Errors, corrected, errors_of, is_measurable

GOOD = Errors(found=90, of=100, false_alarms=5, of_others=100)


def test_the_middle_is_rogan_and_gladens():
    share = intervals.share(numpy.repeat([1.0, 0.0], [60, 140]), 200)  # 0.3 of 200
    found = corrected(share, GOOD)
    assert found.mean == pytest.approx((0.3 - 0.05) / (0.9 - 0.05), abs=0.02)
    assert found.lower < found.mean < found.upper


def test_the_interval_carries_the_errors():
    """Wider than the share's own, and wider the fewer answers were labelled."""
    share = intervals.share(numpy.repeat([1.0, 0.0], [60, 140]), 200)
    few = corrected(share, Errors(9, 10, 1, 20))
    many = corrected(share, Errors(900, 1000, 50, 1000))
    assert few.upper - few.lower > many.upper - many.lower > share.upper - share.lower


def test_a_share_that_false_alarms_explain_cannot_be_told_from_zero():
    share = intervals.share(numpy.repeat([1.0, 0.0], [4, 96]), 100)
    found = corrected(share, Errors(8, 10, 4, 80))
    assert found.lower < 0.005 and not is_measurable([found])
    assert is_measurable([corrected(intervals.share(numpy.ones(50) * 0.5, 50), GOOD)])


def test_without_labels_or_with_a_useless_scorer_there_is_no_rate():
    share = intervals.share(numpy.repeat([1.0, 0.0], [4, 96]), 100)
    for errors in (Errors(0, 0, 4, 80), Errors(8, 10, 0, 0), Errors(2, 10, 16, 80)):
        assert math.isnan(corrected(share, errors).mean)


def test_it_holds_the_truth_as_often_as_it_says():
    """Simulated: rate, sensitivity and false alarms are drawn, labelled and observed anew."""
    generator = numpy.random.default_rng(0)
    held = 0
    for _ in range(300):
        rate, sensitivity, alarms = generator.uniform(0.2, 0.8), 0.85, 0.1
        errors = Errors(generator.binomial(60, sensitivity), 60, generator.binomial(90, alarms), 90)
        called = generator.random(80) < rate * sensitivity + (1 - rate) * alarms
        found = corrected(intervals.share(called.astype(float), 80), errors)
        held += found.lower <= rate <= found.upper
    assert 0.92 <= held / 300 <= 0.99


def test_errors_are_counted():
    scored = pandas.DataFrame(
        {
            "label": ["incoherent", "incoherent", "other", "refusal", "other"],
            "found": ["incoherent", "other", "other", "incoherent", "other"],
        }
    )
    assert errors_of(scored, "incoherent") == (1, 2, 1, 3)
