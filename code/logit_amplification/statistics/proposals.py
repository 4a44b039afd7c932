"""Assess which alphas help a rate estimate, and plan how to share draws among them.

The samples at an alpha serve as the proposal of an importance-sampling estimate of the rate at
alpha 0 (`rare_events.py`). Also here are the two estimators that it is compared with: one proposal
alone, and a curve through the rates at other alphas, which is model-based and not a measurement. No
torch.
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

HIT_RATES = (0.02, 0.4)  # between these, an alpha is worth drawing at
NEAR = 0.5  # the least mean weight of an alpha whose draws reach the texts of A
LEAST_AT_ZERO = 0.1  # the least share of alpha 0, which bounds all weights
PARTS = 10  # shares are multiples of 1 / PARTS


class Alpha(NamedTuple):
    """What a run shows about one alpha; weights are NaN if none of its draws was rescored."""

    alpha: float
    draws: int
    hits: int
    mean_weight: float  # of p_0 / p_alpha over its own draws: 1 if they reach all texts of A
    ess_share: float  # effective sample size for A, per draw


class Plan(NamedTuple):
    """How many draws to make at each alpha, and the relative standard error to expect."""

    counts: dict[float, int]
    relative_error: float


def by_alpha(draws: Sequence[Draws]) -> list[Alpha]:
    """Return what the draws show about each alpha, ascending; weights use only known log_p."""
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
        # Every hit is known, but only a sample of the other draws: each known one stands for
        # several.
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

    Row i: for a draw at alpha i, the mean probability that it came from each of the alphas; NaN if
    no draw at alpha i was rescored.
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
    """Return the alphas whose draws do not reach the texts of A: mean weight below `NEAR`."""
    return [one.alpha for one in alphas if one.mean_weight < NEAR]  # False where it is NaN


def plan(draws: Sequence[Draws], total: int, *, zero_with_each: bool = False) -> Plan | None:
    """Share `total` draws among alphas so that the estimate's variance is smallest, from a pilot.

    The variance under each split is predicted by reweighting the hits of the pilot. Alpha 0 always
    takes part, and up to four alphas (the lowest ones) that have hits in 2 to 40 % of their draws
    and are not too far from A. zero_with_each: alpha 0 gets at least as many draws as any other
    alpha, as in a sweep. None if no other alpha qualifies.
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
        # The means below are over the draws of all pairs together.
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
    """Return all splits among `number` alphas in tenths; the first gets at least one tenth."""
    cuts = itertools.combinations_with_replacement(range(PARTS + 1), number - 1)
    parts = (numpy.diff([0, *cut, PARTS]) / PARTS for cut in cuts)
    return [tuple(part) for part in parts if part[0] >= LEAST_AT_ZERO]


# ------------------------------------------------------------------------ what it is compared with


def one_proposal(draws: Sequence[Draws], alpha: float) -> float:
    """Return the rate from the draws at one alpha alone: its hits are weighted by p_0 / p_alpha."""
    values = []
    for one in draws:
        rows = one.alphas == alpha
        log_w = one.log_p[rows, one.levels.index(0.0)] - one.log_p[rows, one.levels.index(alpha)]
        values.append(float(numpy.where(one.hits[rows], numpy.exp(log_w), 0.0).mean()))
    return float(numpy.mean(values))


class Extrapolated(NamedTuple):
    """A rate at alpha 0 read off a curve through the rates at other alphas: model-based."""

    estimate: float
    lower: float
    upper: float


def extrapolated(
    alphas: Sequence[float], hits: Sequence[int], draws: Sequence[int], degree: int
) -> Extrapolated | None:
    """Fit the log-odds of a hit as a polynomial in alpha, and read it off at alpha 0.

    Logit path extrapolation with alpha as the path (Pernice and Aranguri 2026); alpha 0 itself is
    not used. hits, draws: counts at each alpha. Binomial regression; the 95 % interval holds if the
    curve is the true one. None if fewer than degree + 2 alphas have hits, or if the fit fails.
    """
    import statsmodels.api as sm

    chosen = [n for n, alpha in enumerate(alphas) if alpha != 0]
    if sum(hits[n] > 0 for n in chosen) <= degree + 1:
        return None
    columns = numpy.vander([alphas[n] for n in chosen], degree + 1, increasing=True)
    counts = numpy.array([[hits[n], draws[n] - hits[n]] for n in chosen])
    try:
        fitted = sm.GLM(counts, columns, family=sm.families.Binomial()).fit()
    except Exception:  # statsmodels has an error of its own for a perfect separation
        return None
    low, high = fitted.conf_int(1 - LEVEL)[0]
    return Extrapolated(*(float(expit(value)) for value in (fitted.params[0], low, high)))


def pareto_k(weights: NDArray) -> float | None:
    """Return the shape of the weights' tail (Vehtari et al. 2024) by ArviZ.

    Above min(1 - 1 / log10 S, 0.7) the mean of S weights is not to be trusted. None if ArviZ is not
    installed, or if the tail has no shape.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        return None
    # It takes negated log-weights, as in leave-one-out estimates; otherwise it would fit the other
    # tail.
    try:
        _, k = array_stats.psislw(-numpy.log(weights[weights > 0]))
    except ValueError:  # a tail of equal weights has no shape
        return None
    return float(k)
