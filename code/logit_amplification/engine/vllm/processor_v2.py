"""The logits processor for vLLM's model runner V2, which is vLLM's default on GPUs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from .pairing import OutOfStep, Pairing, Row, told_of


class AmplifyV2(LogitsProcessor):
    """Passes the rows of cells to `Pairing`; a request keeps its slot for as long as it runs.

    Raises ValueError for speculative decoding and for batch-sharded sampling.
    """

    def __init__(self, vllm_config: Any, req_states: Any):
        if vllm_config.speculative_config is not None:
            raise ValueError("speculative decoding has several rows for a request")
        if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
            raise ValueError("batch-sharded sampling has the rows of a cell on several ranks")
        self.pairing = Pairing()
        self.states = req_states
        self.slots: dict[int, dict[str, Any] | None] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Store our extra_args of a slot's new request; return whether the request is ours."""
        self.slots[req_idx] = told_of(sampling_params)
        return self.slots[req_idx] is not None

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Draw for every cell; logits (rows, vocab) float32, changed in place and returned.

        Raises OutOfStep.
        """
        slots = ctx.idx_mapping_np.tolist()
        if len(logits) != len(slots):
            raise OutOfStep(f"{len(logits)} rows of logits for {len(slots)} requests")
        rows = []
        for number, slot in enumerate(slots):
            if told := self.slots.get(slot):
                seen = int(ctx.seq_lens_upper_bound_np[number])  # exact: no speculative decoding
                if seen < int(self.states.prefill_len.np[slot]):
                    raise OutOfStep(f"cell {told['cell_id']}: its context is read in pieces")
                rows.append(Row(number, told, seen - int(self.states.prompt_len.np[slot])))
        self.pairing.draw(logits, rows)
        return logits
