"""The names of all measures, attributes and arms, with descriptions and units.

A measure that is added here gets a column in the JSON and CSV files and its label in figures
(CONTRIBUTING.md says what else it needs). This module does not import torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """A measure's description, its short name, its unit, and whether it is a share."""

    described: str  # for sentences, with its unit
    short: str  # for axes and table headers
    unit: str = ""
    is_share: bool = False  # 0 or 1 for a generation: its mean is a share of generations

    @property
    def label(self) -> str:
        """The short name with its unit, for an axis."""
        return f"{self.short}, {self.unit}" if self.unit else self.short


NATS = "nats per token"
SHARE = "share"
# The order is that of the columns that `measures.measure_step` returns.
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
    "posterior_a": Measure(
        "probability that the text came from A rather than B, both equally likely before",
        "posterior of A",
    ),
    "nll_p": Measure(
        "negative log-likelihood under A's paraphrase, nats per token", "NLL under paraphrase", NATS
    ),
    "log_ratio_a_p": Measure(
        "log p_A - log p_P of the sampled tokens, P the paraphrase of A, nats per token",
        "log p_A - log p_P",
        NATS,
    ),
    "kl_sampled_a": Measure(
        "KL(distribution drawn from || A), estimated from the sampled tokens, nats per token",
        "KL(sampled \u2016 A)",
        NATS,
    ),
    "n_characters": Measure("answer length, characters", "length", "characters"),
    "n_tokens": Measure("answer length, tokens", "length", "tokens"),
    "distinct_1": Measure("distinct tokens per token", "distinct tokens"),
    "distinct_2": Measure("distinct 2-grams per 2-gram", "distinct 2-grams"),
    "repeated_4gram_share": Measure("share of repeated 4-grams", "repeated 4-grams", SHARE),
    "logit_range": Measure("range of the amplified logits", "range of the logits"),
    "incoherent": Measure("share of incoherent answers", "incoherent answers", SHARE, True),
    "refusal": Measure("share of refusals", "refusals", SHARE, True),
    "other": Measure(
        "share of answers that are neither incoherent nor a refusal", "other answers", SHARE, True
    ),
    "ended_by_eos": Measure(
        "share of answers that end by themselves", "ended by themselves", SHARE, True
    ),
}
# Properties of a text, measured without the model. A pair declares one that A should have more of
# than B, or less of.
ATTRIBUTES = {
    "words": Measure("words of the pair's list per 100 words", "listed words per 100"),
    "language": Measure(
        "share of answers in the language asked for", "in the language", SHARE, True
    ),
    "sentiment": Measure("sentiment, -1 to 1 (VADER)", "sentiment"),
    "formality": Measure("formality of the function words, 0 to 100", "formality"),
    "readability": Measure("reading ease (Flesch), 100 is easy", "reading ease"),
    "agreement": Measure("agreement with the user, -1, 0 or 1", "agreement"),
    "hedging": Measure("hedges per 100 words", "hedges per 100 words"),
    "refusal": OF_A_TEXT["refusal"],
    "n_words": Measure("answer length, words", "length", "words"),
    "exclamations": Measure("share of sentences that end with an exclamation mark", "exclamations"),
    "questions": Measure("share of sentences that end with a question mark", "questions"),
    "capitals": Measure("share of letters that are capitals", "capital letters"),
    "digits": Measure("numbers per 100 words", "numbers per 100 words"),
    "list_items": Measure("lines that begin as an item of a list does", "items of a list"),
}
DECLARED = Measure("declared attribute, in the direction of A, each in its unit", "attribute")
MEASURES = OF_A_TOKEN | OF_A_TEXT | ATTRIBUTES | {"declared": DECLARED}

API_TOP = 20  # the most log-probabilities that a chat API returns per token
TOPS = (5, API_TOP, 100, 1000)
WHOLE_ARMS = ("full", "plausible", "nucleus_first", "temperature", "random_direction")
# In these arms alpha changes the output even where A = B, so null pairs do not stay unchanged.
ALPHA_ALONE = ("temperature", "api_overlap")
# Values for a token missing from a list: nats below the list's smallest entry, or a fixed value.
GAPS = {"api_floor": 0.0, "api_below1": 1.0, "api_below3": 3.0}
FIXED_FILLS = {"api_zero": 0.0, "api_minus13": -13.0, "api_minus100": -100.0}
SENTINEL = {"api_sentinel": -9999.0}
UNION_ARMS = (*GAPS, "api_rounded", "api_spread", *FIXED_FILLS, *SENTINEL)
LIST_ARMS = (
    *("candidates", "a_list", "api_intersection", "api_overlap", "api_mixture"),
    *UNION_ARMS,
)


def arm_name(kind: str, top: int) -> str:
    """Return the name of an arm that works on top lists.

    Without a suffix a list has 20 entries, as an API's; only `candidates` always has its number.
    """
    return kind if top == API_TOP and kind != "candidates" else f"{kind}_top{top}"


ARM_NAMES = (*WHOLE_ARMS, *(arm_name(kind, top) for kind in LIST_ARMS for top in TOPS))
