"""The rule, and its arms: what becomes of two rows of logits and a strength.

All functions take logits of shape (..., vocab), float32, and alpha as a number or a tensor that
broadcasts against them, and return logits of the same shape; -inf marks a token that is out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, "Tensor | float"], Tensor]


def amplify(logits_a, logits_b, alpha):
    """Push A's logits further away from B's, over the whole vocabulary: a + alpha * (a - b).

    alpha = 0 is A alone, alpha = -1 is B alone, and Hugging Face's guidance_scale is 1 + alpha.
    """
    return logits_a + alpha * (logits_a - logits_b)


# ------------------------------------------------------------------------------------------ arms
# An arm is a controlled change of the rule's input or output. `rule` is `amplify`, or what the
# notebook made of it.

PLAUSIBLE_SHARE = 0.1  # Li et al. 2022 (arXiv:2210.15097), their alpha
API_TOP = 20  # what a chat API returns at most
API_SENTINEL = -9999.0  # what OpenAI's schema puts for a token outside the list


def full(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Tensor | float) -> Tensor:
    """The rule over the whole vocabulary."""
    return rule(logits_a, logits_b, alpha)


def plausible(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Tensor | float) -> Tensor:
    """The rule over the tokens with at least a tenth of A's top probability (Li et al. 2022)."""
    floor = logits_a.amax(-1, keepdim=True) + math.log(PLAUSIBLE_SHARE)
    return rule(logits_a, logits_b, alpha).masked_fill(logits_a < floor, -torch.inf)


def api_floor(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Tensor | float) -> Tensor:
    """The rule over both top-20 lists; a value missing from a list is that list's smallest."""
    return _over_top_lists(rule, logits_a, logits_b, alpha, sentinel=None)


def api_sentinel(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Tensor | float) -> Tensor:
    """The rule over both top-20 lists; a value missing from a list is -9999."""
    return _over_top_lists(rule, logits_a, logits_b, alpha, sentinel=API_SENTINEL)


def _over_top_lists(
    rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Tensor | float, sentinel: float | None
) -> Tensor:
    returned_a, values_a = _top_list(logits_a, sentinel)
    returned_b, values_b = _top_list(logits_b, sentinel)
    amplified = rule(values_a, values_b, alpha)
    return amplified.masked_fill(~(returned_a | returned_b), -torch.inf)


def _top_list(logits: Tensor, sentinel: float | None) -> tuple[Tensor, Tensor]:
    """What an API tells of a distribution: which tokens it returns, and their log-probabilities."""
    logprobs = torch.log_softmax(logits, -1)
    top, ids = logprobs.topk(min(API_TOP, logits.shape[-1]))
    returned = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    missing = top[..., -1:] if sentinel is None else torch.full_like(top[..., -1:], sentinel)
    return returned, torch.where(returned, logprobs, missing)


ARMS: dict[str, Callable[[Rule, Tensor, Tensor, Tensor | float], Tensor]] = {
    arm.__name__: arm for arm in (full, plausible, api_floor, api_sentinel)
}
