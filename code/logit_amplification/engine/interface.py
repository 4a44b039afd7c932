"""What goes into an engine and what comes out: streams, cells, one request, generations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..logits.amplification import Rule, amplify
from ..logits.sampling import Sampler, make_sampler, uniforms
from ..prompts.chat import EncodedPair

MODEL = "model"  # the name of the weights of a run that has no others


@dataclass(frozen=True)
class Stream:
    """What is read, and with which weights: token ids, and the name of a source of weights."""

    ids: tuple[int, ...]
    source: str = MODEL


@dataclass(frozen=True)
class Contrast:
    """The stream to amplify, the one to hold it against, and what the difference is added to.

    base: A itself where it is None. With one, amplified = base + alpha * (A - B).
    """

    a: Stream
    b: Stream
    base: Stream | None = None

    @classmethod
    def of(cls, encoded: EncodedPair) -> Contrast:
        """Return the contrast of a pair whose chats are token ids."""
        ids = encoded.ids_a, encoded.ids_b, encoded.ids_base
        sides = zip(ids, encoded.pair.sources, strict=False)  # no source, no base
        return cls(*(Stream(tuple(ids), source) for ids, source in sides))

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that every sampled token is appended to, the anchor first."""
        return (self.a, self.b) if self.base is None else (self.base, self.a, self.b)

    @property
    def is_null(self) -> bool:
        """Whether nothing sets the streams apart, so that alpha can change nothing."""
        return self.a == self.b


@dataclass(frozen=True)
class Cell:
    """One generation to make."""

    pair_id: str
    alpha: float
    sample: int
    arm: str = "full"
    origin: str = ""  # the pair whose random numbers it shares, if not its own


@dataclass
class Generation:
    """A cell's tokens and, per token, its measures in the order of `PER_TOKEN`."""

    cell: Cell
    slots: int  # how many were decoded side by side
    token_ids: list[int] = field(default_factory=list)
    per_token: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None  # "eos", "length", "stop" or "error" when finished
    error: str | None = None  # why it ended with "error"; the other cells go on
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)  # see Request.likeliest
    nll_p: float | None = None  # under A's paraphrase, nats per token, if the engine has scored it


@dataclass(frozen=True)
class Request:
    """What holds for every cell: how tokens are drawn, and when an answer ends.

    stops: told the tokens of an answer after each; where it says true, the answer ends (`stop`).
    likeliest: how many of each step's likeliest tokens a generation keeps, behind the sampled one,
    as (id, log-probability under the amplified distribution, in nats, before temperature and
    truncation); None keeps nothing. on_step is told how many tokens each step has made.
    of_pair: requests of pairs that are made otherwise, by a pair's id. Rule and on_step are those
    of this one, and none has more new tokens.
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
        """Return the request that a cell is made by."""
        return self.of_pair.get(cell.pair_id, self)

    @classmethod
    def of(cls, settings: Any, stop_ids: frozenset[int], **more: Any) -> Request:
        """Return the request that settings ask for (temperature, top_k, top_p, seed, length)."""
        sampler = make_sampler(settings.temperature, settings.top_k, settings.top_p)
        return cls(sampler, settings.seed, settings.max_new_tokens, stop_ids, **more)

    def uniforms(self, cell: Cell) -> Tensor:
        """Return the random numbers of a cell, (max_new_tokens,), whatever its alpha and arm."""
        return uniforms(self.seed, cell.origin or cell.pair_id, cell.sample, self.max_new_tokens)


class Engine(Protocol):
    """Makes generations. It takes cells when it has room for them: another may take the rest."""

    def generate(
        self, cells: Iterable[Cell | None], contexts: Mapping[str, Contrast], request: Request
    ) -> Iterator[Generation]:
        """Yield each cell's generation as soon as it is finished; contexts are by a pair's id.

        None among the cells: there is none now, but more may follow while others are being made.
        """

    def describe(self) -> dict[str, Any]:
        """Return what of the engine can change a token: it is a part of a run's identity."""

    def capacity(self) -> int:
        """Return how many cells are made side by side."""
