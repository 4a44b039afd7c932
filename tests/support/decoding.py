"""Small contexts, and the engine as the tests call it."""

from __future__ import annotations

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Contrast, Request, Stream
from logit_amplification.locations import ROOT
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.files import read_pairs
from logit_amplification.prompts.pairs import PromptPair

GREEDY = make_sampler(0.0)
LENGTH = 16
TINY_CONTEXTS = {  # of different lengths, within a pair and between pairs
    "one": ((1, 5, 9, 33, 60), (1, 7, 7)),
    "two": ((1, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89), (1, 90)),
    "three": ((1, 100), (1, 101, 102, 103, 104, 105)),
    "null": ((1, 42, 43), (1, 42, 43)),
}


def demo_contexts(demo, *names):
    pairs = [p for p in read_pairs(ROOT / "data" / "prompt_pairs.csv") if p.id in names]
    encoded = encode_pairs(pairs, demo.tokenizer, max_new_tokens=100, max_positions=8192)
    return {pair.pair.id: (pair.ids_a, pair.ids_b) for pair in encoded}


def generate(
    model, cells, contexts, *, slots=16, forwards=1, step="auto", on_out_of_memory=None, **request
):
    """The generations of a batch; contexts are pairs of token ids."""
    more = {"on_out_of_memory": on_out_of_memory} if on_out_of_memory else {}
    engine = BatchedEngine(model, slots, forwards=forwards, step=step, **more)
    return engine.generate(iter(cells), contrasts(contexts), Request(**request))


def contrasts(contexts):
    return {name: Contrast(*(Stream(tuple(ids)) for ids in two)) for name, two in contexts.items()}


def run(loaded, cells, contexts, *, sampler=GREEDY, length=LENGTH, stop_ids=None, **options):
    made = generate(
        loaded.model,
        cells,
        contexts,
        sampler=sampler,
        seed=0,
        max_new_tokens=length,
        stop_ids=loaded.stop_ids if stop_ids is None else stop_ids,
        **{"slots": 5} | options,
    )
    return {generation.cell: generation for generation in made}


def tokens_of(generations):
    return {cell: generation.token_ids for cell, generation in generations.items()}


def chat(text):
    return ({"role": "user", "content": text},)


PAIRS = [
    PromptPair("long", "x", chat("Tell me a story about a fox."), chat("Hi")),
    PromptPair("short", "y", chat("Yes?"), chat("No?")),
    PromptPair("null-control", "control", chat("Yes?"), chat("Yes?")),
]
