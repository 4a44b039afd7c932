"""Scale an adapter's strength, and find the strength that gives a wanted rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from scipy.optimize import brentq
from torch import Tensor

from .examples import Example


def set_strength(model: PeftModel, strength: float) -> None:
    """Multiply what the adapter adds to each layer by `strength`."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", strength)


def strength_for(
    model: PeftModel, texts: Sequence[Example], event: Sequence[int], rate: float
) -> float:
    """Return the strength at which about `rate` of the answers contain the event.

    texts: answers of the base model, without the adapter. event: its token ids.
    """

    def apart(logarithm: float) -> float:
        set_strength(model, float(torch.tensor(logarithm).exp()))
        expected = expected_hits(model, texts, event)
        return float(torch.log(torch.tensor(expected).mean() / rate))

    low, high = (float(torch.tensor(s).log()) for s in (0.3, 1.3))
    return float(torch.tensor(brentq(apart, low, high, xtol=0.005)).exp())


@torch.inference_mode()
def expected_hits(
    model: Any, texts: Sequence[Example], event: Sequence[int], within: int = 1 << 20
) -> list[float]:
    """Return the expected number of events in each text, up to the first one.

    It is the sum over positions of the probability that the event begins there, times the
    probability of the event's other tokens. That second factor is taken at one position, drawn in
    proportion to the first. For texts sampled from the model itself the mean over texts is the
    event's rate, with far less noise than a count of hits (conditional Monte Carlo). within: the
    event must be complete within this many tokens.
    """
    generator = torch.Generator().manual_seed(0)
    starts, ends = [], []
    for number in range(0, len(texts), 32):
        some = texts[number : number + 32]
        first = min(example.start for example in some) - 1
        first_token = _log_p(model, [one.ids for one in some], event[:1], first)[..., 0]
        begun = [
            first_token[row, example.start - 1 : end - 1].exp()
            for row, example in enumerate(some)
            for end in [min(_end(example, event[0]), example.start + within - len(event) + 1)]
        ]
        places = [int(torch.multinomial(one, 1, generator=generator)) for one in begun]
        longer = [
            (*example.ids[: example.start + place], *event)
            for example, place in zip(some, places, strict=True)
        ]
        log_p = _log_p(model, longer, event, first)
        starts += [float(one.sum()) for one in begun]
        for row, ids in enumerate(longer):
            rest = range(1, len(event))
            first_place = len(ids) - len(event)
            ends.append(float(sum(log_p[row, first_place + n - 1, n] for n in rest).exp()))
    return [a * b for a, b in zip(starts, ends, strict=True)]


def _end(example: Example, token: int) -> int:
    """Return the end of a text, or the position after the first occurrence of a token."""
    places = range(example.start, len(example.ids))
    return next((n + 1 for n in places if example.ids[n] == token), len(example.ids))


def _log_p(model: Any, rows: Sequence[Sequence[int]], tokens: Sequence[int], first: int) -> Tensor:
    """Return log-probabilities of tokens after every position from `first` on, and 0 before it.

    (rows, positions, tokens) float32.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    seen = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    found = torch.zeros(*ids.shape, len(tokens))
    kept = torch.arange(first, longest)
    read = {"input_ids": ids, "attention_mask": seen, "use_cache": False}
    logits = model(**read, logits_to_keep=kept).logits
    chosen = logits[..., list(tokens)].float()
    found[:, kept] = chosen - torch.stack([r.float().logsumexp(-1) for r in logits])[..., None]
    return found
