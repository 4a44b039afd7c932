"""Turn the logits of many rows into their next tokens: apply the rule, draw, and measure.

The logits may come from any engine. Each row has its own arm, alpha and request, and its result
does not depend on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import BadInput
from ...logits.amplification import Rule
from ...logits.arms import ARMS
from ...logits.measures import measure_step
from ...logits.sampling import Draw
from ...logits.vocabulary import PER_TOKEN
from ..interface import Generation, Request

# Rows that pass through rule, draw and measures together. On a CPU, eight keep the intermediate
# results in its cache (docs/LOG.md); a GPU is given all rows.
ROWS_AT_ONCE = {"cpu": 8}
LARGEST = PER_TOKEN.index("logit_max")


def draw_rows(
    logits: Sequence[Tensor],
    arms: Sequence[str],
    alphas: Tensor,
    numbers: Tensor,
    requests: Sequence[Request],
    rule: Rule,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token per row; return the tokens (rows,) int64, and what to record of them.

    logits: one (rows, vocab) float32 tensor per stream, the anchor first. alphas: (rows, 1).
    numbers: (rows,), uniform in [0, 1). most: how many of the likeliest tokens to report, or None.

    The second tensor is (rows, `row_width(most)`) float32: the measures in the order of
    `PER_TOKEN`, then the token id (exact below 2^24), then with `most` the likeliest tokens as
    `append_row` reads them. It is a single tensor so that a GPU is waited for only once. Raises
    BadInput when the rule does not return valid logits.
    """
    a, b = anchor_and_reference(logits)
    amplified = _amplified(rule, a, b, arms, alphas)
    drawn = _drawn(amplified, numbers, requests)
    columns = [measure_step(a, b, amplified, drawn), drawn.tokens[:, None]]
    if most is not None:
        columns.append(_likeliest(amplified, drawn.tokens, most))
    return drawn.tokens, torch.cat(columns, 1)


def most_likeliest(requests: Sequence[Request]) -> int | None:
    """Return the largest `likeliest` of these requests, or None if none of them has one."""
    asked = [request.likeliest for request in requests]
    return max((number for number in asked if number is not None), default=None)


def row_width(most: int | None) -> int:
    """Return the number of columns in the second result of `draw_rows`."""
    return len(PER_TOKEN) + 1 + (0 if most is None else 1 + 2 * most)


def append_row(generation: Generation, row: Sequence[float], request: Request) -> None:
    """Append a row of `draw_rows` to its generation; set finish_reason if that ends it."""
    measures, (token, *likeliest) = list(row[: len(PER_TOKEN)]), row[len(PER_TOKEN) :]
    if request.likeliest is not None:
        generation.likeliest.append(_pairs(int(token), likeliest, request.likeliest))
    append_token(generation, int(token), measures, request)


def append_token(
    generation: Generation, token: int, measures: list[float], request: Request
) -> None:
    """Append a token and its measures to a generation; set finish_reason if that ends it.

    If the largest amplified logit is not finite, the token is dropped and finish_reason is "error".
    """
    if not math.isfinite(measures[LARGEST]):
        number = len(generation.token_ids) + 1
        generation.finish_reason = "error"
        generation.error = f"the amplified logits of token {number} are NaN or infinite"
        return
    generation.token_ids.append(token)
    generation.per_token.append(measures)
    if token in request.stop_ids:
        generation.finish_reason = "eos"
    elif request.stops(generation.token_ids):
        generation.finish_reason = "stop"
    elif len(generation.token_ids) == request.max_new_tokens:
        generation.finish_reason = "length"


def anchor_and_reference(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what a rule takes as A and B: (A, B) itself, or (base, reference) for (base, A, B).

    base + alpha * (A - B) equals base + alpha * (base - reference) with reference = base - (A - B).
    """
    if len(logits) == 2:
        return logits[0], logits[1]
    base, a, b = logits
    return base, base - (a - b)


def _drawn(amplified: Tensor, numbers: Tensor, requests: Sequence[Request]) -> Draw:
    """Draw a token for each row with the sampler of its request."""
    samplers = [request.sampler for request in requests]
    if len(set(samplers)) == 1:
        return samplers[0](amplified, numbers)
    logprobs = torch.empty_like(amplified[:, 0])
    drawn = Draw(torch.empty_like(logprobs, dtype=torch.long), logprobs)
    for sampler in set(samplers):
        rows = [row for row, one in enumerate(samplers) if one is sampler]
        for whole, own in zip(drawn, sampler(amplified[rows], numbers[rows]), strict=True):
            whole[rows] = own
    return drawn


def _amplified(
    rule: Rule, logits_a: Tensor, logits_b: Tensor, arms: Sequence[str], alphas: Tensor
) -> Tensor:
    if len(set(arms)) == 1:
        return _apply(arms[0], rule, logits_a, logits_b, alphas)
    amplified = torch.empty_like(logits_a)
    for arm in set(arms):
        rows = [row for row, name in enumerate(arms) if name == arm]
        amplified[rows] = _apply(arm, rule, logits_a[rows], logits_b[rows], alphas[rows])
    return amplified


def _apply(arm: str, rule: Rule, logits_a: Tensor, logits_b: Tensor, alphas: Tensor) -> Tensor:
    """Apply an arm, and check that a rule edited in the notebook returns logits."""
    shape = tuple(logits_a.shape)
    try:
        amplified = ARMS[arm](rule, logits_a, logits_b, alphas)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise BadInput(
            f"the rule raised {type(error).__name__}: {error}; it was given logits_a and logits_b "
            f"of shape {shape} and alpha of shape {tuple(alphas.shape)}"
        ) from error
    if not isinstance(amplified, Tensor) or amplified.shape != logits_a.shape:
        got = tuple(amplified.shape) if isinstance(amplified, Tensor) else type(amplified).__name__
        raise BadInput(f"the rule returned {got}; it must return logits of shape {shape}")
    if amplified.dtype != torch.float32:
        raise BadInput(f"the rule returned {amplified.dtype}; it must return torch.float32")
    return amplified


def _likeliest(amplified: Tensor, tokens: Tensor, most: int) -> Tensor:
    """Return (rows, 1 + 2 * most): log-probabilities of `tokens`, the top ids, and theirs."""
    logprobs = amplified.log_softmax(-1)
    values, ids = logprobs.topk(most)
    return torch.cat([logprobs.gather(1, tokens[:, None]), ids, values], 1)


def _pairs(token: int, row: list[float], asked: int) -> list[tuple[int, float]]:
    """Return the sampled token and the `asked` likeliest of a `_likeliest` row, as (id, nats)."""
    most = len(row) // 2
    likeliest = zip(map(int, row[1 : 1 + asked]), row[1 + most :], strict=False)
    return [(token, row[0]), *likeliest]
