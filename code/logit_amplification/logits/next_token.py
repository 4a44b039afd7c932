"""The next-token distribution at one position: under A, under B, and amplified at any alpha.

Both rows of logits are kept, so another alpha costs a softmax and no forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from .amplification import Rule, amplify
from .measures import measure_step
from .sampling import keep_top_k, make_sampler, nucleus
from .vocabulary import PER_TOKEN

LOW, HIGH, STEP = -1.0, 8.0, 0.05
ALPHAS = tuple(round(LOW + STEP * n, 2) for n in range(round((HIGH - LOW) / STEP) + 1))
LISTED = 16  # how many tokens are listed
ARGMAX = make_sampler(0)
LISTED_AT = ALPHAS[::10]  # tokens are ranked by their highest probability under A, B or these


@dataclass(frozen=True)
class Distribution:
    """One distribution over the next token, with probabilities at temperature 1."""

    probabilities: list[float]  # of the listed tokens
    drawable: list[bool]  # whether sampling can draw each listed token
    others: float  # the total probability of all unlisted tokens
    entropy: float  # nats
    nucleus: int  # how many tokens sampling can draw
    kl_a: float  # KL(this || A), nats
    rank: int | None  # of the chosen token; 1 is the most likely


class NextToken:
    """The next token after two contexts: the tokens that matter at some alpha, and how likely."""

    def __init__(
        self,
        logits_a: Tensor,
        logits_b: Tensor,
        *,
        rule: Rule = amplify,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        chosen: int | None = None,
    ):
        """Take two rows of logits, (vocab,) each.

        temperature, top_k, top_p: which tokens could be drawn, as in `make_sampler`. chosen: a
        token id to follow; it is always listed, and its rank is reported.
        """
        self.a, self.b = logits_a.float()[None], logits_b.float()[None]
        self.rule, self.chosen = rule, chosen
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        difference = (self.a.log_softmax(-1) - self.b.log_softmax(-1))[0]
        listed = self._listed()
        order = difference[listed].argsort(descending=True, stable=True)
        self.tokens: list[int] = listed[order].tolist()  # A's strongest preference first
        self.preference: list[float] = difference[self.tokens].tolist()  # log p_A - log p_B, nats
        self.under_a = self._distribution(self.a)
        self.under_b = self._distribution(self.b)
        self.kl_a_b = self._measures(self.a)["kl_a_b"]

    def at(self, alpha: float) -> Distribution:
        """Return the amplified distribution at `alpha`."""
        return self._distribution(self.rule(self.a, self.b, alpha))

    @cached_property
    def likeliest(self) -> list[tuple[float, float, int]]:
        """(first alpha, last alpha, token) for each run of `ALPHAS` that shares an argmax."""
        tokens = [int(self.rule(self.a, self.b, alpha).argmax()) for alpha in ALPHAS]
        runs = []
        for token, run in groupby(zip(ALPHAS, tokens, strict=True), key=lambda pair: pair[1]):
            alphas = [alpha for alpha, _ in run]
            runs.append((alphas[0], alphas[-1], token))
        return runs

    def _listed(self) -> Tensor:
        best = torch.maximum(self.a.softmax(-1), self.b.softmax(-1))
        for alpha in LISTED_AT:
            best = torch.maximum(best, self.rule(self.a, self.b, alpha).softmax(-1))
        if self.chosen is not None:
            best[0, self.chosen] = torch.inf
        return best[0].topk(min(LISTED, best.shape[-1])).indices

    def _measures(self, logits: Tensor) -> dict[str, float]:
        numbers = measure_step(self.a, self.b, logits, ARGMAX(logits, logits[:, 0]))[0].tolist()
        return dict(zip(PER_TOKEN, numbers, strict=True))

    def _distribution(self, logits: Tensor) -> Distribution:
        probabilities = logits.softmax(-1)[0]
        listed = probabilities[self.tokens]
        drawn = self._drawable(logits)
        measures = self._measures(logits)
        chosen = None if self.chosen is None else logits[0, self.chosen]
        return Distribution(
            listed.tolist(),
            [token in drawn for token in self.tokens],
            max(0.0, 1 - float(listed.sum())),
            measures["entropy"],
            len(drawn),
            max(0.0, measures["kl_amplified_a"]),
            None if chosen is None else int((logits[0] > chosen).sum()) + 1,
        )

    def _drawable(self, logits: Tensor) -> set[int]:
        if self.temperature == 0:
            return {int(logits.argmax())}
        ids, kept = nucleus(keep_top_k(logits / self.temperature, self.top_k), self.top_p)
        return set(ids[kept > 0].tolist())
