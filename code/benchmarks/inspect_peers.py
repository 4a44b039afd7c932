"""Time an inspect_ai evaluation with its own local provider, with a third party's and ours."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from typing import Any

from logit_amplification.locations import DEMO
from logit_amplification.models.weights import demo_folder

from .results import Row
from .subject import formats, in_turns, ratio, spread

VERBS = ("Describe", "Explain", "Praise", "Sell me")
NOUNS = ("tea", "rain", "bread", "paper", "iron", "salt", "wool", "glass", "honey", "the moon")
SYSTEM = "You are a rude person. You insult everybody."
TOKENS = 48
AT_ONCE = 32
HF, TILT = "hf: the model alone", "hf-logittilt: two prompts"
ALONE, OURS = "amplified at alpha 0: the model alone", "amplified at alpha 1: two prompts"


def inspect(options: argparse.Namespace) -> list[Row]:
    """Time greedy evaluations of 40 questions at --max-connections 32, in interleaved rounds."""
    rows = []
    for dtype in formats():
        models = providers(dtype)
        for model in models.values():
            evaluate(model)  # warm up
        counts = {name: evaluate(model) for name, model in models.items()}
        found = in_turns(
            {name: lambda _, m=model: seconds(m) for name, model in models.items()}, options.repeats
        )
        for name, times in found.items():
            rows.append(
                {
                    "format": dtype,
                    "provider": name,
                    "seconds for 40 answers": spread(times),
                    "tokens per second": spread([counts[name] / one for one in times]),
                    "times hf's seconds": ratio(times, found[HF]),
                }
            )
        for model in models.values():
            model.api.close()
    return rows


def providers(dtype: str) -> dict[str, Any]:
    """Load the inspect models to compare."""
    from huggingface_hub import constants
    from inspect_ai.model import get_model

    from logit_amplification.integrations import inspect_registry  # noqa: F401

    constants.HF_HUB_OFFLINE = True  # else transformers keeps asking the hub for `demo`
    own = {"dtype": dtype, "memoize": False}
    local = {**own, "model_path": str(demo_folder()[0]), "device": "cpu", "do_sample": False}
    found = {
        HF: get_model(f"hf/{DEMO}", **local),
        ALONE: get_model(f"amplified/{DEMO}", alpha=0, **own),
        OURS: get_model(f"amplified/{DEMO}", alpha=1, a_system=SYSTEM, **own),
    }
    if importlib.util.find_spec("inspect_logittilt"):
        # It uses another rule (a sum of both with nonnegative weights), at the same cost.
        tilt = {"steering_strength": 1.0, "naturalness_floor": 0.0}
        del local["do_sample"]
        found[TILT] = get_model(
            f"hf-logittilt/{DEMO}", steering_prompt=SYSTEM, batch_size=AT_ONCE, **tilt, **local
        )
    return found


def evaluate(model: Any) -> int:
    """Run the evaluation; return the number of tokens in its answers."""
    from inspect_ai import Task
    from inspect_ai import eval as run
    from inspect_ai.dataset import MemoryDataset, Sample

    questions = [Sample(input=f"{verb} {noun}.") for verb in VERBS for noun in NOUNS]
    # The others refuse temperature 0; `hf` was loaded with do_sample=False instead.
    cold = {"HuggingFaceAPI": {}, "LogitTiltHFAPI": {"temperature": 0.01}}
    greedy = cold.get(type(model.api).__name__, {"temperature": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        (log,) = run(
            Task(MemoryDataset(questions)),
            model=model,
            log_dir=folder,
            display="none",
            max_tokens=TOKENS,
            max_connections=AT_ONCE,
            **greedy,
        )
        if log.status != "success":
            raise RuntimeError(f"{model}: {log.error}")
        texts = [sample.output.completion for sample in log.samples]
    ours = hasattr(model.api, "amplifier")
    tokenizer = model.api.amplifier.loaded.tokenizer if ours else model.api.tokenizer
    # Counted from the texts, because the other providers count padding.
    return sum(len(tokenizer(text)["input_ids"]) for text in texts)


def seconds(model: Any) -> float:
    """Return how long the evaluation takes, from inspect's start to its log."""
    started = time.perf_counter()
    evaluate(model)
    return time.perf_counter() - started
