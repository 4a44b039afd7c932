"""lm-evaluation-harness' model `amplified`: its tasks under the amplified distribution.

    python -m logit_amplification.integrations.lm_eval_model run --model amplified \
        --model_args 'pretrained=demo,alpha=1,b_system=You are rude.' --tasks ...

The harness registers models when they are imported, and has no entry points. Run as a module, this
file registers its model and then starts the harness' own command line.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from ..engine.batch.drawing import anchor_and_reference
from ..engine.forward import rows_logits
from ..engine.interface import Contrast, Request
from ..errors import BadInput
from ..logits.amplification import amplify
from ..logits.arms import ARMS
from ..prompts.chat import accepts_system_role, fold_system
from .amplifier import ARGUMENTS, Amplifier, with_system

TEXTS_AT_ONCE = 8  # where the harness' batch size is `auto`
OF_HARNESS = ("batch_size", "max_batch_size", "max_length", "add_bos_token", "prefix_token_id")
OF_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")


@register_model("amplified")
class AmplifiedLM(HFLM):
    """The harness' `hf` model with the log-likelihoods and texts of the amplified distribution.

    Arguments: `pretrained`, those of `Amplifier.load`, and of `hf` batch_size, max_batch_size,
    max_length, add_bos_token and prefix_token_id. With `--apply_chat_template`, a_system and
    b_system replace the system message; without it, they are put before the text, with an empty
    line between. Raises BadInput for an unknown argument.
    """

    def __init__(self, pretrained: str = "demo", **arguments: Any):
        own = {name: arguments.pop(name) for name in ARGUMENTS if name in arguments}
        if unknown := [name for name in arguments if name not in OF_HARNESS]:
            allowed = ", ".join(("pretrained", *ARGUMENTS, *OF_HARNESS))
            raise BadInput(f"unknown argument {unknown[0]!r:.60}; allowed: {allowed}")
        if own.get("device") == "cuda:0":  # the harness' default on every machine
            own["device"] = "auto"
        self.amplifier = Amplifier.load(pretrained, own)
        loaded = self.amplifier.loaded
        limit = arguments.pop("max_length", None) or loaded.max_positions
        self.limit = min(int(limit), loaded.max_positions)
        self.longest = self.limit  # less while windows leave room for a system text
        super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, **arguments)
        self.chats: dict[str, list[dict[str, str]]] = {}  # by rendered text
        self.renders_chats = False

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of a context and its continuation."""
        return self.longest

    # ------------------------------------------------------------------ what A and B read

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that chats are rendered with; note whether contexts will be chats."""
        self.renders_chats = bool(chat_template)
        return super().chat_template(chat_template)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a chat for A, and remember it: B renders it with another system message."""
        self.renders_chats = True
        rendered = super().apply_chat_template(chat_history, add_generation_prompt)
        self.chats[rendered] = chat_history
        return rendered

    def _read(self, context: str, system: str | None) -> str:
        """Return a context with one side's system text.

        Raises BadInput for a chat that this object has not rendered.
        """
        if system is None:
            return context
        if not self.renders_chats:
            return f"{system}\n\n{context}" if system else context
        # The context may go on after the rendered chat, with the beginning of an answer.
        chat = context if context in self.chats else None
        chat = chat or next((known for known in self.chats if context.startswith(known)), None)
        if chat is None:
            raise BadInput(
                "a chat that this model has not rendered (--cache_requests keeps them); allowed: "
                "a_system and b_system without that cache"
            )
        messages = with_system(self.chats[chat], system)
        if not accepts_system_role(self.tokenizer):  # the harness would drop it
            messages = fold_system(messages)
        goes_on = messages[-1]["role"] == "assistant"
        return super().apply_chat_template(messages, not goes_on) + context[len(chat) :]

    def _contrast(self, context: str, ids: Sequence[int] | None = None) -> Contrast:
        """Return the contrast of a context.

        ids: the tokens before a continuation, for a side without a system text of its own; spaces
        at the end of the context then belong to the continuation.
        """

        def read(system: str | None) -> Sequence[int]:
            if ids is None:
                return self.tok_encode(self._read(context, system))
            return ids if system is None else self.tok_encode(self._read(context, system).rstrip())

        return self.amplifier.streams(read(self.amplifier.a_system), read(self.amplifier.b_system))

    def _continued(self, ids: Sequence[int]) -> Contrast:
        """Return the contrast of a window of a text, with each side's own system text before it."""
        sides = self.amplifier.a_system, self.amplifier.b_system
        begun = ids[0] == self.prefix_token_id
        first, rest = (ids[:1], ids[1:]) if begun else ([], ids)
        heads = (self.tok_encode(f"{s}\n\n", add_special_tokens=False) if s else [] for s in sides)
        return self.amplifier.streams(*([*first, *head, *rest] for head in heads))

    # ------------------------------------------------------------------ what the harness asks for

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in windows that leave room for the system texts before them.

        Raises BadInput if these leave no room.
        """
        longest = max(len(s.ids) for s in self._continued([self.prefix_token_id]).streams)
        if longest >= self.limit:
            raise BadInput(f"system texts of {longest - 1} tokens leave no room in {self.limit}")
        self.longest = self.limit - longest + 1
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.longest = self.limit

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations, the longest first: one forward pass per batch and set of weights.

        Raises BadInput for one that exceeds the model's context.
        """
        contrasts = []
        for pair, ids, continuation in requests:
            whole = pair and pair[0]  # no context: a whole text, or a window of one
            own = whole and whole.strip()
            contrast = (
                self._contrast(whole, ids)
                if own
                else self._continued(ids or [self.prefix_token_id])
            )
            longest = max(len(stream.ids) for stream in contrast.streams) + len(continuation) - 1
            if longest > self.limit:
                raise BadInput(
                    f"a context and its continuation take {longest} tokens, and the model's "
                    f"context has {self.limit}"
                )
            contrasts.append(contrast)
        order = sorted(
            range(len(requests)), key=lambda n: -len(requests[n][1]) - len(requests[n][2])
        )
        at_once = int(self.batch_size) if str(self.batch_size).isdigit() else TEXTS_AT_ONCE
        found: dict[int, tuple[float, bool]] = {}
        for first in tqdm(range(0, len(order), at_once), disable=disable_tqdm, desc="Scoring"):
            batch = order[first : first + at_once]
            rows = [(contrasts[n], requests[n][2]) for n in batch]
            for n, score in zip(batch, self._score(rows), strict=True):
                found[n] = score
                if requests[n][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[n][0], score)
        return [found[n] for n in range(len(requests))]

    def _score(self, rows: Sequence[tuple[Contrast, Sequence[int]]]) -> list[tuple[float, bool]]:
        """Return the log-probability of each text in nats, and whether argmax would produce it."""
        by_source: dict[str, list[tuple[int, int]]] = {}
        for row, (contrast, _) in enumerate(rows):
            for place, stream in enumerate(contrast.streams):
                by_source.setdefault(stream.source, []).append((row, place))
        logits: dict[tuple[int, int], Any] = {}
        for source, places in by_source.items():
            texts = [(rows[row][0].streams[place].ids, rows[row][1]) for row, place in places]
            made = rows_logits(self.amplifier.loaded.sources[source], texts)
            logits |= dict(zip(places, made, strict=True))
        scores = []
        for row, (contrast, text) in enumerate(rows):
            streams = [logits[row, place] for place in range(len(contrast.streams))]
            a, b = anchor_and_reference(streams)
            amplified = ARMS[self.amplifier.arm](amplify, a, b, self.amplifier.alpha)
            own = amplified.log_softmax(-1)[range(len(text)), list(text)]
            scores.append((float(own.sum()), amplified.argmax(-1).tolist() == list(text)))
        return scores

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate answers, all of them side by side in the engine's slots.

        Raises BadInput if one does not fit into the model's context, and RuntimeError if one ends
        with an error.
        """
        asked = [(self._contrast(r.args[0]), self._request(r.args[1])) for r in requests]
        for contrast, request in asked:
            longest = max(len(stream.ids) for stream in contrast.streams)
            if longest + request.max_new_tokens > self.limit:
                raise BadInput(
                    f"a context of {longest} tokens and max_gen_toks = {request.max_new_tokens} "
                    f"exceed the model's context of {self.limit}"
                )
        waiting = deque(self.amplifier.ask(*one)[0] for one in asked)
        texts = []
        progress = tqdm(asked, disable=disable_tqdm, desc="Generating")
        for one, (_, request) in zip(requests, progress, strict=True):
            made = waiting.popleft().result()
            if made.finish_reason == "error":
                raise RuntimeError(made.error)
            text = self.tokenizer.decode(made.token_ids, skip_special_tokens=True)
            texts.append(request.stops.cut(text))
            self.cache_hook.add_partial("generate_until", one.args, texts[-1])
        return texts

    def _request(self, wanted: dict[str, Any]) -> Request:
        if unknown := [name for name in wanted if name not in OF_GENERATION]:
            raise BadInput(f"{unknown[0]}: allowed of a task: {', '.join(OF_GENERATION)}")
        until = wanted.get("until") or []
        temperature = float(wanted.get("temperature") or 0.0)
        if wanted.get("do_sample") and "temperature" not in wanted:
            temperature = 1.0
        if wanted.get("do_sample") is False:
            temperature = 0.0
        return self.amplifier.request(
            max_new_tokens=int(wanted.get("max_gen_toks", self.max_gen_toks)),
            temperature=temperature,
            top_p=wanted.get("top_p"),
            top_k=wanted.get("top_k"),
            seed=None,
            stop=[until] if isinstance(until, str) else until,
        )


def main(run: Callable[[], None]) -> None:
    """Run the harness' command line; report unusable input in one line."""
    try:
        run()
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    main(cli_evaluate)
