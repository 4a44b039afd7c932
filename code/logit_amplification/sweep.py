"""Which cells are missing, run them, keep them: the sweep behind notebook and command line."""

from __future__ import annotations

import dis
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from . import engine, models
from .amplification import Rule, amplify
from .engine import Cell, Generation
from .measures import PER_TOKEN, measure_text
from .models import LoadedModel
from .pairs import EncodedPair, PromptPair, describe_system_role, encode_pairs
from .reference import generate_by_loop
from .sampling import make_sampler
from .settings import BadInput, Settings
from .store import Journal, Record, cell_key

DIGITS = 6  # significant digits kept of a measure: float32 has no more
Loop = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its configuration, its records in the plan's order, and what it cost."""

    run: dict[str, Any]
    records: list[Record]
    metadata: dict[str, Any]


def plan_cells(pairs: Sequence[PromptPair], settings: Settings) -> list[Cell]:
    """Return every cell of the sweep, pair by pair, so that a pair's contexts are soon let go."""
    return [
        Cell(pair.id, alpha, sample, arm)
        for pair in pairs
        for alpha in settings.alphas
        for sample in range(settings.samples)
        for arm in settings.arms
    ]


def sweep(
    model: LoadedModel,
    pairs: Sequence[PromptPair],
    settings: Settings,
    *,
    rule: Rule = amplify,
    loop: Loop | None = None,
    rerun: Sequence[float] = (),
) -> Sweep:
    """Make the cells that the journal lacks, and return all cells of the plan.

    rule: what the notebook's cell defines; another source text is another run. loop: a sampling
    loop like `reference.sample_amplified` to use instead of the engine, slowly, one cell after the
    other; it applies its own rule, so only the arm `full` has a meaning. rerun: alphas made anew.
    """
    started = time.perf_counter()
    rerun = _checked_rerun(rerun, settings)
    if loop is not None and settings.arms != ("full",):
        raise BadInput(f"ARMS = {','.join(settings.arms)} with a loop of your own; allowed: full")
    encoded = encode_pairs(
        pairs,
        model.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_positions=model.max_positions,
    )
    by_id = {pair.pair.id: pair for pair in encoded}
    slots = 1 if loop else _choose_slots(model, settings, encoded)
    run = run_configuration(model, settings, rule=rule, loop=loop)
    journal = Journal(settings.data_dir, run)
    plan = plan_cells(pairs, settings)
    found = journal.read()
    tokens = 0
    with journal.open() as writer:
        if rerun and found:
            writer.append({"rerun": rerun})
            found = {key: record for key, record in found.items() if record["alpha"] not in rerun}
        missing = [cell for cell in plan if _key(cell, by_id) not in found]
        with _progress_bar(len(plan) - len(missing), missing, settings.max_new_tokens) as bar:
            contexts = {pair.pair.id: (pair.ids_a, pair.ids_b) for pair in encoded}
            options = {
                "sampler": make_sampler(settings.temperature, settings.top_k, settings.top_p),
                "seed": settings.seed,
                "max_new_tokens": settings.max_new_tokens,
                "stop_ids": model.stop_ids,
                "on_step": bar.update,
            }
            made = (
                generate_by_loop(loop, model.model, missing, contexts, **options)
                if loop
                else engine.generate(
                    model.model, missing, contexts, rule=rule, slots=slots, **options
                )
            )
            for generation in made:
                record = make_record(generation, by_id[generation.cell.pair_id], model)
                writer.append({"generation": record})
                found[cell_key(record)] = record
                tokens += record["n_tokens"]
                bar.total -= settings.max_new_tokens - record["n_tokens"]
    seconds = time.perf_counter() - started
    # What a pair is called may have changed since: its category is taken from the file of today.
    records = [found[_key(cell, by_id)] | _labels(by_id[cell.pair_id].pair) for cell in plan]
    metadata = {
        "run_id": journal.id,
        "run": run,
        "settings": _public_settings(settings, model),
        "slots": slots,
        "system_role": describe_system_role(model.tokenizer),
        "hardware": models.describe_hardware(model.device),
        "generations": {"planned": len(plan), "made_in_this_call": len(missing)},
        "throughput": {
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 2),
        },
        "peak_memory_bytes": models.peak_memory(model.device),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return Sweep({"id": journal.id, **run, "pairs": _describe_pairs(pairs)}, records, metadata)


def _checked_rerun(rerun: Sequence[float], settings: Settings) -> list[float]:
    if unknown := [alpha for alpha in rerun if alpha not in settings.alphas]:
        alphas = ", ".join(f"{alpha:g}" for alpha in settings.alphas)
        raise BadInput(f"RERUN = {unknown[0]:g}; allowed: alphas of the sweep, {alphas}")
    return sorted(set(rerun))


def _choose_slots(model: LoadedModel, settings: Settings, encoded: Sequence[EncodedPair]) -> int:
    if settings.slots != "auto":
        return settings.slots
    longest = max(len(ids) for pair in encoded for ids in (pair.ids_a, pair.ids_b))
    free = models.free_memory(model.device)
    return engine.choose_slots(model.model, longest + settings.max_new_tokens, free)


# --------------------------------------------------------------------------------------- records


def make_record(generation: Generation, pair: EncodedPair, model: LoadedModel) -> Record:
    """Return the plain record of a generation, as it stands in the journal and in the JSON."""
    cell, ids = generation.cell, generation.token_ids
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    spoken = ids[:-1] if generation.finish_reason == "eos" else ids
    per_token = {
        name: [_rounded(row[column]) for row in generation.per_token]
        for column, name in enumerate(PER_TOKEN)
    }
    means = {name: _rounded(sum(values) / len(values)) for name, values in per_token.items()}
    return {
        "pair_id": cell.pair_id,
        "pair_fingerprint": pair.pair.fingerprint,
        **_labels(pair.pair),
        "alpha": cell.alpha,
        "sample": cell.sample,
        "arm": cell.arm,
        "text": text,
        "token_ids": ids,
        "n_tokens": len(ids),
        "finish_reason": generation.finish_reason,
        "measures": means | {n: _rounded(v) for n, v in measure_text(text, spoken).items()},
        "per_token": per_token,
    }


def _labels(pair: PromptPair) -> Record:
    return {"category": pair.category, "is_null": pair.is_null}


def _rounded(value: float | int | None) -> float | int | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _key(cell: Cell, pairs: Mapping[str, EncodedPair]) -> tuple:
    fingerprint = pairs[cell.pair_id].pair.fingerprint
    return (cell.pair_id, fingerprint, cell.alpha, cell.sample, cell.arm)


def _progress_bar(done: int, missing: Sequence[Cell], max_new_tokens: int) -> tqdm:
    """One bar in tokens. An answer that ends early makes its total smaller."""
    print(f"{len(missing)} generations to make, {done} found in the journal", flush=True)
    return tqdm(
        total=len(missing) * max_new_tokens,
        unit="token",
        desc="sweep",
        file=sys.stdout,
        mininterval=0.5,
        disable=not missing,
    )


# ----------------------------------------------------------------------------------- description


def run_configuration(
    model: LoadedModel, settings: Settings, *, rule: Rule = amplify, loop: Loop | None = None
) -> dict[str, Any]:
    """Return everything that can change a token of a given cell: its hash names the run.

    Not in it: which pairs, alphas, samples and arms are swept (they choose cells, and a cell
    carries the fingerprint of its pair), and the number of slots (docs/METHODOLOGY.md, Exactness).
    """
    return {
        "model": model.info,
        "sampling": {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
        },
        "rule": {"name": rule.__name__, "sha256": _source_hash(rule)},
        "loop": None if loop is None else {"name": loop.__name__, "sha256": _source_hash(loop)},
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def _source_hash(function: Callable[..., Any]) -> str:
    """Hash a function's text, or its byte code where there is no text (a REPL)."""
    try:
        source = inspect.getsource(function).strip()
    except (OSError, TypeError):
        source = dis.Bytecode(function).dis()
    return hashlib.sha256(source.encode()).hexdigest()


def _public_settings(settings: Settings, model: LoadedModel) -> dict[str, Any]:
    """Return the settings without the folders of this machine."""
    values = settings.model_dump(mode="json", exclude={"data_dir", "visualizations_dir"})
    return values | {"model": model.info["name"], "prompts": settings.prompts.name}


def _describe_pairs(pairs: Sequence[PromptPair]) -> list[dict[str, Any]]:
    return [
        {"id": p.id, "category": p.category, "is_null": p.is_null, "a": list(p.a), "b": list(p.b)}
        for p in pairs
    ]
