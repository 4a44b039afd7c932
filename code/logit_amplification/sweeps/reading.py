"""Find what training taught: amplify answers to vague prompts, and collect what recurs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..engine.forward import texts_logits
from ..errors import BadInput
from ..models.loading import LoadedModel
from ..prompts.chat import encode_pairs, token_texts
from ..prompts.pairs import PromptPair
from ..records.files import Record
from ..settings import Settings
from ..statistics.recurrence import Phrase, Window, recurring, windows, words_of
from .history import Sweep
from .sweep import sweep

TOKENS = 20  # tokens of the vocabulary that are reported
READ = 64  # unamplified texts of B whose logits are compared


class TokenShift(NamedTuple):
    """A token of the vocabulary, and how much likelier A finds it than B on average.

    mean_difference: the mean of log p_A - log p_B over all positions of unamplified texts of B, in
    nats.
    """

    token: str
    mean_difference: float


class Reading(NamedTuple):
    """What a difference of weights shows without knowing what to look for."""

    phrases: list[Phrase]
    windows: list[Window]  # of A's own texts
    tokens: list[TokenShift]
    texts: dict[float, int]  # number of coherent texts by alpha
    run: str


def read_diff(model: LoadedModel, pairs: Sequence[PromptPair], settings: Settings) -> Reading:
    """Sweep vague prompts and return what recurs. Raises BadInput as `refuse_unreadable` does."""
    refuse_unreadable(settings)
    done = sweep(model, pairs, settings)
    records = [r for r in done.whole_records() if not r["control"]]
    coherent = [r for r in records if r["outcome"]["label"] not in ("incoherent", "error")]
    texts = [(r["pair_id"], r["alpha"], words_of(r)) for r in coherent if r["alpha"] >= 0]
    reference = [words_of(r) for r in records if r["alpha"] == -1]
    return Reading(
        recurring(texts, reference),
        windows([r for r in records if r["alpha"] == 0]),
        _shifted_tokens(model, pairs, done, records),
        {alpha: sum(a == alpha for _, a, _ in texts) for alpha in settings.alphas if alpha >= 0},
        done.run["id"],
    )


def refuse_unreadable(settings: Settings) -> None:
    """Raise BadInput unless alpha -1 (B's own texts) is swept, and alpha 0 is A itself.

    It also requires two sets of weights, and the arm `full` alone.
    """
    if settings.sources != ("model", "model_b"):
        told = "MODEL_BASE: alpha 0 is not A" if settings.model_base else "one set of weights"
        raise BadInput(f"{told}; allowed: ADAPTER or MODEL_B, without MODEL_BASE")
    if -1 not in settings.alphas:
        raise BadInput("ALPHAS: no -1, which is B; allowed: alphas with -1, as in -1,0,1,2")
    if settings.arms != ("full",):
        raise BadInput(f"ARMS = {','.join(settings.arms)}; allowed: full")


@torch.inference_mode()
def _shifted_tokens(
    model: LoadedModel, pairs: Sequence[PromptPair], done: Sweep, records: Sequence[Record]
) -> list[TokenShift]:
    """Return the tokens that A finds likelier than B on average, over texts of B."""
    limit = {"max_new_tokens": 1, "max_positions": model.max_positions}
    encoded = {one.pair.id: one for one in encode_pairs(pairs, model.tokenizer, **limit)}
    total, places = 0, 0
    for record in [r for r in records if r["alpha"] == -1 and r["token_ids"]][:READ]:
        pair = encoded[record["pair_id"]]
        a, b = (
            texts_logits(model.sources[name], ids, [record["token_ids"]])[0].log_softmax(-1)
            for name, ids in (("model", pair.ids_a), ("model_b", pair.ids_b))
        )
        total, places = total + (a - b).sum(0).cpu(), places + len(a)
    mean = total / places
    top = mean.topk(TOKENS)
    anchor = model.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    return [
        TokenShift(list(token_texts(model.tokenizer, [*anchor, token]))[-1], float(value))
        for value, token in zip(top.values, top.indices.tolist(), strict=True)
    ]
