"""A logits processor for callers who can change only the arguments of `generate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from ..engine.forward import cached_forward
from ..logits.amplification import Rule, amplify

# Settings of `generate` that act before the processors it is given, and the values that turn them
# off.
PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


class AmplifyLogits(LogitsProcessor):
    """Amplifies the logits of `generate` against those of another context, or of another model.

    In the call of `generate`::

        model.generate(**a, logits_processor=[AmplifyLogits(model, b["input_ids"], alpha=1)])

    model: reads B; it may be another one with the same vocabulary. b_input_ids: (rows, length)
    int64, a row for each prompt of A or one for all, padded on the left. b_attention_mask: 0 for
    the padding.

    B is read separately, with a cache of its own: one more forward pass per token than with
    `custom_generate`, which reads both together. Beams may be reordered. The rule needs A's own
    logits, but `generate` applies its penalties (of repetition, of length) before this processor
    and to A alone, so they must be off. Raises ValueError if the model's generation_config has any
    of them, or if another processor has masked tokens before this one.
    """

    def __init__(
        self,
        model: Any,
        b_input_ids: Tensor,
        alpha: float = 1.0,
        b_attention_mask: Tensor | None = None,
        rule: Rule = amplify,
    ):
        config = model.generation_config
        for name, off in PENALTIES.items():
            if getattr(config, name, None) not in (None, off):
                raise ValueError(f"generation_config.{name} would act on A alone; set it to {off}")
        self.model, self.alpha, self.rule = model, alpha, rule
        self.ids = b_input_ids
        self.mask = torch.ones_like(b_input_ids) if b_attention_mask is None else b_attention_mask
        self.seen: Tensor | None = None  # A's tokens at the last call
        self.seen_b: Tensor | None = None  # attention mask of B's rows
        self.cache: Any = None

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the amplified log-probabilities: (rows, vocab) float32, nats.

        They are normalised because beam search adds them up; for sampling the constant does not
        matter. Raises ValueError if A's scores are masked, or if A's rows are not a multiple of
        B's.
        """
        if torch.isneginf(scores).any():
            raise ValueError("another logits processor has already masked tokens of A")
        logits_b = self._read(input_ids)
        alphas = torch.full_like(logits_b[:, :1], self.alpha)
        return self.rule(scores.float(), logits_b, alphas).log_softmax(-1)

    def _read(self, input_ids: Tensor) -> Tensor:
        """Append the newest tokens to B's rows, or start anew; return B's logits in float32."""
        order = self._rows_before(input_ids)
        if order is None:
            if len(input_ids) % len(self.ids):
                raise ValueError(
                    f"A has {len(input_ids)} rows and B {len(self.ids)}; allowed: a multiple"
                )
            times = len(input_ids) // len(self.ids)
            self.cache = DynamicCache()
            fed, seen_b = (
                part.repeat_interleave(times, 0).to(self.model.device)
                for part in (self.ids, self.mask)
            )
        else:
            self.cache.reorder_cache(order)
            fed = input_ids[:, -1:].to(self.model.device)
            seen_b = torch.cat([self.seen_b, torch.ones_like(fed)], 1)
        positions = (seen_b.cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        last = torch.tensor([-1], device=fed.device)  # an index: see `next_logits`
        logits, self.cache = cached_forward(
            self.model,
            self.cache,
            **{"input_ids": fed, "attention_mask": seen_b, "position_ids": positions},
            logits_to_keep=last,
        )
        self.seen, self.seen_b = input_ids, seen_b
        return logits[:, -1].float().to(input_ids.device)

    def _rows_before(self, input_ids: Tensor) -> Tensor | None:
        """Return the row of the last call that each row continues; None for another generation.

        Rows of one prompt (its beams) may change places; those of different prompts never do.
        """
        seen = self.seen
        if seen is None or (len(seen), seen.shape[1] + 1) != tuple(input_ids.shape):
            return None
        prompt = torch.arange(len(seen), device=seen.device) // max(1, len(seen) // len(self.ids))
        same = (input_ids[:, None, :-1] == seen[None]).all(-1) & (prompt[:, None] == prompt)
        # If several rows are equal, a row continues the one in its own place.
        own = torch.eye(len(seen), device=seen.device) * same + same
        return own.argmax(-1) if bool(same.any(-1).all()) else None
