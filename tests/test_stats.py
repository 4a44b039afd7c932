"""The tables and their intervals, against textbook values and by simulation."""

import math

import numpy
import pytest

from logit_amplification import stats
from records import make_record, make_sweep


def test_the_t_interval_is_the_textbooks():
    """Student 1908, "sleep": mean 1.58, 95 % interval 0.70 to 2.46 (R: t.test(extra, paired))."""
    extra = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert stats.interval(extra) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)


def test_one_value_has_no_interval():
    mean, lower, upper = stats.interval([3.0])
    assert mean == 3.0 and math.isnan(lower) and math.isnan(upper)


def test_missing_values_are_left_out():
    assert stats.interval([1.0, math.nan, 3.0]) == pytest.approx(stats.interval([1.0, 3.0]))


def test_the_wilson_interval_is_the_published_one():
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611."""
    assert stats.share_interval(81, 263) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)
    assert stats.share_interval(0, 20) == pytest.approx((0, 0, 0.1611), abs=5e-5)


def test_intervals_over_pairs_cover_the_truth_as_often_as_they_say():
    """2,000 sweeps of 24 pairs, each pair with an effect of its own."""
    generator = numpy.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        _, lower, upper = stats.interval(generator.normal(1.0, 0.5, 24))
        covered += lower <= 1.0 <= upper
    assert 0.93 <= covered / 2000 <= 0.97


def test_samples_of_a_pair_are_averaged_before_pairs_are():
    """Ten draws of one pair are no ten pairs."""
    records = [make_record("a", 0.0, sample=s, nll_a=float(s)) for s in range(11)]
    records += [make_record("b", 0.0, nll_a=9.0)]
    row = stats.summarise(stats.to_frame(records)).iloc[0]
    assert row["n"] == 12 and row["n_pairs"] == 2
    assert row["nll_a_mean"] == pytest.approx((5.0 + 9.0) / 2)


def test_the_summary_has_a_row_per_arm_category_and_alpha_and_keeps_null_pairs_apart():
    _, records = make_sweep({"a1": [1, 2], "a2": [3, 4], "b1": [5, 6], "null": [100, 100]})
    summary = stats.summarise(stats.to_frame(records)).set_index(["arm", "category", "alpha"])
    assert len(summary) == 2 * (1 + 3)
    assert summary.loc[("full", "all", 0.0), "nll_a_mean"] == pytest.approx(3.0)
    assert summary.loc[("full", "all", 0.0), "n"] == 3
    assert summary.loc[("full", "category of a", 1.0), "nll_a_mean"] == pytest.approx(3.0)
    assert summary.loc[("full", "category of n", 1.0), "nll_a_mean"] == pytest.approx(100.0)
    assert math.isnan(summary.loc[("full", "category of b", 1.0), "nll_a_lower"])


def test_differences_to_alpha_zero_are_taken_within_the_pair():
    """Pairs far apart, each moved by about one: the paired interval is narrow."""
    _, records = make_sweep({"a": [10, 11.1], "b": [50, 51.0], "c": [90, 90.9]})
    row = stats.paired_difference(stats.to_frame(records), "nll_a").loc[1.0]
    assert row["mean"] == pytest.approx(1.0) and row["n"] == 3
    assert 0.7 < row["lower"] < 1 < row["upper"] < 1.3


def test_the_share_of_changed_answers_counts_pairs_not_tokens():
    _, records = make_sweep({"a": [1, 1], "b": [1, 1], "null": [1, 1]})
    assert stats.changed_share(records).loc[1.0, "mean"] == 1.0
    assert stats.changed_share(records).loc[1.0, "n"] == 2
    assert stats.changed_share(records).loc[0.0, "mean"] == 0.0
    assert stats.changed_share(records, null=True).loc[1.0, "mean"] == 0.0
