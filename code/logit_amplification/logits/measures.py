"""From logits and tokens to numbers: how far a step went from A, and how the text reads.

Distributions are those of the logits as they are, at temperature 1 and before any truncation, so
the numbers do not depend on how a token was drawn. Natural logarithms: nats. docs/METHODOLOGY.md
states each definition with its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.linalg import vecdot

from .sampling import Draw
from .vocabulary import API_TOP

IMPLAUSIBLE_SHARE = 0.1  # of A's top probability: the threshold of Li et al. 2022


def measure_step(logits_a: Tensor, logits_b: Tensor, amplified: Tensor, drawn: Draw) -> Tensor:
    """Return the numbers of one step as (rows, measures) float32, in the order of `PER_TOKEN`.

    logits_a, logits_b, amplified (rows, vocab) float32, amplified may hold -inf; drawn: the tokens
    (rows,) and their log-probabilities. Each row's numbers depend on that row alone.
    """
    tokens = drawn.tokens
    # The clamp keeps 0 * log 0 at 0 where an arm has set logits to -inf.
    log_p = torch.log_softmax(amplified, -1).clamp_(min=-1e30)
    log_a = torch.log_softmax(logits_a, -1)
    log_b = torch.log_softmax(logits_b, -1)
    p = log_p.exp()
    chosen = log_a.gather(-1, tokens[:, None])
    return torch.stack(
        [
            vecdot(p, log_p - log_a),
            vecdot(log_a.exp(), log_a - log_b),
            -vecdot(p, log_p),
            -chosen[:, 0],
            -log_b.gather(-1, tokens[:, None])[:, 0],
            drawn.logprobs,
            (log_a > chosen).sum(-1) + 1.0,  # 1 is A's argmax
            (chosen[:, 0] < log_a.amax(-1) + math.log(IMPLAUSIBLE_SHARE)).float(),
            *_range_and_spread(amplified),
            *_seen_through_an_api(log_a, log_b, tokens),
        ],
        dim=-1,
    )


def _range_and_spread(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest, largest and standard deviation (over the vocabulary) of the finite logits."""
    smallest, largest, count = logits.amin(-1), logits.amax(-1), logits.shape[-1]
    # Asking costs a wait on a GPU and saves two passes on a CPU.
    if logits.device.type == "cpu" and not smallest.isneginf().any():
        away = logits - logits.sum(-1, keepdim=True) / count
    else:
        masked = logits == -torch.inf
        smallest = logits.masked_fill(masked, torch.inf).amin(-1)
        count = (~masked).sum(-1)
        mean = logits.masked_fill(masked, 0.0).sum(-1) / count
        away = (logits - mean[:, None]).masked_fill_(masked, 0.0)
    return smallest, largest, (vecdot(away, away) / count).sqrt()


def _seen_through_an_api(log_a: Tensor, log_b: Tensor, tokens: Tensor) -> Iterator[Tensor]:
    """Mass of A and of B outside their top-20 lists, tokens in both, and if one has the token."""
    top_a, top_b = (logprobs.topk(min(API_TOP, logprobs.shape[-1])) for logprobs in (log_a, log_b))
    for top in (top_a, top_b):
        yield (1 - top.values.exp().sum(-1)).clamp_min(0.0)
    yield (top_a.indices[:, :, None] == top_b.indices[:, None, :]).sum((1, 2)).float()
    listed = torch.cat([top_a.indices, top_b.indices], -1)
    yield (listed == tokens[:, None]).any(-1).float()


def measure_text(text: str, token_ids: Sequence[int]) -> dict[str, float | None]:
    """Length and repetition of one answer; n-grams are of token ids, the end token left out.

    distinct_n = different n-grams / n-grams (Li et al. 2016); repeated_4gram_share = 1 - distinct_4
    (rep-4 of Welleck et al. 2020). None where the answer is shorter than n.
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
