"""Set up and time the benchmarks' common subject: the demo model on the default sweep."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.batch.cache import Prefixes
from logit_amplification.engine.batch.slots import Slots
from logit_amplification.engine.interface import Cell, Contrast, Generation, Request, Stream
from logit_amplification.locations import ROOT
from logit_amplification.machine import hardware, sizes
from logit_amplification.models import loading
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.files import read_pairs
from logit_amplification.settings import Settings, load_settings
from logit_amplification.sweeps.sweep import plan_cells

PROGRAM = ROOT / "code" / "benchmark.py"


@dataclass(frozen=True)
class Subject:
    """The demo model, the built-in pairs, and the cells of the default sweep."""

    loaded: loading.LoadedModel
    settings: Settings
    contexts: dict[str, tuple[list[int], list[int]]]
    cells: list[Cell]

    @property
    def model(self) -> Any:
        """The causal language model."""
        return self.loaded.model

    def generate(self, cells: Sequence[Cell], **changed: Any) -> Iterator[Generation]:
        """Run the engine as a sweep does."""
        slots = changed.pop("slots", sizes.MOST_AUTO_SLOTS["cpu"])
        step = changed.pop("step", "auto")
        request = replace(self.request, **changed)
        return BatchedEngine(self.model, slots, step=step).generate(cells, self.contrasts, request)

    @property
    def request(self) -> Request:
        """The sweep's request to an engine."""
        return Request.of(self.settings, self.loaded.stop_ids)

    @property
    def contrasts(self) -> dict[str, Contrast]:
        """The contexts in the form that the engine takes."""
        two = self.contexts.items()
        return {name: Contrast(*(Stream(tuple(ids)) for ids in pair)) for name, pair in two}


def load_subject(dtype: str, quantization: str = "none") -> Subject:
    """Load the demo model with default settings, whatever .env says, and one arm."""
    settings = load_settings(
        **{name: field.default for name, field in Settings.model_fields.items()}
        | {"model": "demo", "dtype": dtype, "quantization": quantization, "arms": ("full",)}
    )
    loaded = loading.load_model(settings)
    pairs = read_pairs(settings.prompts)
    encoded = encode_pairs(
        pairs,
        loaded.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_positions=loaded.max_positions,
    )
    contexts = {pair.pair.id: (pair.ids_a, pair.ids_b) for pair in encoded}
    return Subject(loaded, settings, contexts, plan_cells(pairs, settings))


def formats() -> tuple[str, ...]:
    """Return the dtypes to measure: what the processor multiplies natively, and float32."""
    return tuple(dict.fromkeys((hardware.cpu_dtype(), "float32")))


def fill_slots(
    subject: Subject,
    cells: Sequence[Cell],
    new_tokens: int,
    *,
    forwards: int = 1,
    kind: str = "eager",
) -> Slots:
    """Return the engine's slots, one per cell, prefilled."""
    longest = max(len(ids) for c in cells for ids in subject.contexts[c.pair_id]) + new_tokens
    batch = Slots([subject.model] * 2, len(cells), longest, together=forwards == 1, kind=kind)
    prefixes = Prefixes(most=2 * len(subject.contexts))
    for slot, cell in enumerate(cells):
        streams = subject.contrasts[cell.pair_id].streams
        batch.fill(slot, [prefixes.take(stream, subject.model) for stream in streams])
    return batch


# ------------------------------------------------------------------------------------------ timing


def in_turns(runs: dict[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Call every run once per round with the round's number; return all their results by name."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            found[name].append(run(number))
            print(f"  round {number + 1}, {name}: {found[name][-1]:.4g}", flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """Return the median, with minimum and maximum in brackets."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Return the median of the rounds' ratios, with minimum and maximum in brackets."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def in_a_process(name: str, *flags: str) -> Any:
    """Run one measurement in a fresh process, so that it has its own peak memory."""
    command = [sys.executable, str(PROGRAM), name, "--alone-in-process", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
