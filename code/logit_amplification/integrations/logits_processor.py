"""A logits processor for those who cannot change the call of `generate`, only its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from ..engine.forward import cached_forward
from ..logits.amplification import Rule, amplify

# Of `generate`, applied before the processors that it is given; and what leaves them off.
PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


class AmplifyLogits(LogitsProcessor):
    """Amplifies what `generate` computes against what another context, or model, says.

        model.generate(**a, logits_processor=[AmplifyLogits(model, b["input_ids"], alpha=1)])

    model: what B is read with; it may be another one with the same vocabulary. b_input_ids: (rows,
    length) int64, a row for each prompt of A or one for all, padded on the left; b_attention_mask:
    0 for the padding. It reads B apart, with a cache of its own: a forward more per token than
    `custom_generate`, which reads both together. Beams may be reordered. It wants A's own logits:
    `generate` applies its penalties (of repetition, of length) before it and to A alone, so they
    must be off; those in the model's generation_config are refused, as is what masks tokens first.
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
        self.seen_b: Tensor | None = None  # what B's rows attend to
        self.cache: Any = None

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the amplified log-probabilities: (rows, vocab) float32, nats.

        Normalised, for beam search adds them up; in a draw the constant does not matter.
        """
        if torch.isneginf(scores).any():
            raise ValueError("another processor has masked tokens of A before this one")
        logits_b = self._read(input_ids)
        alphas = torch.full_like(logits_b[:, :1], self.alpha)
        return self.rule(scores.float(), logits_b, alphas).log_softmax(-1)

    def _read(self, input_ids: Tensor) -> Tensor:
        """Append the newest tokens to B's rows, or begin anew; return B's logits in float32."""
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
        """Which row of the last call each row goes on from; None where it is another generation.

        Rows of one prompt (its beams) change places, those of different prompts never do.
        """
        seen = self.seen
        if seen is None or (len(seen), seen.shape[1] + 1) != tuple(input_ids.shape):
            return None
        prompt = torch.arange(len(seen), device=seen.device) // max(1, len(seen) // len(self.ids))
        same = (input_ids[:, None, :-1] == seen[None]).all(-1) & (prompt[:, None] == prompt)
        # A row that stays in its place does so where several are equal.
        own = torch.eye(len(seen), device=seen.device) * same + same
        return own.argmax(-1) if bool(same.any(-1).all()) else None
