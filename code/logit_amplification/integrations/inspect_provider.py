"""inspect_ai's model provider `amplified`: an evaluation's requests share the engine's slots.

inspect eval task.py --model amplified/demo -M alpha=1 -M b_system="You are rude."
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import anyio
from anyio.to_thread import run_sync
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from ..engine.interface import Contrast, Generation, Request
from ..errors import BadInput
from ..logits.vocabulary import PER_TOKEN
from ..prompts.chat import token_texts
from .amplifier import Amplifier

MOST_TOP = 100  # maximum number of likeliest tokens reported per step
MOST_TOKENS = 2048  # of an answer, where a task does not say; fewer if the context ends
# Settings that would have to change the distribution, or the form of the answer, and are not
# supported.
WITHOUT = (
    *("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "response_schema"),
    *("prompt_logprobs", "reasoning_tokens", "modalities", "extra_body", "effort", "verbosity"),
    *("reasoning_effort", "reasoning_mode"),
)
REASONS: dict[str | None, StopReason] = {"eos": "stop", "stop": "stop", "length": "max_tokens"}


class AmplifiedAPI(ModelAPI):
    """Answers from logits_a + alpha * (logits_a - logits_b), over the whole vocabulary.

    Arguments (`-M`): those of `Amplifier.load`. The rest comes from the task's generation config.
    Where that is silent, temperature is 1, top_p 1 and top_k off, so that the model itself is
    sampled.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  inspect's own signature
        **model_args: Any,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        try:
            self.amplifier = Amplifier.load(model_name, model_args)
        except BadInput as error:
            raise PrerequisiteError(f"amplified/{model_name}: {error}") from None
        # inspect's cache of answers distinguishes models by name and address, not by arguments.
        told = json.dumps(model_args, sort_keys=True, default=str)
        self.base_url = f"amplified:{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002  inspect's own name
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation; those that arrive meanwhile are decoded beside it.

        Raises BadInput for tools and for settings that the provider does not support.
        """
        started = time.monotonic()
        if tools:
            raise BadInput(
                "tools: the provider `amplified` cannot call them; allowed: a task without tools"
            )
        refused = [name for name in WITHOUT if getattr(config, name, None) is not None]
        if refused:
            raise BadInput(f"{refused[0]}: the provider `amplified` has no such setting")
        messages = [_plain(message) for message in input]
        contrast, room = self._contrast(messages)
        if room < 1:
            return ModelOutput.from_content(
                self.model_name, "", stop_reason="model_length", error="no room for an answer"
            )
        asked = room if config.max_tokens is None else config.max_tokens
        if asked < 1:
            raise BadInput(f"max_tokens = {asked}; allowed: from 1")
        request = self._request(config, min(room, asked))
        futures = self.amplifier.ask(contrast, request, config.num_choices or 1)
        try:
            made = [await _result(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()  # drops those that nobody waits for; finished ones stay
        return self._output(made, contrast, config, request, time.monotonic() - started)

    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens of an answer where the task does not say."""
        return MOST_TOKENS

    def max_connections(self) -> int:
        """Return how many requests are decoded side by side."""
        return self.amplifier.server.most

    def collapse_user_messages(self) -> bool:
        """Return True: in a chat template, user and assistant take turns."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Return True: in a chat template, user and assistant take turns."""
        return True

    def close(self) -> None:
        """Finish what was requested, and release the model."""
        self.amplifier.server.close()
        del self.amplifier

    def _contrast(self, messages: list[dict[str, str]]) -> tuple[Contrast, int]:
        """Return the contrast, and how many tokens of an answer the context has room for."""
        contrast = self.amplifier.chats(messages)
        longest = max(len(stream.ids) for stream in contrast.streams)
        return contrast, self.amplifier.loaded.max_positions - longest

    def _request(self, config: GenerateConfig, max_new_tokens: int) -> Request:
        asked = bool(config.logprobs or config.top_logprobs)
        if not 0 <= (config.top_logprobs or 0) <= MOST_TOP:
            raise BadInput(f"top_logprobs = {config.top_logprobs}; allowed: 0 to {MOST_TOP}")
        return self.amplifier.request(
            max_new_tokens=max_new_tokens,
            temperature=_temperature(config),
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
            stop=config.stop_seqs,
            likeliest=(config.top_logprobs or 0) if asked else None,
        )

    def _output(
        self,
        made: Sequence[Generation],
        contrast: Contrast,
        config: GenerateConfig,
        request: Request,
        seconds: float,
    ) -> ModelOutput:
        for one in made:
            if one.finish_reason == "error":
                raise RuntimeError(one.error)
        read = len(contrast.streams[0].ids)
        written = sum(len(one.token_ids) for one in made)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(one, request, config) for one in made],
            usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written),
            time=seconds,
            metadata={
                **self.amplifier.describe(),
                "seed": request.seed,
                "temperature": _temperature(config),
                "input_tokens_b": len(contrast.b.ids),
                "generations": [
                    {"sample": one.cell.sample, "measures": measures_of(one)} for one in made
                ],
            },
        )

    def _choice(
        self, made: Generation, request: Request, config: GenerateConfig
    ) -> ChatCompletionChoice:
        tokenizer = self.amplifier.loaded.tokenizer
        text = request.stops.cut(tokenizer.decode(made.token_ids, skip_special_tokens=True))
        logprobs = None
        if request.likeliest is not None:
            logprobs = Logprobs(content=_logprobs(tokenizer, made, request.likeliest))
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        reason = REASONS[made.finish_reason]
        if reason == "max_tokens" and request.max_new_tokens < (config.max_tokens or math.inf):
            reason = "model_length"  # the context ended first
        return ChatCompletionChoice(message=message, stop_reason=reason, logprobs=logprobs)


def _temperature(config: GenerateConfig) -> float:
    """Return the requested temperature, by default 1, which samples the model itself."""
    return 1.0 if config.temperature is None else config.temperature


def measures_of(made: Generation) -> dict[str, float | None]:
    """Return the means of a generation's measures over its tokens, and its importance weight.

    log_weight_a is the sum over tokens of log p_A - log p, in nats, where p is the distribution
    drawn from. Its exponential weights the answer so that it stands for unamplified A at
    temperature 1 (importance sampling). Values that are not finite are None.
    """
    columns = dict(zip(PER_TOKEN, zip(*made.per_token, strict=True), strict=True))
    found = {name: sum(values) / len(values) for name, values in columns.items()}
    weight = -sum(columns["nll_a"]) - sum(columns["logprob_sampled"])
    found |= {"log_ratio_a_b": found["nll_b"] - found["nll_a"], "log_weight_a": weight}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _plain(message: ChatMessage) -> dict[str, str]:
    """Return role and text of a message. Raises BadInput for anything but text."""
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise BadInput("tool messages: the provider `amplified` cannot read them; allowed: text")
    parts = [] if isinstance(message.content, str) else message.content
    if other := [part.type for part in parts if part.type not in ("text", "reasoning")]:
        raise BadInput(f"{other[0]}: the provider `amplified` reads only text")
    return {"role": message.role, "content": message.text}


async def _result(future: Future[Generation]) -> Generation:
    """Wait for a generation without blocking the event loop, whichever one it is."""
    # One thread per request: it only waits.
    return await run_sync(future.result, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


def _logprobs(tokenizer: Any, made: Generation, most: int) -> list[Logprob]:
    """Return the sampled tokens, each with the likeliest ones of its step, in inspect's form."""
    texts = token_texts(tokenizer, made.token_ids)
    found = []
    for text, ((_, own), *likeliest) in zip(texts, made.likeliest, strict=True):
        top = [
            TopLogprob(token=shown, logprob=value, bytes=list(shown.encode()))
            for shown, value in ((tokenizer.decode([token]), value) for token, value in likeliest)
        ]
        found.append(
            Logprob(
                token=text,
                logprob=own,
                bytes=list(text.encode()),
                top_logprobs=top if most else None,
            )
        )
    return found
