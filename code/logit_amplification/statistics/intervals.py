"""Confidence intervals and tests for independent values, one value per unit.

No records, no tensors, no model. For which interval and test is used where, and why, see
docs/METHODOLOGY.md, "Statistics". The test suite simulates the coverage of each interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy
import pandas
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.8
BOOTSTRAP_FROM = 12  # units; with fewer, Student's t has better coverage (docs/LOG.md)
RESAMPLES = 4_999
ALIKE = 1e-12  # relative to the largest value: a smaller spread is rounding error
PERMUTATIONS = 99_999


class Estimate(NamedTuple):
    """A mean over units, the bounds of its 95 % interval (NaN if there is none), and n."""

    mean: float
    lower: float
    upper: float
    n: int


def interval(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values (one per unit) and its 95 % interval.

    NaN values are dropped. From `BOOTSTRAP_FROM` values on, the interval is the studentised
    bootstrap over units (Efron and Tibshirani 1993, chapter 12); with fewer, or nearly equal,
    values it is Student's t. A single value has no interval.
    """
    values = numpy.asarray(values, dtype=float)
    values = values[~numpy.isnan(values)]
    mean = float(values.mean()) if len(values) else numpy.nan
    if len(values) < 2:
        return Estimate(mean, numpy.nan, numpy.nan, len(values))
    error = float(values.std(ddof=1) / numpy.sqrt(len(values)))
    # Ten values of 0.1 have a standard deviation of 1e-17, not of 0.
    if len(values) < BOOTSTRAP_FROM or error <= ALIKE * numpy.abs(values).max():
        reach = _students(len(values)) * error
        return Estimate(mean, mean - reach, mean + reach, len(values))
    low, high = _studentised(values, mean)
    return Estimate(mean, mean - high * error, mean - low * error, len(values))


@lru_cache
def _students(count: int) -> float:
    """Return the 97.5 % point of Student's t for the mean of `count` values."""
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, count - 1))


def _studentised(values: NDArray, mean: float) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % points of (resampled mean - mean) / its standard error.

    Student's t where the values are nearly equal: some resamples then have no spread at all.
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
    """Return the indices of the values in each resample, (RESAMPLES, count).

    The seed is fixed, so that reports can be reproduced.
    """
    return numpy.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the bounds of Wilson's 95 % interval; `count` may be an effective sample size."""
    low, high = proportion_confint(share * count, count, 1 - LEVEL, method="wilson")
    return float(low), float(high)


def share(rates: Sequence[float], draws: int) -> Estimate:
    """Return a share of generations and its 95 % interval.

    rates: the share of each unit. draws: the total number of generations. Wilson's interval with an
    effective sample size (after Korn and Graubard 1998): draws of one unit resemble each other, so
    n lies between the number of units and the number of generations. If fewer than two units have
    hits, or fewer than two have misses, n is the number of units. If there are no hits, or nothing
    but hits, the rule of three gives a one-sided bound, 3 / number of units. A single unit has no
    interval.
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

    After Bonett and Price 2012, who add one unit that changed in each direction, because with few
    changes Student's t has too little coverage. Their units change by one; ours change by the root
    mean square of the differences that are not zero, which is one if each unit has one draw.
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


FEWEST_UNITS = 5  # with fewer, an interval exists but no conclusion should rest on it
# What counts as no change, declared before the data were collected: docs/METHODOLOGY.md, "Declared
# beforehand".
MARGIN_SHARE = 0.05  # share of incoherent answers
MARGIN_NLL = 0.2  # nats per token: a factor of 1.22 in perplexity


def within(found: Estimate, margin: float) -> bool:
    """Whether the whole interval lies between -margin and +margin: equivalence.

    With a 95 % interval, each of the two one-sided tests (Schuirmann 1987) is at the 2.5 % level.
    """
    return -margin < found.lower and found.upper < margin


def not_above(found: Estimate, margin: float) -> bool:
    """Whether the interval's upper bound is below a margin: non-inferiority, one-sided at 2.5 %."""
    return found.upper < margin


def sign_flip(differences: pandas.Series) -> float:
    """Return the two-sided p-value of a sign-flip test of differences, one per unit.

    Null hypothesis: the difference of each unit is equally likely to have either sign. A
    permutation test that compares the mean with those of `PERMUTATIONS` random sets of signs (fixed
    seed). NaN if there are no differences, 1 if all of them are zero.
    """
    values = differences.dropna().to_numpy(dtype=float)
    if not len(values):
        return numpy.nan
    values = values[values != 0]
    if not len(values):
        return 1.0
    signs = _signs(len(values))
    eights = numpy.zeros((len(signs), 8))
    eights.flat[: len(values)] = values
    sums = eights @ (2.0 * numpy.unpackbits(numpy.arange(256, dtype=numpy.uint8)[None], axis=0) - 1)
    flipped = sum(sums[place][byte] for place, byte in enumerate(signs))
    as_far = numpy.abs(flipped) >= abs(values.sum()) * (1 - 1e-12)
    return float((1 + as_far.sum()) / (1 + PERMUTATIONS))


@lru_cache(maxsize=32)  # enough for the group sizes of a study
def _signs(count: int) -> NDArray:
    """Return the sets of signs, a bit each (1 is plus), (ceil(count / 8), PERMUTATIONS) uint8.

    As float64 those of a study took 2.4 GB.
    """
    plus = numpy.random.default_rng(0).integers(0, 2, (PERMUTATIONS, count))
    return numpy.ascontiguousarray(numpy.packbits(plus.astype(bool), axis=1).T)


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979); NaN stands for no test and stays.

    The numbers are those of statsmodels' `multipletests`, which collects all garbage of the process
    in every call: up to a second beside a model.
    """
    corrected = numpy.array(chances, dtype=float)
    order = numpy.argsort(corrected)[: int((~numpy.isnan(corrected)).sum())]  # NaN comes last
    stepped = corrected[order] * numpy.arange(len(order), 0, -1)
    corrected[order] = numpy.minimum(1.0, numpy.maximum.accumulate(stepped))
    return corrected.tolist()


class Power(NamedTuple):
    """The smallest effects that a design with so many units detects with 80 % power, two-sided."""

    units: int
    deviations: float  # mean difference, in standard deviations of the units' differences
    share: float  # share of units whose outcome changes, all in the same direction


def power(units: int, tests: int = 1) -> Power:
    """Return the smallest effects that a sweep over so many units can be expected to detect.

    tests: the number of tests that this is one of; each is then at 5 % / tests, the first and
    strictest step of Holm's correction.

    For a mean: the paired t-test. For an outcome: the exact sign test of McNemar. NaN if even the
    largest effect would not be significant.
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
    """Return Spearman's rank correlation of two series indexed by pair, and its p-value.

    The interval is Fisher's, with the variance of Bonett and Wright 2000. All is NaN for fewer than
    four pairs.
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
