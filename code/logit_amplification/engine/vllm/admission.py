"""When a cell may enter vLLM's batch: only where all its streams are read in the same step.

vLLM's scheduler takes what it is given, in that order, as far as one step's tokens, sequences and
memory go: a request may be read in pieces, wait, or be thrown out again. None of that happens to
requests that are added only when everything they can ever need is free. This counts what is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import BadInput


@dataclass(frozen=True)
class Limits:
    """Of vLLM: requests at once, tokens in one step, positions of a request, blocks of memory."""

    sequences: int
    tokens: int
    positions: int
    blocks: int
    block_size: int  # positions


class Room:
    """What is free of vLLM's limits."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.inside: dict[str, tuple[int, int]] = {}  # by name: sequences and blocks
        self.fresh = 0  # tokens that the next step reads of new contexts
        self.fresh_sequences = 0

    def refuse(self, what: str, lengths: Sequence[int], new_tokens: int) -> None:
        """Raise BadInput for contexts of these lengths that would not fit into an empty batch."""
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
        """Whether contexts of these lengths can all be read in the next step, and go on to the end.

        Each of the requests inside takes one token of the step.
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
        """Take what a cell needs until it leaves."""
        self.inside[name] = len(lengths), self._blocks(lengths, new_tokens)
        self.fresh += sum(lengths)
        self.fresh_sequences += len(lengths)

    def stepped(self) -> None:
        """A step is made: all contexts inside are read."""
        self.fresh = self.fresh_sequences = 0

    def leave(self, name: str) -> None:
        """Give back what a cell had."""
        del self.inside[name]

    def _blocks(self, lengths: Sequence[int], new_tokens: int) -> int:
        # One more for each: vLLM may take the next block before the last one is full.
        return sum(-(-(length + new_tokens) // self.limits.block_size) + 1 for length in lengths)
