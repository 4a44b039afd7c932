"""Convert a generation to its record: the plain form in the journal and the JSON."""

from __future__ import annotations

import math

from ..engine.forward import text_nll
from ..engine.interface import Generation
from ..logits.measures import measure_text
from ..logits.vocabulary import PER_TOKEN
from ..models.loading import LoadedModel
from ..prompts.chat import EncodedPair, token_texts
from ..prompts.pairs import is_raw, prefill_of
from ..records.files import Record

DIGITS = 6  # significant digits kept of a measure: float32 has no more


def make_record(generation: Generation, pair: EncodedPair, model: LoadedModel) -> Record:
    """Return the plain record of a generation, as the journal and the JSON hold it.

    `measures` holds the means over tokens, by the names of `PER_TOKEN`, and the measures of the
    whole text; values that are not finite are None.
    """
    cell, ids = generation.cell, generation.token_ids
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    spoken = ids[:-1] if generation.finish_reason == "eos" else ids
    per_token = {
        name: [_rounded(row[column]) for row in generation.per_token]
        for column, name in enumerate(PER_TOKEN)
    }
    count = len(generation.per_token) or math.nan
    means = {name: _rounded(sum(values) / count) for name, values in per_token.items()}
    means |= _text_measures(per_token, count, _nll_p(generation, pair, model))
    per_token = {"token": list(token_texts(model.tokenizer, ids)), **per_token}
    return {
        "pair_id": cell.pair_id,
        "pair_fingerprint": pair.pair.fingerprint,
        "category": pair.pair.category,
        "control": pair.pair.control,
        "alpha": cell.alpha,
        "sample": cell.sample,
        "arm": cell.arm,
        **({"prefill": begun} if (begun := prefill_of(pair.pair.a)) else {}),
        **({"raw": True} if is_raw(pair.pair.a) else {}),
        "text": text,
        "token_ids": ids,
        "n_tokens": len(ids),
        "finish_reason": generation.finish_reason,
        **({"error": generation.error} if generation.error else {}),
        "slots": generation.slots,
        "measures": means | {n: _rounded(v) for n, v in measure_text(text, spoken).items()},
        "per_token": per_token,
    }


def _nll_p(generation: Generation, pair: EncodedPair, model: LoadedModel) -> float:
    """Return the NLL under A's paraphrase, nats per token.

    NaN without a paraphrase or tokens, after an error, or if the engine could not compute it.
    """
    if not pair.ids_p or not generation.token_ids or generation.finish_reason == "error":
        return math.nan
    if model.is_elsewhere:  # the engine computes it in vLLM's process, if it can
        return math.nan if generation.nll_p is None else generation.nll_p
    return text_nll(model.model, pair.ids_p, generation.token_ids)


def _text_measures(
    per_token: dict[str, list[float]], count: float, nll_p: float
) -> dict[str, float | None]:
    """Return the measures of the whole text that follow from its tokens.

    All are in nats per token except the posterior, a probability. nll_p: from `_nll_p`.
    """
    nll_a, nll_b, drawn = (
        sum(per_token[name]) / count for name in ("nll_a", "nll_b", "logprob_sampled")
    )
    found = {
        "log_ratio_a_b": nll_b - nll_a,
        # Bayes' rule with equal priors of A and B; tanh does not overflow.
        "posterior_a": 0.5 + 0.5 * math.tanh(count * (nll_b - nll_a) / 2),
        "nll_p": nll_p,
        "log_ratio_a_p": nll_p - nll_a,
        # Its expectation over the draws is KL(distribution drawn from || A).
        "kl_sampled_a": drawn + nll_a,
    }
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: float | int | None) -> float | int | None:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
