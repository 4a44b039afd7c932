"""Which alphas serve an estimate, and what it is compared with, on the toy model."""

import numpy
import pytest
from test_rare_events import LEVELS, Draws, drawn, truth

from logit_amplification.statistics import proposals
from logit_amplification.statistics.rare_events import estimate

NEAR = drawn(numpy.random.default_rng(3), 2000)


def far_alpha(shift=6.0):
    """Draws of which alpha 1 makes none of what A makes."""
    one = drawn(numpy.random.default_rng(4), 200)
    log_p = one.log_p.copy()
    log_p[one.alphas == 1.0, 0] -= shift
    return Draws("f", LEVELS, one.alphas, one.hits, log_p)


def test_near_alphas_have_a_mean_weight_of_one_and_far_ones_are_named():
    told = proposals.by_alpha([NEAR])
    assert [one.alpha for one in told] == list(LEVELS) and not proposals.too_far(told)
    assert all(one.mean_weight == pytest.approx(1, abs=0.1) for one in told)
    assert told[0].ess_share == 1 > told[1].ess_share > told[2].ess_share
    assert proposals.too_far(proposals.by_alpha([far_alpha()])) == [1.0]


def test_the_overlap_matrix_has_rows_of_one_and_is_symmetric_at_equal_numbers():
    found = proposals.overlap([NEAR])
    assert found.sum(1) == pytest.approx(numpy.ones(3))
    assert found == pytest.approx(found.T, abs=0.03)
    assert (numpy.diag(found) >= found.max(1) - 0.03).all()


def test_the_plan_shares_draws_so_that_the_error_falls():
    """What it promises holds in fresh draws."""
    planned = proposals.plan([NEAR], 180)
    assert sum(planned.counts.values()) == 180 and planned.counts[0.0] >= 18
    generator = numpy.random.default_rng(5)
    found = []
    for _ in range(300):
        parts = drawn(generator, 180)
        keep = numpy.concatenate(
            [
                numpy.flatnonzero(parts.alphas == level)[: planned.counts.get(level, 0)]
                for level in LEVELS
            ]
        )
        one = Draws("f", LEVELS, parts.alphas[keep], parts.hits[keep], parts.log_p[keep])
        found.append(numpy.where(one.hits, one.weights, 0).mean())
    error = numpy.std(found) / truth()
    assert error == pytest.approx(planned.relative_error, rel=0.2)
    equal = [numpy.where((d := drawn(generator, 60)).hits, d.weights, 0).mean() for _ in range(300)]
    assert error < numpy.std(equal) / truth()


def test_without_an_alpha_of_a_fitting_rate_there_is_no_plan():
    none = Draws("f", LEVELS, NEAR.alphas, NEAR.hits & (NEAR.alphas == 0), NEAR.log_p)
    assert proposals.plan([none], 100) is None


def test_one_proposal_is_right_where_it_reaches_and_silently_wrong_where_not():
    assert proposals.one_proposal([NEAR], 1.0) == pytest.approx(truth(), rel=0.15)
    assert proposals.one_proposal([far_alpha()], 1.0) < 0.1 * truth()
    assert "mean weight" in estimate([far_alpha()]).verdict


def test_the_path_is_read_off_at_zero_and_bends_where_the_truth_does():
    alphas = (-1.0, -0.5, 0.0, 0.5, 1.0)
    odds = numpy.exp(-3 + 2 * numpy.array(alphas))
    hits = numpy.round(10_000 * odds / (1 + odds)).astype(int)
    hits[2] = 9_000  # what is at 0 must not matter
    line = proposals.extrapolated(alphas, hits, [10_000] * 5, degree=1)
    assert line.estimate == pytest.approx(1 / (1 + numpy.exp(3)), rel=0.02)
    assert line.lower < line.estimate < line.upper
    assert proposals.extrapolated(alphas, [0, 0, 5, 0, 9], [100] * 5, degree=1) is None


def test_pareto_k_is_that_of_the_weights_and_not_of_their_inverse():
    """ArviZ negates what it is given: the sign is held to a tail that is known."""
    pytest.importorskip("arviz_stats", reason="ArviZ is an extra")
    weights = numpy.random.default_rng(0).pareto(1 / 0.3, 20_000) + 1
    assert proposals.pareto_k(weights) == pytest.approx(0.3, abs=0.08)


def test_free_energies_that_are_known_to_be_zero_come_out_near_zero():
    """What pymbar estimates is known here: a check of log-probabilities that costs nothing."""
    pymbar = pytest.importorskip("pymbar", reason="pymbar is not installed")
    counts = numpy.array([(NEAR.alphas == level).sum() for level in LEVELS])
    found = pymbar.MBAR(-NEAR.log_p.T, counts).compute_free_energy_differences()
    assert numpy.abs(found["Delta_f"][0]).max() < 4 * found["dDelta_f"][0].max() + 1e-3
    assert found["dDelta_f"][0].max() < 0.1


def test_an_alpha_that_was_not_read_again_is_unknown_and_not_too_far():
    log_p = NEAR.log_p.copy()
    log_p[NEAR.alphas == 2.0] = numpy.nan
    one = Draws("f", LEVELS, NEAR.alphas, NEAR.hits & (NEAR.alphas < 2), log_p)
    told = proposals.by_alpha([one])
    assert numpy.isnan(told[2].mean_weight) and proposals.too_far(told) == []
    found = proposals.overlap([one])
    assert numpy.isnan(found[2]).all() and found[:2].sum(1) == pytest.approx(numpy.ones(2))


def test_the_plan_takes_alphas_that_all_pairs_have():
    part = drawn(numpy.random.default_rng(8), 300)
    keep = part.alphas < 2
    less = Draws("g", LEVELS[:2], part.alphas[keep], part.hits[keep], part.log_p[keep][:, :2])
    assert set(proposals.plan([NEAR, less], 100).counts) <= {0.0, 1.0}
    shared = proposals.plan([NEAR], 100, zero_with_each=True).counts
    assert shared[0.0] >= max(shared.values())
