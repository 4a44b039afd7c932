"""The model behind every integration: loaded weights, an alpha, and what B reads.

Other tools pass on one conversation or one text. This module turns it into the two (or three)
streams of a contrast.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..engine.batch.batched import BatchedEngine
from ..engine.interface import Contrast, Generation, Request, Stream
from ..errors import BadInput
from ..logits.sampling import make_sampler
from ..logits.vocabulary import ALPHA_ALONE
from ..models.loading import LoadedModel, load_model
from ..prompts.chat import encode_pairs
from ..prompts.pairs import make_pair
from ..settings import ArgumentsAlone, load_settings
from .serving import Server
from .stopping import StopTexts

LOADING = ("revision", "quantization", "dtype", "device", "adapter", "model_b", "model_base")
OTHER_NAMES = {"b_model": "model_b", "base_model": "model_base"}
CHANGES = ("alpha", "arm", "a_system", "b_system", "seed", "slots")
ARGUMENTS = (*CHANGES, *LOADING, *OTHER_NAMES)
MOST_SLOTS = 32
ASKING = threading.Lock()


@dataclass(frozen=True)
class Amplifier:
    """A loaded model, and how answers from it are amplified.

    a_system, b_system: the system message of that side, in place of the conversation's own; ""
    removes it, None keeps it.
    """

    loaded: LoadedModel
    alpha: float
    arm: str
    a_system: str | None
    b_system: str | None
    seed: int  # where a request has no seed
    server: Server = field(repr=False)
    asked: Counter[tuple[str, int]] = field(default_factory=Counter, repr=False)

    @classmethod
    def load(cls, model: str, arguments: Mapping[str, Any]) -> Amplifier:
        """Load a model with the arguments that another tool passes on.

        arguments: alpha (default 1), arm (default `full`), a_system, b_system, seed, slots, and
        those of `load_model`, where b_model and base_model are other names of model_b and
        model_base. Raises BadInput for an unknown argument, and if A and B would be the same
        although alpha is not 0.
        """
        given = {OTHER_NAMES.get(name, name): value for name, value in arguments.items()}
        allowed = (*CHANGES, *LOADING)
        if unknown := [name for name in given if name not in allowed]:
            raise BadInput(f"unknown argument {unknown[0]!r:.60}; allowed: {', '.join(ARGUMENTS)}")
        alpha = _number(given.get("alpha", 1.0))
        settings = load_settings(
            ArgumentsAlone,
            alphas=[alpha],
            arms=given.get("arm", "full"),
            seed=given.get("seed", 0),
            slots=given.get("slots", "auto"),
        )
        if len(settings.arms) > 1:
            raise BadInput(f"arm = {given['arm']!r}; allowed: one")
        (arm,) = settings.arms
        sides = {name: _text(given.get(name)) for name in ("a_system", "b_system")}
        weights = any(given.get(name) for name in ("adapter", "model_b"))
        same = not weights and sides["a_system"] == sides["b_system"]
        if alpha != 0 and same and arm not in ALPHA_ALONE:
            raise BadInput(
                f"alpha = {alpha:g} changes nothing where B is A; allowed: a b_system, b_model or "
                "adapter, or alpha = 0"
            )
        loading = {name: given[name] for name in LOADING if given.get(name) is not None}
        loaded = load_model(model, **loading)
        slots = MOST_SLOTS if settings.slots == "auto" else settings.slots
        server = Server(BatchedEngine(loaded.sources, slots))
        return cls(loaded, alpha, arm, **sides, seed=settings.seed, server=server)

    def chats(self, messages: Sequence[Mapping[str, str]]) -> Contrast:
        """Return the contrast of a conversation that both sides read, each with its system text.

        messages: role (system, user, assistant) and content; a last message of the assistant is the
        beginning of the answer. Raises BadInput if they are not a valid chat, or as `streams` does.
        `ask` checks the length.
        """
        sides = {
            "a": with_system(messages, self.a_system),
            "b": with_system(messages, self.b_system),
        }
        row = {"id": "request", "category": "request", **sides}
        pair = make_pair(row, "request", self.names_of_sources)
        (encoded,) = encode_pairs(
            [pair], self.loaded.tokenizer, max_new_tokens=0, max_positions=sys.maxsize
        )
        return self._told_apart(Contrast.of(encoded))

    def streams(self, a: Sequence[int], b: Sequence[int]) -> Contrast:
        """Return the contrast of two lists of token ids; a base reads what A reads.

        Raises BadInput if B would read the same as A although alpha is not 0.
        """
        sides = zip((a, b, a), self.names_of_sources, strict=False)
        streams = (Stream(tuple(ids), source) for ids, source in sides)
        return self._told_apart(Contrast(*streams))

    def _told_apart(self, contrast: Contrast) -> Contrast:
        """Return the contrast. Raises BadInput if B reads the same as A although alpha is not 0.

        A chat template, or the task itself, can cause that, and plain A must not be reported as
        amplified. Arms in which alpha acts without B are exempt.
        """
        if contrast.is_null and self.alpha != 0 and self.arm not in ALPHA_ALONE:
            raise BadInput(
                f"B reads the same as A here, so that alpha = {self.alpha:g} changes nothing; "
                "allowed: system texts that differ from the task's own"
            )
        return contrast

    @property
    def names_of_sources(self) -> tuple[str, ...]:
        """The names of the weights that A, B and the base are read with."""
        names = tuple(self.loaded.sources)
        return names if "model_b" in names else ("model", *names)

    def request(
        self,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float | None,
        top_k: int | None,
        seed: int | None,
        stop: Sequence[str] | None,
        likeliest: int | None = None,
    ) -> Request:
        """Return a request with these settings; None means off, and for `seed` this object's own.

        Raises BadInput as a sweep does.
        """
        settings = load_settings(
            ArgumentsAlone,
            temperature=temperature,
            top_p=1.0 if top_p is None else top_p,
            top_k=top_k or 0,
            seed=self.seed if seed is None else seed,
        )
        return Request(
            make_sampler(settings.temperature, settings.top_k, settings.top_p),
            settings.seed,
            max_new_tokens,
            self.loaded.stop_ids,
            stops=StopTexts(self.loaded.tokenizer, stop or ()),
            likeliest=likeliest,
        )

    def ask(
        self, contrast: Contrast, request: Request, answers: int = 1
    ) -> list[Future[Generation]]:
        """Request answers at this alpha; they are decoded beside whatever else has been requested.

        The random numbers depend on the seed, on what A reads, and on how often the same was
        requested before (in a sweep, they depend on pair and sample). They do not depend on what is
        decoded beside them, and are the same for every B, alpha and arm. Raises BadInput if the
        answer does not fit into the model's context.
        """
        longest = max(len(stream.ids) for stream in contrast.streams)
        if longest + request.max_new_tokens > self.loaded.max_positions:
            raise BadInput(
                f"{longest} prompt tokens and {request.max_new_tokens} of an answer exceed the "
                f"model's context of {self.loaded.max_positions} tokens"
            )
        origin = hashlib.sha256(repr(contrast.streams[0].ids).encode()).hexdigest()
        with ASKING:
            first = self.asked[origin, request.seed]
            self.asked[origin, request.seed] += answers
        cell = {"alpha": self.alpha, "arm": self.arm, "origin": origin}
        return [
            self.server.submit(contrast, request, sample=first + number, **cell)
            for number in range(answers)
        ]

    def describe(self) -> dict[str, Any]:
        """Return what the tool's log should say of a generation: alpha, arm, and what B is."""
        info = self.loaded.info
        others = {
            name: info[name]["name"]
            for name in ("adapter", "model_b", "model_base")
            if name in info
        }
        return {
            "alpha": self.alpha,
            "arm": self.arm,
            "a_system": self.a_system,
            "b_system": self.b_system,
            **others,
            "dtype": info["dtype"],
            "quantization": info["quantization"],
        }


def with_system(messages: Sequence[Mapping[str, str]], system: str | None) -> list[dict[str, str]]:
    """Return a conversation with this system message; "" removes it, None keeps its own."""
    rest = [dict(message) for message in messages if message["role"] != "system"]
    own = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    text = own if system is None else system
    return [{"role": "system", "content": text}, *rest] if text else rest


def _text(value: Any) -> str | None:
    """Return an argument as text: a command line may have read it as a number."""
    return None if value is None else str(value)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadInput(f"alpha = {value!r:.60}; allowed: one number") from None
