"""The logits processor for vLLM's model runner V1: CPUs, and GPUs where V2 is off."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from .pairing import Pairing, Row, told_of


class AmplifyV1(LogitsProcessor):
    """Passes the rows of cells to `Pairing`, and follows how vLLM moves requests between rows."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool):
        self.pairing = Pairing()
        # By row: our part of the request's `extra_args`, and the tokens drawn so far.
        self.rows: dict[int, tuple[dict[str, Any], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: vLLM skips argmax-invariant processors for greedy requests."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Apply removed, added and moved requests, in this order."""
        if not batch_update:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, drawn in batch_update.added:
            self.rows.pop(row, None)  # an added request may replace another one
            if told := told_of(params):
                self.rows[row] = told, drawn
        for source, target, way in batch_update.moved:
            moved, other = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if way == MoveDirectionality.SWAP and other is not None:
                self.rows[source] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Draw for every cell; logits (rows, vocab) float32, changed in place and returned."""
        rows = [Row(row, told, len(drawn)) for row, (told, drawn) in self.rows.items()]
        self.pairing.draw(logits, rows)
        return logits
