"""Measures of one decoding step (such as its KL from A) and of a finished text.

Distributions are taken at temperature 1 and before any truncation, so the numbers do not depend on
how a token was drawn. Logarithms are natural; the unit is nats. docs/METHODOLOGY.md states each
definition with its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.linalg import vecdot

from .sampling import Draw, top_k
from .vocabulary import API_TOP

IMPLAUSIBLE_SHARE = 0.1  # of A's top probability (Li et al. 2022, arXiv:2210.15097)


def measure_step(logits_a: Tensor, logits_b: Tensor, amplified: Tensor, drawn: Draw) -> Tensor:
    """Return the measures of one step as (rows, measures) float32, in the order of `PER_TOKEN`.

    logits_a, logits_b, amplified: (rows, vocab) float32; `amplified` may contain -inf. drawn: the
    tokens (rows,) and their log-probabilities (rows,). The numbers of a row depend on that row
    alone.
    """
    tokens = drawn.tokens[:, None]
    p, most, total = _softmax(amplified)
    p_a, most_a, total_a = _softmax(logits_a)
    total_b = _softmax(logits_b)[2]
    chosen_a, chosen_b = logits_a.gather(-1, tokens), logits_b.gather(-1, tokens)
    # An arm may have set logits to -inf; clamped, 0 * log 0 gives 0 instead of NaN.
    finite = amplified.clamp(min=-1e30)
    return torch.stack(
        [
            vecdot(p, finite - logits_a) - total + total_a,
            vecdot(p_a, logits_a - logits_b) - total_a + total_b,
            total - vecdot(p, finite),
            total_a - chosen_a[:, 0],
            total_b - chosen_b[:, 0],
            drawn.logprobs,
            # Rank 1 is A's argmax. Summed in float32, which is exact up to 2^24 and far faster
            # than summing booleans.
            torch.gt(logits_a, chosen_a, out=torch.empty_like(logits_a)).sum(-1) + 1.0,
            (chosen_a[:, 0] < most_a + math.log(IMPLAUSIBLE_SHARE)).float(),
            *_range_and_spread(amplified, most),
            *_seen_through_an_api((logits_a, logits_b), (total_a, total_b), tokens),
        ],
        dim=-1,
    )


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities (rows, vocab), the largest logit and log sum exp, each (rows,).

    log sum exp is read off the softmax, because torch.logsumexp would take as long as the softmax.
    """
    probabilities, most = torch.softmax(logits, -1), logits.amax(-1)
    return probabilities, most, most - probabilities.amax(-1).log()


def _range_and_spread(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return minimum, maximum and standard deviation of the finite logits, each (rows,)."""
    smallest, count = logits.amin(-1), logits.shape[-1]
    # Checking for -inf saves two passes on a CPU, but would mean waiting for a GPU.
    if logits.device.type == "cpu" and not smallest.isneginf().any():
        away = logits - logits.sum(-1, keepdim=True) / count
    else:
        masked = logits == -torch.inf
        smallest = logits.masked_fill(masked, torch.inf).amin(-1)
        count = (~masked).sum(-1)
        mean = logits.masked_fill(masked, 0.0).sum(-1) / count
        away = (logits - mean[:, None]).masked_fill_(masked, 0.0)
    return smallest, largest, (vecdot(away, away) / count).sqrt()


def _seen_through_an_api(
    logits: Sequence[Tensor], totals: Sequence[Tensor], tokens: Tensor
) -> Iterator[Tensor]:
    """Yield A's and B's mass outside their top-20 lists, the overlap, and if either has the token.

    logits: A's and B's, (rows, vocab). totals: their log sum exp, (rows,). tokens: (rows, 1). Each
    of the four is (rows,) float32.
    """
    tops = [top_k(one, min(API_TOP, one.shape[-1])) for one in logits]
    for (values, _), total in zip(tops, totals, strict=True):
        yield (1 - (values - total[:, None]).exp().sum(-1)).clamp_min(0.0)
    listed_a, listed_b = (ids for _, ids in tops)
    yield (listed_a[:, :, None] == listed_b[:, None, :]).sum((1, 2)).float()
    yield (torch.cat([listed_a, listed_b], -1) == tokens).any(-1).float()


def measure_text(text: str, token_ids: Sequence[int]) -> dict[str, float | None]:
    """Return the length and repetition measures of one answer.

    token_ids: the answer's, without the end token; n-grams are over these. distinct_n = distinct
    n-grams / n-grams (Li et al. 2016, arXiv:1510.03055). repeated_4gram_share = 1 - distinct_4
    (rep-4 of Welleck et al. 2020, arXiv:1908.04319). None where the answer is shorter than n.
    """
    distinct_4 = _distinct(token_ids, 4)
    return {
        "n_characters": len(text),
        "distinct_1": _distinct(token_ids, 1),
        "distinct_2": _distinct(token_ids, 2),
        "repeated_4gram_share": None if distinct_4 is None else 1 - distinct_4,
    }


def _distinct(ids: Sequence[int], n: int) -> float | None:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
