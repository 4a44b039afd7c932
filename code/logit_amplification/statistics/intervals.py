"""Intervals and tests of independent values, one per unit; no records, no tensors, no model.

Which interval and which test, and why: docs/METHODOLOGY.md, "Statistics". Tests simulate how often
each interval holds the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy
import pandas
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.8
BOOTSTRAP_FROM = 12  # units; below, Student's t covers better (docs/LOG.md)
RESAMPLES = 4_999
ALIKE = 1e-12  # of the largest value: a spread below it is rounding
PERMUTATIONS = 99_999


class Estimate(NamedTuple):
    """A mean over units, the bounds of its 95 % interval (NaN where there is none), and n."""

    mean: float
    lower: float
    upper: float
    n: int


def interval(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values (one per unit) and its 95 % interval.

    From `BOOTSTRAP_FROM` values on it is the studentised bootstrap, which resamples whole units
    (Efron and Tibshirani 1993, chapter 12), below that Student's t. One value has no interval.
    """
    values = numpy.asarray(values, dtype=float)
    values = values[~numpy.isnan(values)]
    mean = float(values.mean()) if len(values) else numpy.nan
    if len(values) < 2:
        return Estimate(mean, numpy.nan, numpy.nan, len(values))
    error = float(values.std(ddof=1) / numpy.sqrt(len(values)))
    # Ten times 0.1 has a standard deviation of 1e-17, not of 0.
    if len(values) < BOOTSTRAP_FROM or error <= ALIKE * numpy.abs(values).max():
        reach = _students(len(values)) * error
        return Estimate(mean, mean - reach, mean + reach, len(values))
    low, high = _studentised(values, mean)
    return Estimate(mean, mean - high * error, mean - low * error, len(values))


@lru_cache
def _students(count: int) -> float:
    """The 97.5 % point of Student's t for the mean of so many values."""
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, count - 1))


def _studentised(values: NDArray, mean: float) -> tuple[float, float]:
    """The 2.5 and 97.5 % points of (resampled mean - mean) / its standard error.

    Student's where the values are nearly all alike: then some resamples have no spread at all.
    """
    resampled = values[_resamples(len(values))]
    errors = resampled.std(1, ddof=1) / numpy.sqrt(len(values))
    if (errors <= ALIKE * numpy.abs(values).max()).any():
        return -_students(len(values)), _students(len(values))
    ratios = (resampled.mean(1) - mean) / errors
    low, high = numpy.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache
def _resamples(count: int) -> NDArray:
    """Which values each resample takes; always the same, so that reports can be repeated."""
    return numpy.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the bounds of Wilson's 95 % interval; `count` may be an effective one."""
    low, high = proportion_confint(share * count, count, 1 - LEVEL, method="wilson")
    return float(low), float(high)


def share(rates: Sequence[float], draws: int) -> Estimate:
    """Return a share of generations and its 95 % interval; rates: each unit's share, of `draws`.

    Wilson's interval with an effective number of draws (after Korn and Graubard 1998): draws of one
    unit are alike, so n is between the number of units and that of generations, and the former
    where too few units differ to tell. Where there is no hit, or nothing but hits, the rule of
    three bounds it, one-sided: 3 / number of units. One unit has no interval.
    """
    rates = numpy.asarray(rates, dtype=float)
    units = len(rates)
    mean = float(rates.mean()) if units else numpy.nan
    if units < 2:
        return Estimate(mean, numpy.nan, numpy.nan, units)
    if mean in (0.0, 1.0):
        reach = min(1.0, 3 / units)
        return Estimate(mean, mean and 1 - reach, mean or reach, units)
    effective = float(units)
    if (rates > 0).sum() > 1 and (rates < 1).sum() > 1 and rates.var():
        effective = mean * (1 - mean) / (rates.var(ddof=1) / units)
    return Estimate(mean, *wilson(mean, numpy.clip(effective, units, draws)), units)


def share_difference(values: Sequence[float]) -> Estimate:
    """Return the mean of differences of shares within units, and its 95 % interval.

    After Bonett and Price 2012, who add a unit that changed each way, for with few changes
    Student's t covers too little. Theirs changed by one; with several draws to a unit, ours change
    by the root mean square of those that changed, which is one where each unit has one draw.
    """
    values = numpy.asarray(values, dtype=float)
    values = values[~numpy.isnan(values)]
    if len(values) < 2:
        return interval(values)
    changed = values[values != 0]
    step = float(numpy.sqrt((changed**2).mean())) if len(changed) else 1.0
    padded = numpy.append(values, [step, -step])
    half = scipy_stats.norm.ppf((1 + LEVEL) / 2) * padded.std() / numpy.sqrt(len(padded))
    low, high = padded.mean() - half, padded.mean() + half
    return Estimate(float(values.mean()), max(-1.0, low), min(1.0, high), len(values))


# What counts as no change, declared before the data: docs/METHODOLOGY.md, "Declared beforehand".
MARGIN_SHARE = 0.05  # of incoherent answers
MARGIN_NLL = 0.2  # nats per token: a factor of 1.22 in perplexity


def within(found: Estimate, margin: float) -> bool:
    """Whether the whole interval lies between -margin and +margin: equivalence.

    With a 95 % interval each of the two one-sided tests (Schuirmann 1987) is at 2.5 %.
    """
    return -margin < found.lower and found.upper < margin


def not_above(found: Estimate, margin: float) -> bool:
    """Whether the interval's upper bound is below a margin: non-inferiority, one-sided at 2.5 %."""
    return found.upper < margin


def sign_flip(differences: pandas.Series) -> float:
    """Return the two-sided p-value of the hypothesis that a unit's difference has either sign.

    A permutation test: the mean against those of `PERMUTATIONS` sets of signs, always the same.
    NaN where there is no difference to look at.
    """
    values = differences.dropna().to_numpy(dtype=float)
    if not len(values):
        return numpy.nan
    values = values[values != 0]
    if not len(values):
        return 1.0
    flipped = _signs(len(values)) @ values
    as_far = numpy.abs(flipped) >= abs(values.sum()) * (1 - 1e-12)
    return float((1 + as_far.sum()) / (1 + PERMUTATIONS))


@lru_cache(maxsize=32)  # at most as many sizes of groups as a study has
def _signs(count: int) -> NDArray:
    return numpy.random.default_rng(0).choice([-1.0, 1.0], (PERMUTATIONS, count))


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979); NaN is no test and stays NaN."""
    corrected = numpy.array(chances, dtype=float)
    tested = ~numpy.isnan(corrected)
    if tested.any():
        corrected[tested] = multipletests(corrected[tested], method="holm")[1]
    return corrected.tolist()


class Power(NamedTuple):
    """What a design of so many units shows with 80 % power, two-sided."""

    units: int
    deviations: float  # a mean difference, in standard deviations of the units' differences
    share: float  # units whose outcome changes, all of them the same way


def power(units: int, tests: int = 1) -> Power:
    """Return the smallest effects that a sweep over so many units can be expected to show.

    tests: of how many it is one; each then has 5 % / tests, the first and hardest step of Holm's.

    Of a mean: the paired t-test. Of an outcome: the exact sign test of McNemar. NaN where even the
    largest effect would not show.
    """
    level = (1 - LEVEL) / tests
    if units < 2:
        return Power(units, numpy.nan, numpy.nan)
    solved = TTestPower().solve_power(nobs=units, alpha=level, power=POWER)
    needed = next((k for k in range(1, units + 1) if 2 * 0.5**k <= level), None)
    if needed is None:
        return Power(units, float(solved), numpy.nan)
    shares = numpy.linspace(0, 1, 1001)
    seen = scipy_stats.binom.sf(needed - 1, units, shares)
    return Power(units, float(solved), float(shares[(seen >= POWER).argmax()]))


def rank_correlation(one: pandas.Series, other: pandas.Series) -> tuple[Estimate, float]:
    """Return Spearman's rank correlation of values indexed by pair, and its p-value.

    The interval is Fisher's with the variance of Bonett and Wright 2000; NaN below four pairs.
    """
    both = pandas.concat([one, other], axis=1).dropna()
    n = len(both)
    if n < 4:
        return Estimate(numpy.nan, numpy.nan, numpy.nan, n), numpy.nan
    r, p = scipy_stats.spearmanr(both.iloc[:, 0], both.iloc[:, 1])
    middle = numpy.arctanh(numpy.clip(r, -1 + 1e-9, 1 - 1e-9))
    reach = scipy_stats.norm.ppf((1 + LEVEL) / 2) * numpy.sqrt((1 + r * r / 2) / (n - 3))
    low, high = numpy.tanh([middle - reach, middle + reach])
    return Estimate(float(r), float(low), float(high), n), float(p)
