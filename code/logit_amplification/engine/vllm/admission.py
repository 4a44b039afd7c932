"""Decide when a cell may enter vLLM's batch, so that all its streams are read in one step.

vLLM's scheduler handles requests in order, as far as the tokens, sequences and memory of one step
allow: a request may be read in chunks, wait, or be preempted. None of that happens to requests that
are added only when everything they can ever need is free. This module counts what is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import BadInput


@dataclass(frozen=True)
class Limits:
    """vLLM's limits: sequences in a batch, tokens per step, positions per request, cache blocks."""

    sequences: int
    tokens: int
    positions: int
    blocks: int
    block_size: int  # positions per block


class Room:
    """Tracks how much of vLLM's limits is free."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.inside: dict[str, tuple[int, int]] = {}  # by name: sequences and blocks reserved
        self.fresh = 0  # tokens of new contexts that the next step will read
        self.fresh_sequences = 0

    def refuse(self, what: str, lengths: Sequence[int], new_tokens: int) -> None:
        """Raise BadInput for contexts of these lengths, in tokens, that an empty batch cannot hold.

        what: how the message names them.
        """
        limits, longest = self.limits, max(lengths)
        for needed, there, name in (
            (len(lengths), limits.sequences, "max_num_seqs"),
            (sum(lengths), limits.tokens, "max_num_batched_tokens"),
            (longest + new_tokens, limits.positions, "max_model_len"),
            (self._blocks(lengths, new_tokens), limits.blocks, "blocks of its key-value cache"),
        ):
            if needed > there:
                raise BadInput(
                    f"{what} needs {needed} of vLLM's {name}, and there are {there}; allowed: "
                    "shorter prompts or answers, or more of it in VLLM_OPTIONS"
                )

    def fits(self, lengths: Sequence[int], new_tokens: int) -> bool:
        """Whether contexts of these lengths can all be read in the next step and run to the end.

        Each request that is already decoding takes one token of the step.
        """
        sequences = sum(one for one, _ in self.inside.values())
        blocks = sum(two for _, two in self.inside.values())
        drawing = sequences - self.fresh_sequences
        return (
            sequences + len(lengths) <= self.limits.sequences
            and drawing + self.fresh + sum(lengths) <= self.limits.tokens
            and blocks + self._blocks(lengths, new_tokens) <= self.limits.blocks
        )

    def enter(self, name: str, lengths: Sequence[int], new_tokens: int) -> None:
        """Reserve what a cell needs until it leaves."""
        self.inside[name] = len(lengths), self._blocks(lengths, new_tokens)
        self.fresh += sum(lengths)
        self.fresh_sequences += len(lengths)

    def stepped(self) -> None:
        """Note that a step was made, so that all contexts inside have been read."""
        self.fresh = self.fresh_sequences = 0

    def leave(self, name: str) -> None:
        """Release what a cell had reserved."""
        del self.inside[name]

    def _blocks(self, lengths: Sequence[int], new_tokens: int) -> int:
        # One more block per request: vLLM may take the next block before the last one is full.
        return sum(-(-(length + new_tokens) // self.limits.block_size) + 1 for length in lengths)
