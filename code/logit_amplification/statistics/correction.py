"""Correct outcome rates for the scorer's own errors, and carry these into the intervals.

No torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy
import pandas

from .intervals import LEVEL, Estimate

DRAWS = 20_000


class Errors(NamedTuple):
    """A scorer's errors on labelled answers.

    found: how many it found of the `of` answers that have the label. false_alarms: how many it gave
    the label of the `of_others` answers that do not have it.
    """

    found: int
    of: int
    false_alarms: int
    of_others: int


def errors_of(scored: pandas.DataFrame, label: str) -> Errors:
    """Count the errors of one label; `scored` has columns `label` (the truth) and `found`."""
    so, called = scored["label"] == label, scored["found"] == label
    return Errors(
        *(int((so & called).sum()), int(so.sum()), int((~so & called).sum()), int((~so).sum()))
    )


def corrected(share: Estimate, errors: Errors) -> Estimate:
    """Return the true rate behind an observed share: Rogan and Gladen 1978, in its Bayesian form.

    rate = (share - false alarms) / (sensitivity - false alarms), clipped to 0..1. Share,
    sensitivity and false-alarm rate are drawn from their Jeffreys posteriors (`DRAWS` draws, fixed
    seed). The bounds are the 2.5 and 97.5 % quantiles of the rate, and the field `mean` holds its
    median. The effective number of draws behind the share follows from the width of its interval.
    All three are NaN if nothing was labelled, if the share has no interval, or if the sensitivity
    exceeds the false-alarm rate in fewer than 95 % of the draws.
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
    """Whether any corrected rate can be distinguished from zero: its lower bound is above 0.005."""
    return any(rate.lower > 0.005 for rate in rates)
