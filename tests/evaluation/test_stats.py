"""The tables, intervals and tests, against published examples and by simulation."""

import math

import numpy
import pandas
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from logit_amplification.evaluation import stats
from logit_amplification.statistics import intervals
from made_records import make_record, make_sweep


def test_the_t_interval_is_the_textbooks():
    """Student 1908, "sleep": mean 1.58, 95 % interval 0.70 to 2.46 (R: t.test(extra, paired))."""
    extra = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert intervals.interval(extra)[:3] == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)


def test_one_value_has_no_interval():
    mean, lower, upper, n = intervals.interval([3.0])
    assert mean == 3.0 and math.isnan(lower) and math.isnan(upper) and n == 1


@pytest.mark.parametrize("other", [0.3, 0.7])
def test_values_that_are_nearly_all_alike_have_a_sane_interval(other):
    """Their resamples have a spread of rounding alone."""
    found = intervals.interval([0.1] * 11 + [other])
    assert -1 < found.lower < found.mean < found.upper < 1
    assert intervals.interval([0.1] * 12)[1:3] == pytest.approx((0.1, 0.1))


def test_missing_values_are_left_out():
    assert intervals.interval([1.0, math.nan, 3.0]) == pytest.approx(intervals.interval([1.0, 3.0]))


def test_the_wilson_interval_is_the_published_one():
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611."""
    assert intervals.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def share(hits, pairs, samples=1):
    """The share of generations of which the first `hits` are hits."""
    values = numpy.array([float(i < hits) for i in range(pairs * samples)])
    return intervals.share(values.reshape(pairs, samples).mean(1), len(values))


def test_no_hit_at_all_is_bounded_by_the_rule_of_three():
    assert share(0, 30) == pytest.approx((0, 0, 0.1, 30))
    assert share(30, 30) == pytest.approx((1, 0.9, 1, 30))
    assert share(0, 2).upper == 1


def test_one_draw_per_pair_gives_the_plain_wilson_interval():
    assert share(81, 263)[1:3] == pytest.approx(intervals.wilson(81 / 263, 263), abs=2e-4)


def test_a_single_hit_says_nothing_of_how_alike_draws_are():
    """So it is no narrower than no hit at all: its n is that of the pairs."""
    assert share(1, 30, samples=4).upper > share(0, 30, samples=4).upper


def test_one_pair_has_no_interval_for_a_share_either():
    assert math.isnan(share(2, 1, samples=4).lower)


def test_draws_of_one_pair_that_are_all_alike_count_once():
    """Ten pairs, eight draws each, all hits or none: as wide as ten draws."""
    found = share(24, 10, samples=8)
    assert found[1:3] == pytest.approx(intervals.wilson(0.3, 10), abs=0.02)


def test_the_difference_of_paired_shares_is_bonett_and_prices():
    """Their function ci.prop.ps(.05, 12, 26, 4, 6) in R: 0.2548067 to 0.6251933."""
    one = pandas.Series([1.0] * 12 + [1.0] * 26 + [0.0] * 4 + [0.0] * 6)
    other = pandas.Series([1.0] * 12 + [0.0] * 26 + [1.0] * 4 + [0.0] * 6)
    found = stats.difference(one, other, "refusal")
    assert found.mean == pytest.approx(22 / 48) and found.n == 48
    assert (found.lower, found.upper) == pytest.approx((0.2548067, 0.6251933), abs=1e-6)


def test_shares_that_nowhere_changed_still_have_an_interval():
    same = pandas.Series([0.0] * 30)
    found = stats.difference(same, same, "refusal")
    assert found.mean == 0 and found.lower < -0.05 and found.upper > 0.05


# ------------------------------------------------------------------------------------- coverage

SWEEPS = 2000
PAIRS = 24


def coverage(one_sweep):
    """How many of 2,000 simulated sweeps have the truth in their interval."""
    generator = numpy.random.default_rng(0)
    covered = 0
    for _ in range(SWEEPS):
        truth, found = one_sweep(generator)
        covered += found.lower <= truth <= found.upper
    return covered / SWEEPS


def a_mean(generator):
    """Each pair has an effect of its own, and each of two draws its luck."""
    effects = generator.normal(1.0, 0.5, PAIRS)
    draws = effects[:, None] + generator.normal(0, 0.3, (PAIRS, 2))
    return 1.0, intervals.interval(draws.mean(1))


def a_skewed_mean(generator):
    return math.exp(0.7**2 / 2), intervals.interval(generator.lognormal(0, 0.7, PAIRS))


def a_mean_of_values_that_are_mostly_zero(generator):
    """As the share of repeated 4-grams is."""
    some = generator.random(PAIRS) < 0.3
    return 0.3 * 0.2, intervals.interval(some * generator.uniform(0.1, 0.3, PAIRS))


def a_mean_of_four_pairs(generator):
    return 1.0, intervals.interval(generator.normal(1.0, 0.5, 4))


def a_share(generator):
    truth = generator.uniform(0.1, 0.9)
    return truth, intervals.share(generator.random(PAIRS) < truth, PAIRS)


def a_share_of_four_draws(generator):
    """Draws of one pair are alike: a beta distribution over pairs."""
    truth = generator.uniform(0.2, 0.8)
    of_pair = generator.beta(2 * truth, 2 * (1 - truth), PAIRS)
    hits = generator.random((PAIRS, 4)) < of_pair[:, None]
    return truth, intervals.share(hits.mean(1), hits.size)


def a_difference_of_shares(generator):
    """Some pairs change one way, some the other, most not at all."""
    up, down = generator.uniform(0.02, 0.4), generator.uniform(0.02, 0.2)
    change = generator.choice([1.0, -1.0, 0.0], PAIRS, p=[up, down, 1 - up - down])
    zero = pandas.Series(numpy.zeros(PAIRS))
    return up - down, stats.difference(pandas.Series(change), zero, "refusal")


def a_difference_of_shares_of_four_draws(generator):
    """Each pair has its own chances, with and without; its four draws are alike."""
    base, effect = generator.uniform(0.05, 0.3), generator.uniform(0.0, 0.3)
    own = generator.beta(3 * base, 3 * (1 - base), (PAIRS, 1))
    plain = generator.random((PAIRS, 4)) < own
    more = plain | (generator.random((PAIRS, 4)) < effect)
    change = pandas.Series((more.mean(1) - plain.mean(1)).astype(float))
    return (1 - base) * effect, stats.difference(change, change * 0, "refusal")


def a_difference_of_families(generator):
    """Pairs of one family share its effect: eight families of three pairs, two draws each."""
    effects = generator.normal(0.5, 0.5, 8)
    values = effects[:, None, None] + generator.normal(0, 0.3, (8, 3, 2))
    places = [(f, p, d) for f in range(8) for p in range(3) for d in range(2)]
    columns = {"family": [f for f, _, _ in places], "pair_id": [f"{f}-{p}" for f, p, _ in places]}
    frame = pandas.DataFrame(columns | {"nll_a": [values[place] for place in places]})
    return 0.5, stats.estimate(frame, "nll_a")


def a_slope(generator):
    values = generator.normal(0.5, 0.3, (PAIRS, 1)) * numpy.array([0, 1, 2])
    values = values + generator.normal(0, 0.2, (PAIRS, 3))
    rows = {f"p{i}": row for i, row in enumerate(values)}
    frame = stats.to_frame(make_sweep(rows, alphas=(0.0, 1.0, 2.0))[1])
    return 0.5, stats.trend(frame, "nll_a").slope


@pytest.mark.parametrize(
    "one_sweep",
    [
        a_mean,
        a_skewed_mean,
        a_mean_of_values_that_are_mostly_zero,
        a_mean_of_four_pairs,
        a_share,
        a_share_of_four_draws,
        a_difference_of_shares,
        a_difference_of_families,
    ],
    ids=lambda f: f.__name__,
)
def test_intervals_cover_the_truth_as_often_as_they_say(one_sweep):
    assert 0.93 <= coverage(one_sweep) <= 0.97


def test_a_difference_of_shares_over_several_draws_is_not_twice_too_wide():
    """With a pair added that changed wholly each way, as for one draw, it covered 1.000."""
    assert 0.93 <= coverage(a_difference_of_shares_of_four_draws) <= 0.98


# --------------------------------------------------------------------------------------- tests


def test_the_trend_test_is_pages():
    """Page 1963, as in SciPy's documentation: ratings of three teaching methods."""
    ratings = [[3, 4, 3], [2, 2, 4], [3, 3, 5], [1, 3, 2], [2, 3, 2]]
    ratings += [[2, 4, 5], [1, 2, 4], [3, 4, 4], [2, 4, 5], [1, 3, 4]]
    rows = {f"p{number}": row for number, row in enumerate(ratings)}
    frame = stats.to_frame(make_sweep(rows, alphas=(0.0, 0.5, 1.0))[1])
    found = stats.trend(frame, "nll_a")
    assert found.p == pytest.approx(0.0018191161948127822)
    slopes = [(row[2] - row[0]) / 1.0 for row in ratings]
    assert found.slope.mean == pytest.approx(numpy.mean(slopes))


def test_the_trend_leaves_out_negative_alphas_and_needs_three():
    rows = {"a": [9, 1, 2, 3], "b": [9, 1, 2, 4]}
    frame = stats.to_frame(make_sweep(rows, alphas=(-1.0, 0.0, 1.0, 2.0))[1])
    assert stats.trend(frame, "nll_a").slope.mean == pytest.approx(1.25)
    assert stats.trend(frame[frame["alpha"] <= 1], "nll_a") is None


def test_holms_correction_is_the_textbooks():
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([]) == []
    assert intervals.holm([0.01, math.nan, 0.04])[::2] == pytest.approx([0.02, 0.04])
    for chances in numpy.random.default_rng(0).random((9, 7)).round(1):  # with ties
        expected = multipletests(chances, method="holm")[1]
        assert intervals.holm(chances) == pytest.approx(expected)


def test_the_rank_correlation_is_scipys_with_bonett_and_wrights_interval():
    one = pandas.Series([1.0, 2, 3, 4, 5, 6, 7, 8], index=list("abcdefgh"))
    other = pandas.Series([2.0, 1, 4, 3, 6, 5, 8, 7, 9], index=list("abcdefghi"))
    found, p = intervals.rank_correlation(one, other)
    r = scipy_stats.spearmanr(one, other[:8]).statistic
    assert found.mean == pytest.approx(r) and found.n == 8 and p < 0.05
    reach = 1.959964 * math.sqrt((1 + r * r / 2) / 5)
    assert found.lower == pytest.approx(math.tanh(math.atanh(r) - reach))
    assert found.upper == pytest.approx(math.tanh(math.atanh(r) + reach))
    assert intervals.rank_correlation(one, one)[0].upper <= 1
    assert math.isnan(intervals.rank_correlation(one[:3], other)[1])


def test_the_sign_flip_test_is_the_exact_one_within_its_resamples():
    values = pandas.Series([1.0, 2.0, 3.0, 4.0, 5.0])
    assert intervals.sign_flip(values) == pytest.approx(2 / 32, abs=0.01)
    assert intervals.sign_flip(values * 0) == 1.0
    assert math.isnan(intervals.sign_flip(values[:0]))
    nine = pandas.Series([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    assert intervals.sign_flip(nine) == pytest.approx(scipy_stats.binomtest(1, 9).pvalue, abs=0.01)


def test_without_an_effect_one_test_in_twenty_is_significant():
    generator = numpy.random.default_rng(1)
    chances = [intervals.sign_flip(pandas.Series(generator.normal(0, 1, 24))) for _ in range(2000)]
    assert 0.035 <= numpy.mean(numpy.array(chances) <= 0.05) <= 0.065


def test_power_is_that_of_the_paired_t_test_and_of_mcnemars():
    """34 pairs for half a standard deviation is the textbook's figure (Cohen; G*Power)."""
    assert intervals.power(33).deviations > 0.5 > intervals.power(34).deviations
    share = intervals.power(30).share
    assert scipy_stats.binom.sf(5, 30, share) >= 0.8 > scipy_stats.binom.sf(5, 30, share - 0.002)
    assert math.isnan(intervals.power(1).deviations) and math.isnan(intervals.power(5).share)


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


def test_a_difference_is_over_the_draws_that_both_alphas_have():
    """Pitfall: a draw without the measure at one alpha must not stay in the other's mean."""
    values = {(0.0, 0): 1.0, (0.0, 1): 3.0, (4.0, 0): 2.0, (4.0, 1): math.nan}
    records = [
        make_record(pair, alpha, sample=sample, nll_a=value)
        for pair in ("a", "b")
        for (alpha, sample), value in values.items()
    ]
    row = stats.paired_difference(stats.to_frame(records), "nll_a").loc[4.0]
    assert row["mean"] == pytest.approx(1.0) and row["n"] == 2


def test_an_answer_that_was_not_judged_has_no_label_at_all():
    records = [make_record("a", 0.0), make_record("b", 0.0)]
    records[0]["judge"] = {"label": "rude", "score": 0.9}
    assert stats.summarise(stats.to_frame(records)).iloc[0]["judge_rude_mean"] == 1.0


def test_nothing_finished_is_an_empty_table():
    assert stats.to_frame([make_record("a", 0.0, finish_reason="error")]).empty


def test_arms_are_compared_over_the_draws_that_both_have():
    records = make_sweep({"a": [1, 2], "b": [1, 4], "null": [1, 1]})[1]
    other = make_sweep({"a": [1, 7], "b": [1, 9], "null": [1, 1]}, arm="plausible")[1]
    frame = stats.to_frame(records + [r for r in other if r["alpha"] == 1])
    table = stats.arm_difference(frame, "nll_a", "plausible", "full")
    assert list(table.index) == [1.0]
    assert table.loc[1.0, "mean"] == pytest.approx(5.0) and table.loc[1.0, "n"] == 2


def test_controls_stand_in_their_own_category_only():
    records = [make_record(f"p{i}", 1.0, nll_a=1.0) for i in range(3)]
    swapped = {"category": "control: swapped", "control": "swapped"}
    records += [make_record(f"p{i}~swapped", 1.0, nll_a=9.0, **swapped) for i in range(3)]
    summary = stats.summarise(stats.to_frame(records)).set_index("category")
    assert summary.loc["all", "nll_a_mean"] == 1 and summary.loc["all", "n"] == 3
    assert summary.loc["control: swapped", "nll_a_mean"] == 9


def test_the_shares_of_outcomes_are_those_of_the_answers():
    outcomes = ["refusal", "other", "incoherent", "incoherent"]
    records = [make_record(f"p{i}", 0.0, outcome=o) for i, o in enumerate(outcomes)]
    row = stats.summarise(stats.to_frame(records)).iloc[0]
    assert row["refusal_mean"] == 0.25 and row["incoherent_mean"] == 0.5


def test_an_answer_too_short_for_a_4_gram_repeats_none():
    """Left out, it would leave the average at the alphas that make answers short."""
    records = [make_record("a", 0.0, repeated_4gram_share=0.6)]
    records += [make_record("b", 0.0, repeated_4gram_share=None)]
    assert stats.to_frame(records)["repeated_4gram_share"].tolist() == [0.6, 0.0]


def test_pairs_of_one_family_count_once():
    records = [make_record(f"p{i}", 0.0, nll_a=float(i)) | {"family": "f"} for i in range(3)]
    records += [make_record("alone", 0.0, nll_a=5.0)]
    found = stats.estimate(stats.to_frame(records), "nll_a")
    assert found.n == 2 and found.mean == (1.0 + 5.0) / 2
    row = stats.summarise(stats.to_frame(records)).iloc[0]
    assert (row["n"], row["n_pairs"], row["n_families"]) == (4, 4, 2)


def test_the_typical_pair_grows_like_the_median():
    rows = {"slow": [0, 1], "typical": [1, 3], "fast": [0, 9], "null": [0, 0]}
    frame = stats.to_frame(make_sweep(rows, measure="log_ratio_a_b")[1])
    assert stats.typical_pair(frame) == "typical"
    assert stats.typical_pair(frame[frame["alpha"] == 1]) is None


def test_the_share_of_changed_answers_counts_pairs_not_tokens():
    _, records = make_sweep({"a": [1, 1], "b": [1, 1], "null": [1, 1]})
    assert stats.changed_share(records).loc[1.0, "mean"] == 1.0
    assert stats.changed_share(records).loc[1.0, "n"] == 2
    assert stats.changed_share(records).loc[0.0, "mean"] == 0.0
    assert stats.changed_share(records, null=True).loc[1.0, "mean"] == 0.0
