"""How often does unamplified A do something? Estimated from generations at all alphas of a run.

Every alpha's distribution over texts is known, token by token, so its normaliser is: what samplers
call multiple importance sampling with the balance heuristic (Veach and Guibas 1995), and MBAR with
free energies fixed at 0 (Shirts and Chodera 2008). With n_k draws at alpha k out of N,

    rate = 1/N * sum over hits x of w(x),   w(x) = p_0(x) / sum over k of (n_k / N) p_k(x)

is unbiased for the rate at alpha 0. Alpha 0 takes part, so that no weight is above N / n_0, and no
text that it can make is missing. x may end where the event is decided: what comes after does not
matter, and would only add variance. docs/METHODOLOGY.md has assumptions and limits. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from scipy.special import logsumexp

from .intervals import LEVEL

RESAMPLES = 2_000
FEWEST_HITS = 5.0  # effective ones, for an interval
FAR_FROM_ONE = 0.25  # of the mean weight: then something is wrong, or no text is near
STANDARD_ERRORS = 4.0  # by how many it must be off to count


@dataclass(frozen=True)
class Draws:
    """The generations of one pair.

    alphas (N,): the alpha of each. hits (N,): whether the event is in it. log_p (N, K): its
    log-probability under each of the K alphas that were drawn at, in `levels`, up to where the
    event was decided; NaN where that is not known, which is allowed for what is no hit.
    """

    family: str
    levels: tuple[float, ...]
    alphas: NDArray
    hits: NDArray
    log_p: NDArray

    @property
    def weights(self) -> NDArray:
        """The weight of each generation, (N,); NaN where log_p is."""
        counts = numpy.array([(self.alphas == level).sum() for level in self.levels])
        mixture = logsumexp(self.log_p + numpy.log(counts / counts.sum()), axis=1)
        return numpy.exp(self.log_p[:, self.levels.index(0.0)] - mixture)


class Rate(NamedTuple):
    """A rate with its interval, and what it rests on. verdict: "estimated", or why it is not."""

    estimate: float
    lower: float
    upper: float
    ess: float  # effective sample size of those whose weights are known
    ess_hits: float  # of the hits
    mean_weight: float  # 1 but for luck
    counted: float  # the share of hits at alpha 0 itself
    verdict: str


def estimate(draws: Sequence[Draws]) -> Rate:
    """Return the rate at alpha 0, averaged over the families of pairs.

    The interval is a bootstrap of families and, within a pair and alpha, of draws; always the same
    resamples. Without a hit the upper bound is the rule of three over the draws at alpha 0.
    """
    weights = [one.weights for one in draws]
    every, hits = numpy.concatenate(weights), numpy.concatenate([one.hits for one in draws])
    hit_weights, others = every[hits], every[~hits]
    known = others[~numpy.isnan(others)]
    # Those of the others that were looked at stand for all of them.
    weigh = [(hit_weights, 1.0), (known, len(others) / max(1, len(known)))]
    at_zero = sum(int((one.alphas == 0).sum()) for one in draws)
    hits_at_zero = sum(int(one.hits[one.alphas == 0].sum()) for one in draws)
    value = _mean([_of_pair(one, w) for one, w in zip(draws, weights, strict=True)], draws)
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
    lower, upper = _bootstrap(draws, weights)
    error = numpy.sqrt(sum(times * ((w - 1) ** 2).sum() for w, times in weigh) / len(every))
    error /= numpy.sqrt(len(hit_weights) + len(known))
    verdict = _verdict(mean_weight, float(error), ess_hits)
    return Rate(value, lower, upper, verdict=verdict, **told)


def _of_pair(one: Draws, weights: NDArray) -> float:
    return float(numpy.where(one.hits, weights, 0.0).sum() / len(weights))


def _mean(values: Sequence[float], draws: Sequence[Draws]) -> float:
    """The mean over families of the means over their pairs."""
    families: dict[str, list[float]] = {}
    for value, one in zip(values, draws, strict=True):
        families.setdefault(one.family, []).append(value)
    return float(numpy.mean([numpy.mean(found) for found in families.values()]))


def _effective(weigh: Sequence[tuple[NDArray, float]]) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2; each part stands for so many times it."""
    total, squares = (sum(t * float((w**power).sum()) for w, t in weigh) for power in (1, 2))
    return total**2 / squares if squares else 0.0


def _verdict(mean_weight: float, error: float, ess_hits: float) -> str:
    off = abs(mean_weight - 1)
    if off > FAR_FROM_ONE or off > STANDARD_ERRORS * error + 1e-6:
        return f"not estimable: the mean weight is {mean_weight:.2f} and not 1"
    if ess_hits < FEWEST_HITS:
        return (
            f"not estimable: {ess_hits:.1f} effective hits, {FEWEST_HITS:g} are needed; more "
            "samples, or an alpha at which a few in a hundred are hits"
        )
    return "estimated"


def _bootstrap(draws: Sequence[Draws], weights: Sequence[NDArray]) -> tuple[float, float]:
    """Resample families, and within each pair and alpha its draws; 2.5 and 97.5 % points."""
    generator = numpy.random.default_rng(0)
    families = sorted({one.family for one in draws})
    # (resamples, pairs): each pair's estimate in every resample.
    values = numpy.stack(
        [_resampled(one, w, generator) for one, w in zip(draws, weights, strict=True)],
        axis=1,
    )
    places = [[i for i, one in enumerate(draws) if one.family == name] for name in families]
    means = numpy.stack([values[:, some].mean(1) for some in places], axis=1)
    if len(families) > 1:
        chosen = generator.integers(0, len(families), means.shape)
        means = numpy.take_along_axis(means, chosen, axis=1)
    low, high = numpy.quantile(means.mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(one: Draws, weights: NDArray, generator: numpy.random.Generator) -> NDArray:
    worth = numpy.where(one.hits, weights, 0.0)
    total = numpy.zeros(RESAMPLES)
    for level in one.levels:
        own = worth[one.alphas == level]
        total += own[generator.integers(0, len(own), (RESAMPLES, len(own)))].sum(1)
    return total / len(worth)
