"""Records made by hand, for tests that need no model."""

from __future__ import annotations

from logit_amplification.logits.measures import measure_text
from logit_amplification.logits.vocabulary import ATTRIBUTES, PER_TOKEN
from logit_amplification.reports.figures import gallery

TEXT_MEASURES = ("log_ratio_a_b", "posterior_a", "nll_p", "log_ratio_a_p", "kl_sampled_a")
SHOWN = {*ATTRIBUTES, "declared"} - {"refusal", "words", "language"}
RUN = {
    "id": "0123456789abcdef",
    "model": {"name": "by-hand", "quantization": "none", "dtype": "float32", "device": "cpu"},
    "sampling": {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_new_tokens": 20,
        "seed": 0,
    },
}


def make_record(pair_id, alpha, *, sample=0, category="x", control="", arm="full", **measures):
    """One record with every measure at 1.0 unless given; the text follows alpha unless null."""
    tokens = [5, 6, 7, 8, 9] if control == "null" else [5, 6, 7, 8, 9 + round(10 * alpha)]
    outcome = measures.pop("outcome", "other")
    text = f"answer {'' if control == 'null' else alpha} <b>$x$</b>"
    return {
        "pair_id": pair_id,
        "pair_fingerprint": "f" * 16,
        "category": category,
        "control": control,
        "alpha": alpha,
        "sample": sample,
        "arm": arm,
        "text": text,
        "token_ids": tokens,
        "n_tokens": measures.pop("n_tokens", len(tokens)),
        "finish_reason": measures.pop("finish_reason", "length"),
        "outcome": {"label": outcome, "evidence": "by hand"},
        "family": pair_id.split("~")[0],
        "attribute": "+n_words",
        "attributes": dict.fromkeys(SHOWN, 3.0),
        "measures": dict.fromkeys((*PER_TOKEN, *TEXT_MEASURES), 1.0)
        | measure_text(text, tokens)
        | measures,
        "per_token": {name: [1.0] * len(tokens) for name in PER_TOKEN},
    }


def make_sweep(values, *, alphas=(0.0, 1.0), measure="nll_a", arm="full"):
    """Records of a sweep and its run: `values[pair]` lists the measure at each alpha."""
    records = [
        make_record(
            pair_id,
            alpha,
            category=f"category of {pair_id[0]}",
            control="null" if pair_id == "null" else "",
            arm=arm,
            **{measure: value},
        )
        for pair_id, row in values.items()
        for alpha, value in zip(alphas, row, strict=True)
    ]
    chat = [{"role": "user", "content": "What costs $5?"}]
    shared = {"category": "x", "control": "", "origin": "", "a": chat, "b": chat}
    pairs = [{"id": pair_id} | shared for pair_id in values]
    return RUN | {"pairs": pairs}, records


FIGURES = {f"{name}.{kind}" for name in gallery.FIGURES for kind in ("png", "svg")}
