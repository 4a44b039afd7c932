"""Rates corrected for the scorer's own errors, with intervals that carry them. No torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy
import pandas

from .intervals import LEVEL, Estimate

DRAWS = 20_000


class Errors(NamedTuple):
    """How a scorer did on labelled answers: what it found of those that are so, and of others."""

    found: int
    of: int
    false_alarms: int
    of_others: int


def errors_of(scored: pandas.DataFrame, label: str) -> Errors:
    """Count the errors of one label on answers with columns `label` (the truth) and `found`."""
    so, called = scored["label"] == label, scored["found"] == label
    return Errors(
        *(int((so & called).sum()), int(so.sum()), int((~so & called).sum()), int((~so).sum()))
    )


def corrected(share: Estimate, errors: Errors) -> Estimate:
    """Return the rate behind an observed share: Rogan and Gladen 1978, in its Bayesian form.

    (share - false alarms) / (sensitivity - false alarms), cut to 0..1; share, sensitivity and
    false-alarm rate are drawn from their Jeffreys posteriors, always the same draws, and the bounds
    are quantiles. The share counts as so many draws as its own interval says. The mean is the
    median of the draws. NaN where nothing was labelled, or the scorer finds no more than it errs.
    """
    if not errors.of or not errors.of_others or pandas.isna(share.lower):
        return Estimate(numpy.nan, numpy.nan, numpy.nan, share.n)
    generator = numpy.random.default_rng(0)
    half = max(share.upper - share.lower, 1e-9) / 2
    inside = min(max(share.mean, 1 / (2 * share.n)), 1 - 1 / (2 * share.n))
    count = max(float(share.n), inside * (1 - inside) * (1.96 / half) ** 2)

    def beta(hits: float, of: float) -> numpy.ndarray:
        return generator.beta(hits + 0.5, of - hits + 0.5, DRAWS)

    observed = beta(share.mean * count, count)
    found = beta(errors.found, errors.of)
    alarms = beta(errors.false_alarms, errors.of_others)
    useful = found > alarms
    if useful.mean() < LEVEL:
        return Estimate(numpy.nan, numpy.nan, numpy.nan, share.n)
    rates = ((observed - alarms) / (found - alarms))[useful].clip(0, 1)
    low, middle, high = numpy.quantile(rates, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Estimate(float(middle), float(low), float(high), share.n)


def is_measurable(rates: list[Estimate]) -> bool:
    """Whether any of the corrected rates can be told from the scorer's errors: from zero."""
    return any(rate.lower > 0.005 for rate in rates)
