"""Which alphas serve an estimate of a rate: how near they are, how to share draws among them.

Also the two estimators that it is compared with: one proposal alone, and a curve through rates at
other alphas, which is a model and no measurement. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from scipy.special import expit

from .intervals import LEVEL
from .rare_events import Draws

HIT_RATES = (0.02, 0.4)  # of an alpha that is worth drawing at
NEAR = 0.5  # the mean weight of an alpha whose draws reach the texts of A
LEAST_AT_ZERO = 0.1  # the share of alpha 0, which bounds all weights
PARTS = 10  # shares are multiples of one in so many


class Alpha(NamedTuple):
    """What a run tells of one alpha; weights are NaN where none of its draws was read again."""

    alpha: float
    draws: int
    hits: int
    mean_weight: float  # of its own draws, p_0 / p_alpha: 1 where they reach all texts of A
    ess_share: float  # effective draws for A, by each draw


class Plan(NamedTuple):
    """How many draws to make at each alpha, and the relative error to expect of them."""

    counts: dict[float, int]
    relative_error: float


def by_alpha(draws: Sequence[Draws]) -> list[Alpha]:
    """Return what the draws tell of each alpha; the weights count draws whose log_p is known."""
    found = []
    for level in sorted({level for one in draws for level in one.levels}):
        chosen = [(one, one.alphas == level) for one in draws if level in one.levels]
        weights = numpy.concatenate(
            [
                numpy.exp(
                    one.log_p[rows, one.levels.index(0.0)]
                    - one.log_p[rows, one.levels.index(level)]
                )
                for one, rows in chosen
            ]
        )
        # A hit is always known, others are a sample: each stands for those of its kind.
        hits = numpy.concatenate([one.hits[rows] for one, rows in chosen])
        known = ~numpy.isnan(weights)
        times = numpy.where(hits, 1.0, (~hits).sum() / max(1, (known & ~hits).sum()))
        mean, share = numpy.nan, numpy.nan
        if known.any():
            mean = float((weights * times)[known].sum() / len(weights))
            square = float((weights**2 * times)[known].sum() / len(weights))
            share = mean**2 / square if square else 0.0
        found.append(Alpha(level, len(hits), int(hits.sum()), mean, share))
    return found


def overlap(draws: Sequence[Draws]) -> NDArray:
    """Return the overlap matrix of the levels, (K, K): rows sum to 1 (Klimovich et al. 2015).

    Row i: of a draw at alpha i, the probability that it came from each of the alphas; NaN where
    none of them was read again.
    """
    levels = draws[0].levels
    rows: list[list[NDArray]] = [[] for _ in levels]
    for one in draws:
        posterior = numpy.exp(one.log_p + one.log_shares - one.log_mixture[:, None])
        for place, level in enumerate(levels):
            found = posterior[one.alphas == level]
            rows[place] += list(found[~numpy.isnan(found).any(1)])
    unknown = numpy.full(len(levels), numpy.nan)
    return numpy.array([numpy.mean(found, axis=0) if found else unknown for found in rows])


def too_far(alphas: Sequence[Alpha]) -> list[float]:
    """Return the alphas whose draws do not reach the texts of A."""
    return [one.alpha for one in alphas if one.mean_weight < NEAR]  # not where it is unknown


def plan(draws: Sequence[Draws], total: int, *, zero_with_each: bool = False) -> Plan | None:
    """Share `total` draws among alphas so that the estimate's variance is least, from a pilot.

    The variance of a mixture is that of worth under it, reweighted from the pilot's hits. Alphas at
    which 2 to 40 % are hits take part, and alpha 0 always; zero_with_each: as often as any other,
    as a sweep has it. None where no alpha has such a rate.
    """
    told = by_alpha(draws)
    common = set.intersection(*(set(one.levels) for one in draws))
    inside = [
        a.alpha
        for a in told
        if a.alpha in common and HIT_RATES[0] <= a.hits / a.draws <= HIT_RATES[1]
    ]
    useful = [alpha for alpha in inside if alpha and alpha not in too_far(told)]
    if not useful:
        return None
    levels = (0.0, *useful[:4])
    ratios, worth = [], []
    for one in draws:
        columns = [one.levels.index(level) for level in levels]
        hits = one.log_p[one.hits]
        # By the number of draws: a mean over the draws of all pairs.
        ratios.append(numpy.exp(hits[:, columns] - one.log_mixture[one.hits][:, None]))
        worth.append(one.weights[one.hits])
    ratio, weight = numpy.concatenate(ratios), numpy.concatenate(worth)
    number = sum(len(one.alphas) for one in draws)
    rate = weight.sum() / number
    best = min(
        (
            (float((weight**2 / (ratio @ numpy.array(shares))).sum() / number - rate**2), shares)
            for shares in _shares(len(levels))
            if not zero_with_each or shares[0] >= max(shares)
        ),
        key=lambda one: one[0],
    )
    counts = {level: round(total * share) for level, share in zip(levels, best[1], strict=True)}
    error = numpy.sqrt(max(0.0, best[0]) / total) / rate
    return Plan({level: count for level, count in counts.items() if count}, float(error))


def _shares(number: int) -> list[tuple[float, ...]]:
    """All ways to share among so many alphas in tenths, the first of which gets one at least."""
    cuts = itertools.combinations_with_replacement(range(PARTS + 1), number - 1)
    parts = (numpy.diff([0, *cut, PARTS]) / PARTS for cut in cuts)
    return [tuple(part) for part in parts if part[0] >= LEAST_AT_ZERO]


# ------------------------------------------------------------------------ what it is compared with


def one_proposal(draws: Sequence[Draws], alpha: float) -> float:
    """Return the rate from the draws at one alpha alone: its hits weigh p_0 / p_alpha."""
    values = []
    for one in draws:
        rows = one.alphas == alpha
        log_w = one.log_p[rows, one.levels.index(0.0)] - one.log_p[rows, one.levels.index(alpha)]
        values.append(float(numpy.where(one.hits[rows], numpy.exp(log_w), 0.0).mean()))
    return float(numpy.mean(values))


class Extrapolated(NamedTuple):
    """A rate at alpha 0 that rests on a curve through the rates at other alphas: a model."""

    estimate: float
    lower: float
    upper: float


def extrapolated(
    alphas: Sequence[float], hits: Sequence[int], draws: Sequence[int], degree: int
) -> Extrapolated | None:
    """Fit the log-odds of a hit as a polynomial in alpha, and read it off at 0.

    Logit path extrapolation with our alphas for its path (Pernice and Aranguri 2026): alpha 0 takes
    no part. Binomial regression; the interval is that of the curve, if it were the true one. None
    where there are not more alphas with hits than coefficients, and one to spare.
    """
    import statsmodels.api as sm

    chosen = [n for n, alpha in enumerate(alphas) if alpha != 0]
    if sum(hits[n] > 0 for n in chosen) <= degree + 1:
        return None
    columns = numpy.vander([alphas[n] for n in chosen], degree + 1, increasing=True)
    counts = numpy.array([[hits[n], draws[n] - hits[n]] for n in chosen])
    try:
        fitted = sm.GLM(counts, columns, family=sm.families.Binomial()).fit()
    except Exception:  # a perfect separation is told by an error of statsmodels' own
        return None
    low, high = fitted.conf_int(1 - LEVEL)[0]
    return Extrapolated(*(float(expit(value)) for value in (fitted.params[0], low, high)))


def pareto_k(weights: NDArray) -> float | None:
    """Return the shape of the weights' tail (Vehtari et al. 2024) by ArviZ; None without ArviZ.

    Above min(1 - 1 / log10 S, 0.7) the mean of S weights is not to be trusted.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        return None
    # It takes negated log-weights, as of a loo estimate: the tail that it fits is the other one.
    try:
        _, k = array_stats.psislw(-numpy.log(weights[weights > 0]))
    except ValueError:  # a tail of equal weights has no shape
        return None
    return float(k)
