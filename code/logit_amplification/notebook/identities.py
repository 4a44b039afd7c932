"""What the rule promises, checked on the loaded model: seven identities, each true or false."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..engine.forward import next_logits
from ..logits.amplification import Rule, amplify
from ..logits.sampling import make_sampler
from ..models.loading import LoadedModel
from ..prompts.chat import encode_pairs
from ..prompts.pairs import PromptPair

LENGTH = 24  # greedy tokens compared


def identities(
    model: LoadedModel,
    pair: PromptPair,
    *,
    rule: Rule = amplify,
    loop: Callable[..., Iterator[Any]],
    length: int = LENGTH,
) -> dict[str, bool]:
    """Return, for each identity by its name, whether it holds for this model and pair.

    loop: yields steps with a `token`, as `engine.reference.sample_amplified`. Plain answers come
    from the model's own `generate`; everything is greedy. Distributions count as equal within 1e-5.
    """
    fit = {"max_new_tokens": length, "max_positions": model.max_positions}
    (encoded,) = encode_pairs([pair], model.tokenizer, **fit)
    ids_a, ids_b = encoded.ids_a, encoded.ids_b

    def greedy(ids: Sequence[int], others: Sequence[int], alpha: float) -> list[int]:
        steps = loop(
            model.model,
            ids,
            others,
            alpha,
            sampler=make_sampler(temperature=0),
            uniforms=torch.zeros(length),
            stop_ids=model.stop_ids,
        )
        return [step.token for step in steps]

    logits_a, logits_b = (next_logits(model.model, ids)[0] for ids in (ids_a, ids_b))
    log_a, log_b = logits_a.log_softmax(-1), logits_b.log_softmax(-1)
    amplified = rule(logits_a, logits_b, 1.0)
    at_zero = greedy(ids_a, ids_b, 0.0)
    return {
        "alpha 0 is A alone": at_zero == _plain(model, ids_a, length),
        "alpha -1 is B alone": greedy(ids_a, ids_b, -1.0) == _plain(model, ids_b, length),
        "A = B: alpha changes nothing": greedy(ids_a, ids_a, 0.0) == greedy(ids_a, ids_a, 5.0),
        "A and B differ: alpha changes tokens": at_zero != greedy(ids_a, ids_b, 2.0),
        "a constant added to B changes nothing": _same(
            rule(logits_a, logits_b + 7, 1.0), amplified
        ),
        "alpha 1 is guidance_scale 2": _same(log_b + 2 * (log_a - log_b), amplified),
        "alpha 1 is weights (2, -1)": _same(2 * logits_a - 1 * logits_b, amplified),
    }


def _plain(model: LoadedModel, ids: Sequence[int], length: int) -> list[int]:
    """What the model says to one context by itself: transformers' greedy `generate`."""
    prompt = torch.tensor([ids], device=model.device)
    answer = model.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=min(model.stop_ids),
        do_sample=False,
        max_new_tokens=length,
    )
    return answer[0, len(ids) :].tolist()


def _same(logits: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether two rows of logits are one distribution."""
    return torch.allclose(logits.softmax(-1), others.softmax(-1), atol=1e-5)
