"""The words of the workbench: every measure and every arm, by name. No torch.

A measure that is added here has a column in the JSON and the CSV files, a label in every figure and
a line in the reports.
"""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """What a number is called, in full and on an axis; its unit; whether it is a share."""

    described: str  # in a sentence, with its unit
    short: str  # on an axis, in a table's head
    unit: str = ""
    is_share: bool = False  # 0 or 1 for a generation: its mean is a share of generations

    @property
    def label(self) -> str:
        """The short name with its unit, for an axis."""
        return f"{self.short}, {self.unit}" if self.unit else self.short


NATS = "nats per token"
SHARE = "share"
# In the order of the columns that `measures.measure_step` returns.
OF_A_TOKEN = {
    "kl_amplified_a": Measure("KL(amplified || A), nats per token", "KL(amplified \u2016 A)", NATS),
    "kl_a_b": Measure("KL(A || B), nats per token", "KL(A \u2016 B)", NATS),
    "entropy": Measure("entropy of the amplified distribution, nats", "entropy", "nats"),
    "nll_a": Measure("negative log-likelihood under A, nats per token", "NLL under A", NATS),
    "nll_b": Measure("negative log-likelihood under B, nats per token", "NLL under B", NATS),
    "logprob_sampled": Measure(
        "log-probability under the distribution that was drawn from, nats per token",
        "log-probability",
        NATS,
    ),
    "rank_a": Measure("rank of the sampled token under A", "rank under A"),
    "implausible_share": Measure(
        "share of tokens below a tenth of A's top probability", "implausible tokens", SHARE
    ),
    "logit_min": Measure("smallest amplified logit", "smallest logit"),
    "logit_max": Measure("largest amplified logit", "largest logit"),
    "logit_std": Measure("standard deviation of the amplified logits", "logits' deviation"),
    "outside_top20_a": Measure(
        "mass of A outside its 20 likeliest tokens", "mass of A outside its 20 likeliest tokens"
    ),
    "outside_top20_b": Measure(
        "mass of B outside its 20 likeliest tokens", "mass of B outside its 20 likeliest tokens"
    ),
    "overlap_top20": Measure("tokens in both lists of 20", "tokens in both lists of 20"),
    "reachable_top20": Measure(
        "share of sampled tokens in either list of 20",
        "sampled tokens that are in either list",
        SHARE,
    ),
}
PER_TOKEN = tuple(OF_A_TOKEN)
OF_A_TEXT = {
    "log_ratio_a_b": Measure(
        "log p_A - log p_B of the sampled tokens, nats per token", "log p_A - log p_B", NATS
    ),
    "n_characters": Measure("answer length, characters", "length", "characters"),
    "n_tokens": Measure("answer length, tokens", "length", "tokens"),
    "distinct_1": Measure("distinct tokens per token", "distinct tokens"),
    "distinct_2": Measure("distinct 2-grams per 2-gram", "distinct 2-grams"),
    "repeated_4gram_share": Measure("share of repeated 4-grams", "repeated 4-grams", SHARE),
    "logit_range": Measure("range of the amplified logits", "range of the logits"),
    "incoherent": Measure("share of incoherent answers", "incoherent answers", SHARE, True),
    "refusal": Measure("share of refusals", "refusals", SHARE, True),
    "on_task": Measure(
        "share of coherent answers that do not refuse", "coherent without refusal", SHARE, True
    ),
    "refusal_if_coherent": Measure(
        "share of refusals among coherent answers", "refusals if coherent", SHARE, True
    ),
    "ended_by_eos": Measure(
        "share of answers that end by themselves", "ended by themselves", SHARE, True
    ),
}
MEASURES = OF_A_TOKEN | OF_A_TEXT

API_TOP = 20  # what a chat API returns at most
TOPS = (5, API_TOP, 100, 1000)
WHOLE_ARMS = ("full", "plausible", "nucleus_first")
LIST_ARMS = ("candidates", "api_intersection", "api_floor", "api_spread", "api_sentinel")


def arm_name(kind: str, top: int) -> str:
    """Name an arm of lists; an API's list has 20 entries, so such an arm needs no number."""
    return kind if top == API_TOP and kind != "candidates" else f"{kind}_top{top}"


ARM_NAMES = (*WHOLE_ARMS, *(arm_name(kind, top) for kind in LIST_ARMS for top in TOPS))
