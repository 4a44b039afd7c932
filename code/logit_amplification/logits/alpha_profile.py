"""The amplified distribution along one text at 200 alphas, from two forward passes.

The two contexts read the same text once each. With a = log p_A, b = log p_B, d = a - b and
Z(alpha) = sum_v exp(a_v + alpha * d_v), the amplified distribution is the exponential family
p_alpha(v) = exp(a_v + alpha * d_v) / Z(alpha). All curves follow from log Z, E[d] and E[a], where E
is the expectation under p_alpha:

    KL(p_alpha || p_A)  = alpha * E[d] - log Z
    entropy             = log Z - E[a] - alpha * E[d]
    -log p_alpha(token) = log Z - a_token - alpha * d_token

In an exponential family dE[d]/dalpha = Var[d] and d(log Z)/dalpha = E[d] (Wainwright & Jordan
2008, prop. 3.1), so dKL/dalpha = alpha * Var[d]: for alpha >= 0 the KL never decreases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHAS = tuple(torch.linspace(-1, 8, 200, dtype=torch.float64).tolist())
ROWS = 4  # positions at a time, so that their float64 copies stay in the CPU's cache
WIDTH = 0.05  # bucket width in nats, at the alpha furthest from the middle of the grid
TERMS = 4  # of exp's series within a bucket; the remainder is below (WIDTH / 2)**4 / 4! = 2e-8
MAX_REACH = 100.0  # nats from the middle of the grid: no overflow, and at most 4,001 buckets


@dataclass(frozen=True)
class Change:
    """At `alpha` the argmax of a position of the text changes from token `before` to `after`."""

    position: int
    alpha: float
    before: int
    after: int


@dataclass(frozen=True)
class AlphaProfile:
    """The amplified distribution at each alpha and position of a text.

    alphas: (n,) float64. Three curves in nats, each (n, positions) float64: kl_amplified_a, which
    is KL(p_alpha || p_A); entropy; and cross_entropy, which is -log p_alpha(text token). All are on
    the CPU. changes: where the argmax changes, ordered by position and then by alpha, within the
    smallest interval that holds 0 and all alphas.
    """

    alphas: Tensor
    kl_amplified_a: Tensor
    entropy: Tensor
    cross_entropy: Tensor
    changes: list[Change]

    def changed_share(self) -> Tensor:
        """Return, for each alpha, the share of positions whose argmax differs from alpha 0.

        (n,) float64, exact. The slope d of the argmax only grows with alpha, so a token that has
        lost the argmax never regains it: one change between alpha and 0 means that they differ.
        """
        at = torch.tensor([change.alpha for change in self.changes], dtype=torch.float64)
        position = torch.tensor([change.position for change in self.changes], dtype=torch.int64)
        between = (at <= self.alphas[:, None]) != (at <= 0)
        counts = torch.zeros_like(self.entropy).index_add_(1, position, between.double())
        return (counts > 0).double().mean(1)

    def means(self) -> dict[str, list[float]]:
        """Return columns of n floats: alpha, each curve's mean over positions, `changed_share`."""
        curves = {
            name: getattr(self, name).mean(1)
            for name in ("kl_amplified_a", "entropy", "cross_entropy")
        }
        columns = {"alpha": self.alphas, **curves, "changed_share": self.changed_share()}
        return {name: column.tolist() for name, column in columns.items()}


def profile(
    logits_a: Tensor,
    logits_b: Tensor,
    text_ids: Sequence[int],
    alphas: Sequence[float] | Tensor = ALPHAS,
) -> AlphaProfile:
    """Return the curves and argmax changes of a text at every alpha and position.

    logits_a, logits_b: (positions, vocab), finite, as `engine.forward.text_logits` returns them.
    text_ids: (positions,), at least one. alphas: (n,), in any order and spacing. Computed on the
    CPU in float64; the curves are accurate to about 1e-7 nats, the changes are exact. Raises
    ValueError when the shapes do not match.
    """
    if not logits_a.shape == logits_b.shape == (len(text_ids), logits_a.shape[-1]):
        raise ValueError(
            f"{len(text_ids)} tokens need logits of as many rows, not {tuple(logits_a.shape)} "
            f"and {tuple(logits_b.shape)}"
        )
    logits_a, logits_b = logits_a.cpu(), logits_b.cpu()  # Apple's GPU has no float64
    grid = torch.as_tensor(alphas, dtype=torch.float64, device="cpu")
    text = torch.as_tensor(text_ids, device="cpu")
    parts = zip(logits_a.split(ROWS), logits_b.split(ROWS), text.split(ROWS), strict=True)
    curves = torch.cat([_curves(*part, grid) for part in parts], -1)
    low, high = min(0.0, float(grid.amin())), max(0.0, float(grid.amax()))
    return AlphaProfile(grid, *curves, list(_changes(logits_a, logits_b, low, high)))


def alpha_at(
    alphas: Sequence[float] | Tensor, kl: Sequence[float] | Tensor, target: float
) -> float:
    """Return the alpha > 0 at which the mean KL(p_alpha || p_A) reaches `target` > 0 nats.

    alphas: (n,). kl: (n,) mean KL in nats, which is 0 at alpha 0 and never decreases above it (see
    the module's docstring). Interpolates linearly between grid values. Returns nan when the grid
    ends before the target is reached. Raises ValueError when the target is not positive.
    """
    if target <= 0:
        raise ValueError(f"target = {target}: the KL must be above 0")
    curve = sorted((float(x), float(y)) for x, y in zip(alphas, kl, strict=True) if x > 0)
    x_before = y_before = 0.0
    for x, y in curve:
        if y >= target:
            return x_before + (x - x_before) * (target - y_before) / (y - y_before)
        x_before, y_before = x, y
    return math.nan


# ---------------------------------------------------------------------------------------- curves


def _curves(logits_a: Tensor, logits_b: Tensor, text: Tensor, alphas: Tensor) -> Tensor:
    """Return KL, entropy and cross-entropy of a few positions as (3, n, rows) float64."""
    a = logits_a.double()
    # From raw logits, so that d is exactly 0 where A = B. A constant in d cancels in the curves.
    d = a - logits_b.double()
    d -= (d.amin(-1, keepdim=True) + d.amax(-1, keepdim=True)) / 2
    a = a.log_softmax(-1)
    log_z, mean_d, mean_a = _moments(a, d, alphas)
    a_text, d_text = (x.gather(-1, text[:, None]).T for x in (a, d))
    # Rounding must not make a divergence negative.
    kl = (alphas[:, None] * mean_d - log_z).clamp_(min=0)
    return torch.stack([kl, -mean_a - kl, log_z - a_text - alphas[:, None] * d_text])


def _moments(a: Tensor, d: Tensor, alphas: Tensor) -> Tensor:
    """Return log Z, E[d] and E[a] under exp(a + alpha * d) / Z, as (3, n, rows) float64.

    The vocabulary is summed only once, at the middle alpha: tokens of nearly equal d go into one
    bucket, which keeps the sums of the powers of d's distance from the bucket's centre. Any other
    alpha is then a sum over buckets, with exp as a Taylor series within each, as in the fast Gauss
    transform (Greengard & Strain 1991).
    """
    middle = (alphas.amin() + alphas.amax()) / 2
    offsets = (alphas - middle)[:, None]
    reach = float(offsets.abs().amax() * d.amax())
    if reach > MAX_REACH:
        moments = d.new_empty(3, len(alphas), len(d))
        for half in (alphas <= middle, alphas > middle):
            moments[:, half] = _moments(a, d, alphas[half])
        return moments
    weights = a + middle * d
    peak = weights.amax(-1, keepdim=True)
    weights = (weights - peak).exp_()
    sums = _bucketed(torch.stack([weights, weights * d, weights * a]), d, offsets, reach)
    z, zd, za = sums
    return torch.stack([z.log() + peak.T, zd / z, za / z])


def _bucketed(weights: Tensor, d: Tensor, offsets: Tensor, reach: float) -> Tensor:
    """Sum weights * exp(offset * d) over the vocabulary: (k, rows, vocab) -> (k, n, rows).

    d: (rows, vocab) float64. offsets: (n, 1). reach: the largest |offset * d|. `weights` is
    overwritten.
    """
    if reach == 0:  # a single alpha, or A = B
        return weights.sum(-1)[:, None].expand(-1, len(offsets), -1)
    outermost = math.ceil(reach / WIDTH)
    width = float(d.amax()) / outermost
    number = torch.round(d / width)
    rest = d - number * width
    index = (number.long() + outermost).expand_as(weights)
    buckets = torch.arange(-outermost, outermost + 1, dtype=torch.float64)
    kernel = torch.exp(offsets * buckets * width)
    sums = d.new_zeros(len(weights), len(offsets), len(d))
    for power in range(TERMS):
        held = d.new_zeros(*weights.shape[:2], len(buckets)).scatter_add_(-1, index, weights)
        sums += offsets**power / math.factorial(power) * (kernel @ held.mT)
        weights *= rest
    return sums


# --------------------------------------------------------------------------------------- changes


def _changes(logits_a: Tensor, logits_b: Tensor, low: float, high: float) -> Iterator[Change]:
    for position, (row_a, row_b) in enumerate(zip(logits_a, logits_b, strict=True)):
        a = row_a.double()
        for change in _upper_envelope(a, a - row_b.double(), low, high):
            yield Change(position, *change)


def likeliest(
    logits_a: Tensor, logits_b: Tensor, low: float, high: float
) -> list[tuple[float, int]]:
    """Return (alpha, token) pairs: each token is the argmax from its alpha up to the next alpha.

    logits_a, logits_b: (vocab,), finite. The first alpha is `low`; all others are below `high` and
    exact for these logits. At an alpha where tokens tie, the one that wins just above it counts.
    """
    a = logits_a.double().cpu()
    d = a - logits_b.double().cpu()
    pieces = [(low, _steepest_highest(a + low * d, d))]
    for alpha, _, after in _upper_envelope(a, d, low, high):
        if alpha <= pieces[-1][0]:  # two changes at one alpha: keep the steeper token
            pieces.pop()
        if alpha < high:
            pieces.append((max(low, alpha), after))
    return pieces


def _upper_envelope(
    a: Tensor, d: Tensor, low: float, high: float
) -> Iterator[tuple[float, int, int]]:
    """Yield (alpha, before, after) where the highest of the lines a + alpha * d changes.

    a, d: (vocab,) float64. The alphas ascend within [low, high]. Gift wrapping (Jarvis 1973): start
    at the line that is highest at `low`, and go repeatedly to the line that crosses it next. Where
    several lines cross in one point, the steepest is on top above it; of identical lines the one
    with the smallest id counts.
    """
    before = _steepest_highest(a + low * d, d)
    ids = torch.arange(len(d))
    while len(ids := ids[d[ids] > d[before]]):  # only a steeper line can overtake
        crossings = (a[before] - a[ids]) / (d[ids] - d[before])
        nearest = _steepest_highest(-crossings, d[ids])
        alpha, after = float(crossings[nearest]), int(ids[nearest])
        if alpha > high:
            return
        yield alpha, before, after
        before = after


def _steepest_highest(values: Tensor, slopes: Tensor) -> int:
    """Return the index of the largest value; ties go to the largest slope, then to the first."""
    highest = (values == values.amax()).nonzero()[:, 0]
    return int(highest[slopes[highest].argmax()])
