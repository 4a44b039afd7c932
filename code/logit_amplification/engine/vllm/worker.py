"""The process that runs vLLM: cells arrive through a pipe, finished generations go back.

    python -m logit_amplification.engine.vllm.worker FD

`engine.py` starts it with the Python of vLLM's own environment; FD is the pipe's file descriptor.
Messages are pairs of a name and its content.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from ...errors import BadInput
from ..interface import Cell, Contrast, Generation, Request
from .admission import Limits, Room
from .pairing import FOLDER, NAME, OutOfStep


def main(descriptor: int) -> None:
    """Serve requests until the other end of the pipe closes."""
    connection = Connection(descriptor)
    try:
        setup = cloudpickle.loads(connection.recv_bytes())
        worker = Worker(connection, **setup)
        connection.send(("ready", worker.limits))
        while True:
            worker.serve(*cloudpickle.loads(connection.recv_bytes()))
    except (EOFError, ConnectionError):  # the sweep has ended, or was killed
        return
    except BaseException as error:
        kind = "bad input" if isinstance(error, BadInput | OutOfStep) else type(error).__name__
        connection.send(("failed", (kind, str(error))))
        raise


class Worker:
    """vLLM with one model, and the cells being generated in it."""

    def __init__(
        self,
        connection: Connection,
        *,
        options: dict[str, Any],
        adapter: str | None,
        slots: int,
    ):
        self.connection, self.slots = connection, slots
        self.folder = Path(os.environ[FOLDER])
        self.finished = (self.folder / "finished").open("a+b")
        self.llm = LLM(**options)
        self.engine = self.llm.llm_engine
        config = self.engine.vllm_config
        self.limits = Limits(
            config.scheduler_config.max_num_seqs,
            config.scheduler_config.max_num_batched_tokens,
            config.model_config.max_model_len,
            config.cache_config.num_gpu_blocks - 1,  # vLLM reserves one
            config.cache_config.block_size,
        )
        self.lora = None
        if adapter:
            from vllm.lora.request import LoRARequest

            self.lora = LoRARequest("a", 1, adapter)
            self._refuse_an_adapter_everywhere()
        self.requests = 0

    def _refuse_an_adapter_everywhere(self) -> None:
        """Raise BadInput if a request with the adapter gets the same answer as one without it."""
        prompt = TokensPrompt(prompt_token_ids=list(range(10, 20)))
        params = SamplingParams(temperature=0, max_tokens=4, logprobs=5, detokenize=False)
        both = self.llm.generate(
            [prompt] * 2, params, lora_request=[self.lora, None], use_tqdm=False
        )
        told = [
            [sorted((t, p.logprob) for t, p in step.items()) for step in one.outputs[0].logprobs]
            for one in both
        ]
        if told[0] == told[1]:
            raise BadInput(
                "vLLM answers the same with and without the adapter: either it changes nothing, or "
                "this version of vLLM applies it to every request"
            )

    def serve(
        self,
        request: Request,
        contexts: dict[str, Contrast],
        paraphrases: dict[str, tuple[int, ...]],
    ) -> None:
        """Make cells until `end` arrives; send each generation, and each step's number of cells."""
        self.requests += 1
        path = self.folder / f"request-{self.requests}"
        path.write_bytes(cloudpickle.dumps(request))
        self.request, self.contexts, self.paraphrases = request, contexts, paraphrases
        self.room = Room(self.limits)
        for name, contrast in contexts.items():
            self.room.refuse(f"the pair {name!r}", _lengths(contrast), self._new_tokens(name))
        self.waiting: deque[tuple[str, Cell]] = deque()
        self.to_score: deque[tuple[str, Generation]] = deque()
        self.inside: dict[str, dict[str, Any]] = {}  # by cell: the tokens of its rows
        self.scoring: dict[str, Generation] = {}
        more, count = True, 0
        while more or self.waiting or self.inside or self.to_score or self.scoring:
            idle = not (self.waiting or self.inside or self.to_score or self.scoring)
            while more and (idle or self.connection.poll()):
                kind, cell = self.connection.recv()
                if kind == "end":
                    more = False
                else:
                    count += 1
                    self.waiting.append((f"{self.requests}-{count}", cell))
                idle = False
            self._admit()
            if self.engine.has_unfinished_requests():
                self._step()
        path.unlink()
        self.connection.send(("ended", None))

    def _new_tokens(self, pair_id: str) -> int:
        return self.request.of_pair.get(pair_id, self.request).max_new_tokens

    def _admit(self) -> None:
        """Add what fits, texts to be scored first: their finished answers wait for the score."""
        while self.to_score:
            name, generation = self.to_score[0]
            ids = [*self.paraphrases[generation.cell.pair_id], *generation.token_ids]
            if len(ids) + 1 > self.limits.positions or len(ids) > self.limits.tokens:
                raise BadInput(
                    f"the paraphrase of {generation.cell.pair_id!r} and an answer take {len(ids)} "
                    "tokens; allowed: max_model_len and max_num_batched_tokens in VLLM_OPTIONS"
                )
            if not self.room.fits([len(ids)], 1):
                return
            self.to_score.popleft()
            self.room.enter(name, [len(ids)], 1)
            self.scoring[name] = generation
            params = SamplingParams(
                temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False
            )
            prompt = TokensPrompt(prompt_token_ids=ids)
            self.engine.add_request(f"{name}/score", prompt, params, lora_request=self.lora)
        while self.waiting:
            name, cell = self.waiting[0]
            contrast, new = self.contexts[cell.pair_id], self._new_tokens(cell.pair_id)
            if not self.room.fits(_lengths(contrast), new):
                return
            self.waiting.popleft()
            self.room.enter(name, _lengths(contrast), new)
            self.inside[name] = {}
            self._add(name, cell, contrast, new)

    def _add(self, name: str, cell: Cell, contrast: Contrast, new_tokens: int) -> None:
        distinct = list(dict.fromkeys(contrast.streams))
        told = {
            "cell_id": name,
            "cell": [cell.pair_id, cell.alpha, cell.sample, cell.arm, cell.origin],
            "streams": [distinct.index(stream) for stream in contrast.streams],
            "rows": len(distinct),
            "request": self.requests,
            "slots": self.slots,
        }
        for row, stream in enumerate(distinct):
            params = SamplingParams(
                temperature=0,
                max_tokens=new_tokens,
                stop_token_ids=sorted(self.request.stop_ids),
                ignore_eos=True,  # the ids above are all that end an answer
                detokenize=False,
                extra_args={NAME: told | {"row": row}},
            )
            self.engine.add_request(
                f"{name}/{row}",
                TokensPrompt(prompt_token_ids=list(stream.ids)),
                params,
                lora_request=self.lora if stream.source == "model" else None,
            )

    def _step(self) -> None:
        drawn = len(self.inside)
        outputs = self.engine.step()
        self.room.stepped()
        for output in outputs:
            name, _, row = output.request_id.rpartition("/")
            if row == "score":
                self._scored(name, output)
            elif output.finished and name in self.inside:
                self.inside[name][row] = list(output.outputs[0].token_ids)
        for name, generation in self._new_generations():
            self._leave(name, generation)
        self.connection.send(("stepped", drawn))

    def _leave(self, name: str, generation: Generation) -> None:
        """Remove a finished cell, after checking that vLLM's rows have the tokens that we drew."""
        rows = self.inside.pop(name)
        self.room.leave(name)
        if generation.finish_reason in ("stop", "error"):  # ended by us: vLLM would go on
            contrast = self.contexts[generation.cell.pair_id]
            self.engine.abort_request(
                [f"{name}/{row}" for row, _ in enumerate(set(contrast.streams))]
            )
        elif {tuple(ids) for ids in rows.values()} != {tuple(generation.token_ids)}:
            raise OutOfStep(f"cell {name}: vLLM's rows have other tokens than were drawn")
        scored = generation.token_ids and generation.finish_reason != "error"
        if scored and self.paraphrases.get(generation.cell.pair_id):
            self.to_score.append((name, generation))
        else:
            self.connection.send(("finished", generation))

    def _scored(self, name: str, output: Any) -> None:
        generation = self.scoring.pop(name)
        self.room.leave(name)
        ids = generation.token_ids
        found = output.prompt_logprobs[-len(ids) :]
        total = sum(one[token].logprob for one, token in zip(found, ids, strict=True))
        generation.nll_p = -total / len(ids)
        self.connection.send(("finished", generation))

    def _new_generations(self) -> Iterator[tuple[str, Generation]]:
        """Yield what the logits processor has written since the last call."""
        while True:
            place = self.finished.tell()
            try:
                yield pickle.load(self.finished)
            except EOFError:
                self.finished.seek(place)
                return


def _lengths(contrast: Contrast) -> list[int]:
    """Return the number of tokens that each distinct stream starts with."""
    return [len(stream.ids) for stream in dict.fromkeys(contrast.streams)]


if __name__ == "__main__":
    main(int(sys.argv[1]))
