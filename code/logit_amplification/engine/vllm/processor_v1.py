"""vLLM's first interface for logits processors: CPUs, and GPUs without its model runner V2."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from .pairing import Pairing, Row, told_of


class AmplifyV1(LogitsProcessor):
    """Hands the rows of cells to `Pairing`; follows how vLLM moves requests between rows."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool):
        self.pairing = Pairing()
        self.rows: dict[int, tuple[dict[str, Any], list[int]]] = {}  # what is told, tokens drawn

    def is_argmax_invariant(self) -> bool:
        """It is not: vLLM leaves those that are out for greedy requests."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow removed, added and moved requests, in this order."""
        if not batch_update:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, drawn in batch_update.added:
            self.rows.pop(row, None)  # an added request may take the place of another
            if told := told_of(params):
                self.rows[row] = told, drawn
        for source, target, way in batch_update.moved:
            moved, other = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if way == MoveDirectionality.SWAP and other is not None:
                self.rows[source] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Draw for every cell; logits (rows, vocab) float32, changed in place."""
        rows = [Row(row, told, len(drawn)) for row, (told, drawn) in self.rows.items()]
        self.pairing.draw(logits, rows)
        return logits
