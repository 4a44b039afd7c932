"""The arms: controlled changes of what the rule is given, or of what comes out of it.

An arm takes the rule (`amplify`, or what the notebook made of it), logits_a and logits_b of shape
(..., vocab), float32, and alpha, and returns logits of the same shape; -inf marks a token that is
out. A row's result depends on that row alone. docs/METHODOLOGY.md says what each arm is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .amplification import Rule
from .sampling import nucleus
from .vocabulary import ARM_NAMES, LIST_ARMS, TOPS, WHOLE_ARMS, arm_name

Alpha = Tensor | float
Arm = Callable[[Rule, Tensor, Tensor, Alpha], Tensor]

PLAUSIBLE_SHARE = 0.1  # Li et al. 2022 (arXiv:2210.15097), their alpha
NUCLEUS_SHARE = 0.9  # the filter_p of DExperts (Liu et al. 2021, arXiv:2105.03023)
API_SENTINEL = -9999.0  # what OpenAI's schema puts for a token outside the list


def full(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """The rule over the whole vocabulary."""
    return rule(logits_a, logits_b, alpha)


def plausible(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """The rule over the tokens with at least a tenth of A's top probability (Li et al. 2022)."""
    floor = logits_a.amax(-1, keepdim=True) + math.log(PLAUSIBLE_SHARE)
    return rule(logits_a, logits_b, alpha).masked_fill(logits_a < floor, -torch.inf)


def nucleus_first(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """The rule over A's nucleus, taken before A and B are combined (Liu et al. 2021)."""
    rows = logits_a.reshape(-1, logits_a.shape[-1])
    ids, probabilities = nucleus(rows, NUCLEUS_SHARE)
    outside = torch.ones_like(rows, dtype=torch.bool).scatter(-1, ids, probabilities == 0)
    return rule(logits_a, logits_b, alpha).masked_fill(outside.view(logits_a.shape), -torch.inf)


# ------------------------------------------------------------- what an API leaves of it


def candidates(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int) -> Tensor:
    """The rule over A's `top` likeliest tokens; B is known completely."""
    return rule(logits_a, logits_b, alpha).masked_fill(~_listed(logits_a, top), -torch.inf)


def api_intersection(
    rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int
) -> Tensor:
    """The rule over the tokens in both lists; where these share none, A's list as it is."""
    listed_a, listed_b = _listed(logits_a, top), _listed(logits_b, top)
    both = listed_a & listed_b
    amplified = rule(logits_a.log_softmax(-1), logits_b.log_softmax(-1), alpha)
    return torch.where(
        both.any(-1, keepdim=True),
        amplified.masked_fill(~both, -torch.inf),
        logits_a.masked_fill(~listed_a, -torch.inf),
    )


def api_union(
    rule: Rule,
    logits_a: Tensor,
    logits_b: Tensor,
    alpha: Alpha,
    *,
    top: int,
    missing: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Apply the rule to the union of both top lists; all other tokens get -inf.

    missing(logprobs, listed), both (..., vocab), returns the log-probability (..., 1) that stands
    in for a token that only the other list has.
    """
    listed, known = [], []
    for logits in (logits_a, logits_b):
        logprobs = logits.log_softmax(-1)
        listed.append(_listed(logits, top))
        known.append(torch.where(listed[-1], logprobs, missing(logprobs, listed[-1])))
    return rule(*known, alpha).masked_fill(~(listed[0] | listed[1]), -torch.inf)


def _listed(logits: Tensor, top: int) -> Tensor:
    """Which tokens an API returns: the `top` likeliest."""
    ids = logits.topk(min(top, logits.shape[-1])).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)


def _floor(logprobs: Tensor, listed: Tensor) -> Tensor:
    """The smallest value that the list has."""
    return logprobs.masked_fill(~listed, torch.inf).amin(-1, keepdim=True)


def _spread(logprobs: Tensor, listed: Tensor) -> Tensor:
    """The mass outside the list, spread evenly over the tokens outside it."""
    outside = logprobs.masked_fill(listed, -torch.inf).logsumexp(-1, keepdim=True)
    return outside - (~listed).sum(-1, keepdim=True).clamp_min(1).log()


def _sentinel(logprobs: Tensor, listed: Tensor) -> Tensor:
    """The number that stands for "not in the list"."""
    return torch.full_like(logprobs[..., :1], API_SENTINEL)


_LIST_RULES = {
    "candidates": candidates,
    "api_intersection": api_intersection,
    "api_floor": partial(api_union, missing=_floor),
    "api_spread": partial(api_union, missing=_spread),
    "api_sentinel": partial(api_union, missing=_sentinel),
}
ARMS: dict[str, Arm] = dict(zip(WHOLE_ARMS, (full, plausible, nucleus_first), strict=True)) | {
    arm_name(kind, top): partial(_LIST_RULES[kind], top=top) for kind in LIST_ARMS for top in TOPS
}
assert tuple(ARMS) == ARM_NAMES
