"""Generate the cells of `benchmark.py peers` with llama.cpp.

It runs in its own environment (pip install llama-cpp-python numpy), reads a task as JSON from stdin
and writes tokens and seconds as JSON to stdout. A cell is two sequences of one llama.cpp context.
The tokens of all cells in a step form one llama_batch, and a finished cell makes room for the next.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from importlib.metadata import version

import llama_cpp
import numpy

Logits = "numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]"


class Sequences:
    """A llama.cpp context for many sequences, and the batch of the next step."""

    def __init__(self, gguf: str, sequences: int, length: int, threads: int, repack: bool):
        llama_cpp.llama_backend_init()
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = repack  # repacks the weights for AMX and similar
        self.model = llama_cpp.llama_model_load_from_file(gguf.encode(), loading)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = sequences * length
        options.n_seq_max = sequences
        options.n_batch = options.n_ubatch = 2048
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = False  # the shared prefixes are too short to pay off
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)
        self.lengths = [0] * sequences

    def clear(self, sequence: int) -> None:
        """Forget a sequence."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        self.lengths[sequence] = 0

    def append(self, tokens: dict[int, list[int]]) -> dict[int, Logits]:
        """Append tokens to sequences in one step; return the logits after each sequence's last."""
        batch, place, asked = self.batch, 0, {}
        for sequence, ids in tokens.items():
            for number, token in enumerate(ids):
                batch.token[place] = token
                batch.pos[place] = self.lengths[sequence] + number
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = number == len(ids) - 1
                place += 1
            self.lengths[sequence] += len(ids)
            asked[sequence] = place - 1
        batch.n_tokens = place
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return {
            sequence: numpy.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(self.context, index), (self.vocabulary,)
            )
            for sequence, index in asked.items()
        }


def draw(logits: Logits, temperature: float, top_p: float, uniform: float) -> int:
    """Nucleus-sample from the 256 likeliest tokens; probabilities are over the whole vocabulary."""
    logits = logits / temperature
    top = numpy.argpartition(logits, -256)[-256:]
    top = top[numpy.argsort(-logits[top])]
    largest = logits[top[0]]
    mass = numpy.exp(logits[top] - largest) / numpy.exp(logits - largest).sum()
    kept = numpy.cumsum(mass) - mass < top_p
    cdf = numpy.cumsum(mass[kept])
    return int(top[min(numpy.searchsorted(cdf, uniform * cdf[-1], "right"), len(cdf) - 1)])


def run(task: dict) -> int:
    """Generate every cell of the task; return the number of sampled tokens."""
    side_by_side = task["side_by_side"]
    sequences = Sequences(
        task["gguf"], 2 * side_by_side, task["length"], task["threads"], task["repack"]
    )
    random = numpy.random.default_rng(task["seed"])
    pending, active, total = list(task["cells"])[::-1], {}, 0
    started = time.perf_counter()
    while pending or active:
        tokens = {}
        for slot in range(side_by_side):
            if slot in active:
                tokens[2 * slot] = tokens[2 * slot + 1] = [active[slot]["last"]]
            elif pending and sum(map(len, tokens.values())) < 1000:
                active[slot] = cell = pending.pop() | {"made": 0}
                tokens[2 * slot], tokens[2 * slot + 1] = cell["a"], cell["b"]
        logits = sequences.append(tokens)
        for slot, cell in list(active.items()):
            a, b = logits[2 * slot], logits[2 * slot + 1]
            amplified = a + cell["alpha"] * (a - b)
            token = draw(amplified, task["temperature"], task["top_p"], random.random())
            cell["last"], cell["made"], total = token, cell["made"] + 1, total + 1
            if token in task["stop_ids"] or cell["made"] == task["max_new_tokens"]:
                del active[slot]
                sequences.clear(2 * slot)
                sequences.clear(2 * slot + 1)
    seconds = time.perf_counter() - started
    print(json.dumps({"tokens": total, "seconds": seconds, "version": version("llama-cpp-python")}))
    return total


if __name__ == "__main__":
    run(json.load(sys.stdin))
