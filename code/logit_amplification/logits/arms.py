"""The arms: controlled changes to the rule's inputs or output, for comparison with the rule.

An arm takes the rule (`amplify`, or the notebook's own), logits_a and logits_b, both (..., vocab)
float32, and alpha, a number or a tensor that broadcasts against the logits. It returns logits of
the same shape, with -inf for excluded tokens. The result of a row depends on that row alone.
docs/METHODOLOGY.md says what each arm is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from .amplification import Rule
from .sampling import nucleus
from .vocabulary import (
    ARM_NAMES,
    FIXED_FILLS,
    GAPS,
    LIST_ARMS,
    SENTINEL,
    TOPS,
    WHOLE_ARMS,
    arm_name,
)

Alpha = Tensor | float
Arm = Callable[[Rule, Tensor, Tensor, Alpha], Tensor]

PLAUSIBLE_SHARE = 0.1  # called alpha in Li et al. 2022 (arXiv:2210.15097)
NUCLEUS_SHARE = 0.9  # filter_p in DExperts (Liu et al. 2021, arXiv:2105.03023)
DIGITS = 2  # decimals of the log-probabilities in `api_rounded`
SEED = 0  # of the one permutation that `random_direction` uses


def full(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """Apply the rule to the whole vocabulary."""
    return rule(logits_a, logits_b, alpha)


def plausible(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """Apply the rule to tokens with at least a tenth of A's top probability (Li et al. 2022)."""
    floor = logits_a.amax(-1, keepdim=True) + math.log(PLAUSIBLE_SHARE)
    return rule(logits_a, logits_b, alpha).masked_fill(logits_a < floor, -torch.inf)


def nucleus_first(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """Apply the rule to A's nucleus of 0.9, taken before A and B are combined (Liu et al. 2021)."""
    rows = logits_a.reshape(-1, logits_a.shape[-1])
    ids, probabilities = nucleus(rows, NUCLEUS_SHARE)
    outside = torch.ones_like(rows, dtype=torch.bool).scatter(-1, ids, probabilities == 0)
    return rule(logits_a, logits_b, alpha).masked_fill(outside.view(logits_a.shape), -torch.inf)


def temperature(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """Apply the rule with zeros for B: (1 + alpha) * A, which is A at temperature 1 / (1 + alpha).

    A control: it shows which effects of amplification come from sharpening A alone.
    """
    return rule(logits_a, torch.zeros_like(logits_a), alpha)


def random_direction(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha) -> Tensor:
    """Apply the rule with the differences A - B assigned to other tokens by a fixed permutation.

    A control: the differences keep their sizes at every step but carry no information about B.
    """
    order = _permutation(logits_a.shape[-1]).to(logits_a.device)
    return rule(logits_a, logits_a - (logits_a - logits_b)[..., order], alpha)


@lru_cache
def _permutation(vocab: int) -> Tensor:
    return torch.randperm(vocab, generator=torch.Generator().manual_seed(SEED))


# ------------------------------------------------ restricted to what an API returns


def candidates(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int) -> Tensor:
    """Apply the rule to A's `top` most likely tokens; all of B's logits are known."""
    return rule(logits_a, logits_b, alpha).masked_fill(~_listed(logits_a, top), -torch.inf)


def api_intersection(
    rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int
) -> Tensor:
    """Apply the rule to the tokens in both lists; if they share none, return A's list unchanged."""
    listed_a, listed_b = _listed(logits_a, top), _listed(logits_b, top)
    both = listed_a & listed_b
    amplified = rule(logits_a.log_softmax(-1), logits_b.log_softmax(-1), alpha)
    return torch.where(
        both.any(-1, keepdim=True),
        amplified.masked_fill(~both, -torch.inf),
        logits_a.masked_fill(~listed_a, -torch.inf),
    )


def api_overlap(
    rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int
) -> Tensor:
    """Return the token that A ranks highest among those in both lists; if none, B's list.

    A rule that users of hosted APIs apply (docs/METHODOLOGY.md). It has no strength: alpha has no
    effect, except that alpha 0 gives A's list.
    """
    listed_a, listed_b = _listed(logits_a, top), _listed(logits_b, top)
    both = logits_a.masked_fill(~(listed_a & listed_b), -torch.inf)
    best = both.masked_fill(both < both.amax(-1, keepdim=True), -torch.inf)
    none = ~(listed_a & listed_b).any(-1, keepdim=True)
    steered = torch.where(none, logits_b.masked_fill(~listed_b, -torch.inf), best)
    plain = torch.as_tensor(alpha, device=logits_a.device) == 0
    return torch.where(plain, logits_a.masked_fill(~listed_a, -torch.inf), steered)


def api_mixture(
    rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int
) -> Tensor:
    """Apply the rule to probabilities instead of logits; a token missing from a list counts as 0.

    Negative results are set to 0; if nothing is left, A's list is used unchanged. Returns
    log-probabilities that are not normalised.
    """
    listed = [_listed(logits, top) for logits in (logits_a, logits_b)]
    p_a, p_b = (
        torch.where(in_list, logits.softmax(-1), 0.0)
        for logits, in_list in zip((logits_a, logits_b), listed, strict=True)
    )
    mixed = rule(p_a, p_b, alpha).clamp_min(0.0)
    return torch.where(mixed.sum(-1, keepdim=True) > 0, mixed, p_a).log()


def a_list(rule: Rule, logits_a: Tensor, logits_b: Tensor, alpha: Alpha, *, top: int) -> Tensor:
    """Apply the rule to A's list; tokens that B's list lacks get its smallest value."""
    amplified = api_union(rule, logits_a, logits_b, alpha, top=top, missing=_below)
    return amplified.masked_fill(~_listed(logits_a, top), -torch.inf)


def api_union(
    rule: Rule,
    logits_a: Tensor,
    logits_b: Tensor,
    alpha: Alpha,
    *,
    top: int,
    missing: Callable[[Tensor, Tensor], Tensor],
    digits: int | None = None,
) -> Tensor:
    """Apply the rule to the union of both top lists; all other tokens get -inf.

    missing(logprobs, listed), both (..., vocab), returns the log-probability (..., 1) assumed for a
    token that only the other list has. digits: decimals that log-probabilities are rounded to;
    None does not round.
    """
    listed, known = [], []
    for logits in (logits_a, logits_b):
        logprobs = logits.log_softmax(-1)
        if digits is not None:
            logprobs = logprobs.round(decimals=digits)
        listed.append(_listed(logits, top))
        known.append(torch.where(listed[-1], logprobs, missing(logprobs, listed[-1])))
    return rule(*known, alpha).masked_fill(~(listed[0] | listed[1]), -torch.inf)


def _listed(logits: Tensor, top: int) -> Tensor:
    """Return a mask of the tokens that an API returns: the `top` most likely."""
    ids = logits.topk(min(top, logits.shape[-1])).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)


def _below(logprobs: Tensor, listed: Tensor, gap: float = 0.0) -> Tensor:
    """Return the smallest value in the list minus `gap` nats."""
    return logprobs.masked_fill(~listed, torch.inf).amin(-1, keepdim=True) - gap


def _spread(logprobs: Tensor, listed: Tensor) -> Tensor:
    """Return log(mass outside the list / number of tokens outside it)."""
    outside = logprobs.masked_fill(listed, -torch.inf).logsumexp(-1, keepdim=True)
    return outside - (~listed).sum(-1, keepdim=True).clamp_min(1).log()


def _fixed(logprobs: Tensor, listed: Tensor, value: float) -> Tensor:
    """Return a fixed value that stands for "not in the list"."""
    return torch.full_like(logprobs[..., :1], value)


_FILLS = (
    {name: partial(_below, gap=gap) for name, gap in GAPS.items()}
    | {name: partial(_fixed, value=value) for name, value in (FIXED_FILLS | SENTINEL).items()}
    | {"api_spread": _spread}
)
_LIST_RULES = {
    "candidates": candidates,
    "a_list": a_list,
    "api_intersection": api_intersection,
    "api_overlap": api_overlap,
    "api_mixture": api_mixture,
    "api_rounded": partial(api_union, missing=_below, digits=DIGITS),
} | {name: partial(api_union, missing=fill) for name, fill in _FILLS.items()}
_WHOLE_RULES = (full, plausible, nucleus_first, temperature, random_direction)
ARMS: dict[str, Arm] = dict(zip(WHOLE_ARMS, _WHOLE_RULES, strict=True)) | {
    arm_name(kind, top): partial(_LIST_RULES[kind], top=top) for kind in LIST_ARMS for top in TOPS
}
assert tuple(ARMS) == ARM_NAMES
