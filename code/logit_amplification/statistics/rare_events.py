"""Estimate how often unamplified A does something, from generations at all alphas of a run.

The probability of a text under every alpha is known token by token, and so is its normaliser. This
makes the estimate multiple importance sampling with the balance heuristic (Veach and Guibas 1995),
or MBAR with free energies fixed at 0 (Shirts and Chodera 2008). With n_k of N draws at alpha k,

    rate = 1/N * sum over hits x of w(x),   w(x) = p_0(x) / sum over k of (n_k / N) p_k(x)

is unbiased for the rate at alpha 0, and nearly so if control variates with fitted slopes are used.
Alpha 0 takes part, so no weight is above N / n_0, and no text that it can produce is missing. x may
end where the event is decided: later tokens do not matter and would only add variance. If all
probabilities of every draw are known, p_k / mixture - 1, whose mean is 0, are used as control
variates (Owen and Zhou 2000). For assumptions and limits see docs/METHODOLOGY.md. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import t as student

from .intervals import LEVEL

RESAMPLES = 2_000
FEWEST_HITS = 5.0  # effective hits needed for an estimate
FAR_FROM_ONE = 0.25  # largest distance of the mean weight from 1: beyond it, no estimate
STANDARD_ERRORS = 4.0  # the same in standard errors


@dataclass(frozen=True)
class Draws:
    """The generations of one pair.

    family: the pair's family, the unit of the interval. levels: the K alphas that were drawn at.
    alphas (N,): the alpha of each generation. hits (N,) bool: whether it contains the event. log_p
    (N, K): its log-probability in nats under each alpha of `levels`, up to where the event was
    decided; NaN where that is not known, which is allowed for non-hits only. samples (N,):
    generations with the same number share their random numbers; if empty, none do.
    """

    family: str
    levels: tuple[float, ...]
    alphas: NDArray
    hits: NDArray
    log_p: NDArray
    samples: NDArray = field(default_factory=lambda: numpy.empty(0))

    @property
    def log_shares(self) -> NDArray:
        """The logarithm of each level's share of the draws, (K,)."""
        counts = numpy.array([(self.alphas == level).sum() for level in self.levels])
        with numpy.errstate(divide="ignore"):
            return numpy.log(counts / counts.sum())

    @property
    def log_mixture(self) -> NDArray:
        """The log-probability of each generation under the mixture of all draws, (N,)."""
        return logsumexp(self.log_p + self.log_shares, axis=1)

    @property
    def weights(self) -> NDArray:
        """The importance weight of each generation, (N,); NaN where log_p is."""
        return numpy.exp(self.log_p[:, self.levels.index(0.0)] - self.log_mixture)

    @property
    def controls(self) -> NDArray:
        """The control variates, whose mean under the mixture of all draws is 0, (N, K - 1)."""
        ratios = numpy.exp(self.log_p - self.log_mixture[:, None]) - 1
        return numpy.delete(ratios, self.levels.index(0.0), axis=1)

    @property
    def clusters(self) -> NDArray:
        """A number that identifies the random numbers each generation used, (N,)."""
        return self.samples if len(self.samples) else numpy.arange(len(self.alphas))


class Rate(NamedTuple):
    """A rate with its 95 % interval and diagnostics. verdict: "estimated", or why it is not."""

    estimate: float
    lower: float
    upper: float
    ess: float  # effective sample size of all draws with known weights
    ess_hits: float  # effective sample size of the hits
    mean_weight: float  # 1 except for sampling noise
    counted: float  # the share of hits among the draws at alpha 0
    verdict: str


def estimate(draws: Sequence[Draws]) -> Rate:
    """Return the rate at alpha 0, averaged over pairs within families and then over families.

    The interval is estimate * exp(+- t * s / estimate). s is the standard error of a bootstrap over
    families and, within each pair, over samples, where samples drawn at the same alphas replace
    each other (fixed seed). t is Student's, with the degrees of freedom that effective hits or
    families leave. The percentiles of the bootstrap are not used: with few weighted hits their
    distribution is skewed and the percentiles cover the truth too rarely (docs/LOG.md). Without any
    hit the upper bound is the rule of three over the draws at alpha 0.
    """
    weights = [one.weights for one in draws]
    every, hits = numpy.concatenate(weights), numpy.concatenate([one.hits for one in draws])
    hit_weights, others = every[hits], every[~hits]
    known = others[~numpy.isnan(others)]
    # Only a sample of the others has known weights; it stands for all of them.
    weigh = [(hit_weights, 1.0), (known, len(others) / max(1, len(known)))]
    at_zero = sum(int((one.alphas == 0).sum()) for one in draws)
    hits_at_zero = sum(int(one.hits[one.alphas == 0].sum()) for one in draws)
    ess, ess_hits = _effective(weigh), _effective(weigh[:1])
    mean_weight = sum(times * float(some.sum()) for some, times in weigh) / len(every)
    told = {
        "ess": ess,
        "ess_hits": ess_hits,
        "mean_weight": mean_weight,
        "counted": hits_at_zero / at_zero,
    }
    if not len(hit_weights):
        bound = min(1.0, 3 / at_zero)
        return Rate(0.0, 0.0, bound, verdict="not estimable: no hit at any alpha", **told)
    plain = [_worth(one, w) for one, w in zip(draws, weights, strict=True)]
    worth, slopes = _controlled(draws, plain)
    value = _mean([float(one.mean()) for one in worth], draws)
    if value <= 0:  # the control variates can overshoot
        worth, slopes = plain, 0
        value = _mean([float(one.mean()) for one in worth], draws)
    lower, upper = _interval(draws, worth, value, ess_hits, slopes)
    error = numpy.sqrt(sum(times * ((w - 1) ** 2).sum() for w, times in weigh) / len(every))
    error /= numpy.sqrt(len(hit_weights) + len(known))
    verdict = _verdict(mean_weight, float(error), ess_hits)
    if lower == upper:
        verdict = "not estimable: one sample of one pair; more of either"
    return Rate(*(min(1.0, one) for one in (value, lower, upper)), verdict=verdict, **told)


def _worth(one: Draws, weights: NDArray) -> NDArray:
    """Return what each generation contributes to the rate, (N,): its weight if it is a hit."""
    return numpy.where(one.hits, weights, 0.0)


def _controlled(draws: Sequence[Draws], worth: list[NDArray]) -> tuple[list[NDArray], int]:
    """Subtract what the control variates explain, if all are known; also return their number."""
    unknown = any(numpy.isnan(one.log_p).any() or len(one.levels) < 2 for one in draws)
    if unknown or len({one.levels for one in draws}) > 1:
        return worth, 0
    controls = [one.controls for one in draws]
    centred = numpy.concatenate([c - c.mean(0) for c in controls])
    wanted = numpy.concatenate([w - w.mean() for w in worth])
    slopes = numpy.linalg.lstsq(centred, wanted, rcond=None)[0]
    return [w - c @ slopes for w, c in zip(worth, controls, strict=True)], len(slopes)


def _mean(values: Sequence[float], draws: Sequence[Draws]) -> float:
    """Return the mean over families of the means over their pairs."""
    families: dict[str, list[float]] = {}
    for value, one in zip(values, draws, strict=True):
        families.setdefault(one.family, []).append(value)
    return float(numpy.mean([numpy.mean(found) for found in families.values()]))


def _effective(weigh: Sequence[tuple[NDArray, float]]) -> float:
    """Return Kish's effective sample size, (sum w)^2 / sum w^2.

    weigh: pairs of weights and a factor; each weight stands for that many equal ones.
    """
    total, squares = (sum(t * float((w**power).sum()) for w, t in weigh) for power in (1, 2))
    return total**2 / squares if squares else 0.0


def _verdict(mean_weight: float, error: float, ess_hits: float) -> str:
    off = abs(mean_weight - 1)
    if off > FAR_FROM_ONE or off > STANDARD_ERRORS * error + 1e-6:
        return (
            f"not estimable: the mean weight is {mean_weight:.2f} and not 1; more samples at alpha "
            "0, or alphas nearer to it"
        )
    if ess_hits < FEWEST_HITS:
        return (
            f"not estimable: {ess_hits:.1f} effective hits, {FEWEST_HITS:g} are needed; more "
            "samples, or an alpha at which a few in a hundred are hits"
        )
    return "estimated"


def _interval(
    draws: Sequence[Draws], worth: Sequence[NDArray], value: float, hits: float, slopes: int
) -> tuple[float, float]:
    """Return the 95 % interval of a rate from `hits` effective hits and `slopes` fitted slopes."""
    families = len({one.family for one in draws})
    freedom = max(1.0, min(hits, families if families > 1 else hits) - 1)
    # Slopes fitted to the same hits also explain some of their noise.
    fitted = numpy.sqrt(max(hits, 1) / max(1.0, hits - slopes - 1))
    spread = float(_bootstrap(draws, worth).std()) / value * fitted
    reach = numpy.exp(student.ppf((1 + LEVEL) / 2, freedom) * spread)
    return float(value / reach), float(value * reach)


def _bootstrap(draws: Sequence[Draws], worth: Sequence[NDArray]) -> NDArray:
    """Return the rate in every resample of families and, within each pair, of its samples."""
    generator = numpy.random.default_rng(0)
    families = sorted({one.family for one in draws})
    # (resamples, pairs): each pair's estimate in every resample.
    values = numpy.stack(
        [_resampled(one, w, generator) for one, w in zip(draws, worth, strict=True)],
        axis=1,
    )
    places = [[i for i, one in enumerate(draws) if one.family == name] for name in families]
    means = numpy.stack([values[:, some].mean(1) for some in places], axis=1)
    if len(families) > 1:
        chosen = generator.integers(0, len(families), means.shape)
        means = numpy.take_along_axis(means, chosen, axis=1)
    return means.mean(1)


def _resampled(one: Draws, worth: NDArray, generator: numpy.random.Generator) -> NDArray:
    """Return the pair's estimate in every resample of its samples, within those at equal alphas."""
    totals: dict[float, float] = defaultdict(float)
    alphas: dict[float, tuple[float, ...]] = defaultdict(tuple)
    for cluster, alpha, value in sorted(zip(one.clusters, one.alphas, worth, strict=True)):
        totals[cluster] += value
        alphas[cluster] += (alpha,)
    strata: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for cluster, total in totals.items():
        strata[alphas[cluster]].append(total)
    found = numpy.zeros(RESAMPLES)
    for values in map(numpy.array, strata.values()):
        found += values[generator.integers(0, len(values), (RESAMPLES, len(values)))].sum(1)
    return found / len(worth)
