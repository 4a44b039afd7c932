"""The data types that every engine takes and returns, and the protocol of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..logits.amplification import Rule, amplify
from ..logits.sampling import Sampler, make_sampler, uniforms
from ..prompts.chat import EncodedPair

MODEL = "model"  # the name of a run's own weights, where it has no others


@dataclass(frozen=True)
class Stream:
    """What is read, and with which weights: token ids, and the name of a source of weights."""

    ids: tuple[int, ...]
    source: str = MODEL


@dataclass(frozen=True)
class Contrast:
    """The stream to amplify (A), the stream to subtract (B), and what the difference is added to.

    base: None means A itself. With a base, amplified = base + alpha * (A - B).
    """

    a: Stream
    b: Stream
    base: Stream | None = None

    @classmethod
    def of(cls, encoded: EncodedPair) -> Contrast:
        """Return the contrast of a tokenised pair."""
        ids = encoded.ids_a, encoded.ids_b, encoded.ids_base
        sides = zip(ids, encoded.pair.sources, strict=False)  # two sources if there is no base
        return cls(*(Stream(tuple(ids), source) for ids, source in sides))

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All streams that each sampled token is appended to, the anchor (base, else A) first."""
        return (self.a, self.b) if self.base is None else (self.base, self.a, self.b)

    @property
    def is_null(self) -> bool:
        """Whether A and B are identical, so that alpha cannot change anything."""
        return self.a == self.b


@dataclass(frozen=True)
class Cell:
    """One generation to make: a pair, an alpha, a sample number and an arm."""

    pair_id: str
    alpha: float
    sample: int
    arm: str = "full"
    origin: str = ""  # the pair whose random numbers it shares, if not its own


@dataclass
class Generation:
    """The tokens of a cell and, per token, its measures in the order of `PER_TOKEN`."""

    cell: Cell
    slots: int  # the number of batch slots it was decoded with
    token_ids: list[int] = field(default_factory=list)
    per_token: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None  # "eos", "length", "stop" or "error" when finished
    error: str | None = None  # why it ended with "error"; other cells continue
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)  # see Request.likeliest
    nll_p: float | None = None  # NLL under A's paraphrase, nats per token, if computed


@dataclass(frozen=True)
class Request:
    """Settings shared by all cells: how tokens are drawn, and when an answer ends.

    stops: called with all tokens of an answer after each new one; the answer ends (`stop`) when it
    returns True. likeliest: how many of each step's most likely tokens to record after the sampled
    one, as (id, log-probability) pairs, in nats, under the amplified distribution before
    temperature and truncation; None records nothing. on_step: called after each step with the
    number of tokens it produced. of_pair: separate requests for single pairs, by pair id. They use
    the rule and on_step of this request, and their max_new_tokens must not exceed its own.
    """

    sampler: Sampler
    seed: int
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    rule: Rule = amplify
    on_step: Callable[[int], None] = lambda tokens: None
    stops: Callable[[list[int]], bool] = lambda tokens: False
    likeliest: int | None = None
    of_pair: Mapping[str, Request] = field(default_factory=dict)

    def of_cell(self, cell: Cell) -> Request:
        """Return the request that applies to a cell."""
        return self.of_pair.get(cell.pair_id, self)

    @classmethod
    def of(cls, settings: Any, stop_ids: frozenset[int], **more: Any) -> Request:
        """Return the request for these settings (temperature, top_k, top_p, seed, length)."""
        sampler = make_sampler(settings.temperature, settings.top_k, settings.top_p)
        return cls(sampler, settings.seed, settings.max_new_tokens, stop_ids, **more)

    def uniforms(self, cell: Cell) -> Tensor:
        """Return the random numbers of a cell, (max_new_tokens,) float64 in [0, 1).

        They are the same for every alpha and arm.
        """
        return uniforms(self.seed, cell.origin or cell.pair_id, cell.sample, self.max_new_tokens)


class Engine(Protocol):
    """Makes generations. It takes cells only when it has room, and leaves the rest to others."""

    def generate(
        self, cells: Iterable[Cell | None], contexts: Mapping[str, Contrast], request: Request
    ) -> Iterator[Generation]:
        """Yield each cell's generation as soon as it is finished.

        contexts: contrasts by pair id. A None among the cells means that no cell is available now,
        but that more may follow while others are being decoded.
        """

    def describe(self) -> dict[str, Any]:
        """Return what can change a token in this engine; it becomes part of a run's identity."""

    def capacity(self) -> int:
        """Return how many cells are decoded side by side."""
