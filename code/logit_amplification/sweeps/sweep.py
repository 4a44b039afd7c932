"""Which cells are missing, run them, keep them: the sweep behind notebook and command line."""

from __future__ import annotations

import dis
import hashlib
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from ..engine import batched, slots
from ..engine.batched import Cell, Generation
from ..engine.reference import generate_by_loop
from ..errors import BadInput, Interrupted
from ..evaluation.judge import find_judge, label_answers
from ..evaluation.wording import power_sentence
from ..logits.amplification import Rule, amplify
from ..logits.measures import PER_TOKEN, measure_text
from ..logits.sampling import make_sampler
from ..models import loading, sizes
from ..models.loading import LoadedModel
from ..progress import SweepBar
from ..prompts.pairs import EncodedPair, PromptPair, describe_chat, encode_pairs, token_texts
from ..records.files import Record, refuse_unwritable
from ..records.journal import Journal, Kept, Key, cell_key, run_id
from ..settings import Settings
from .history import Sweep, assemble, differences, list_runs, planned_keys

DIGITS = 6  # significant digits kept of a measure: float32 has no more
Loop = Callable[..., Iterator[Any]]


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
    refuse_unwritable(settings)
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
    judge = find_judge(settings)  # a wrong name is told before the work, not after
    configuration = run_configuration(model, settings, rule=rule, loop=loop)
    journal = Journal(settings.data_dir, run_id(configuration))
    plan = describe_plan(pairs, settings)
    _say_what_is_kept(journal, configuration)
    tokens = 0
    with journal.open(configuration) as writer:
        found = writer.found
        batch = None if loop else _choose_slots(model, settings, encoded, found.values())
        journal.write("plan.json", plan)
        print(power_sentence(sum(not pair.control for pair in pairs)))
        if rerun and found:
            writer.append(journal.void(rerun))
            found = {key: kept for key, kept in found.items() if kept.record["alpha"] not in rerun}
        planned = list(planned_keys(plan))
        origins = {pair.id: pair.origin for pair in pairs}
        missing = [_cell(key, origins) for key in planned if key not in found]
        kept = len(planned) - len(missing)
        print(f"{len(missing)} generations to make, {kept} found in the journal", flush=True)
        with SweepBar(len(missing), settings.max_new_tokens) as bar, _told_what_is_kept(bar):
            made = _generations(model, missing, encoded, settings, rule, loop, batch, bar)
            for generation in made:
                record = make_record(generation, by_id[generation.cell.pair_id], model)
                place = writer.append({"generation": record})
                found[cell_key(record)] = Kept.of(record, writer.name, place)
                tokens += record["n_tokens"]
                bar.answered(record["n_tokens"], record["text"])
        seconds = time.perf_counter() - started
        metadata = {
            "run_id": journal.id,
            "run": configuration,
            "settings": _public_settings(settings, model),
            "slots": batch,
            "chat": describe_chat(model.tokenizer),
            "hardware": loading.describe_hardware(model.device),
            "generations": {"planned": len(planned), "made_in_this_call": len(missing)},
            "throughput": {
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds, 2),
            },
            "peak_memory_bytes": loading.peak_memory(model.device),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        journal.write("plan.json", plan | {"metadata": metadata})
        if judge:
            label_answers(judge, journal, (found[key].record["text"] for key in planned))
    return assemble(journal, configuration, plan, found, metadata)


@contextmanager
def _told_what_is_kept(bar: SweepBar) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted. {bar.done} of the {bar.answers} generations to make are in the journal; "
            "run this again for the others"
        ) from None


def describe_plan(pairs: Sequence[PromptPair], settings: Settings) -> dict[str, Any]:
    """Return which cells are asked for, as it stands beside the journal."""
    return {
        "pairs": [
            {
                "id": pair.id,
                "category": pair.category,
                "control": pair.control,
                "origin": pair.origin,
                "fingerprint": pair.fingerprint,
                "a": list(pair.a),
                "b": list(pair.b),
            }
            for pair in pairs
        ],
        "alphas": list(settings.alphas),
        "samples": settings.samples,
        "arms": list(settings.arms),
    }


def plan_cells(pairs: Sequence[PromptPair], settings: Settings) -> list[Cell]:
    """Return every cell of a sweep in the order of the plan."""
    origins = {pair.id: pair.origin for pair in pairs}
    return [_cell(key, origins) for key in planned_keys(describe_plan(pairs, settings))]


def _cell(key: Key, origins: Mapping[str, str]) -> Cell:
    pair_id, _, alpha, sample, arm = key
    return Cell(pair_id, alpha, sample, arm, origins[pair_id])


def _say_what_is_kept(journal: Journal, configuration: Mapping[str, Any]) -> None:
    """One line when this is another experiment than the last one in this folder."""
    earlier = list_runs(journal.data_dir)
    if earlier and all(one.id != journal.id for one in earlier):
        last = earlier[0]
        try:
            names = [name for name, _, _ in differences(last.configuration(), configuration)]
        except BadInput:  # the earlier run is damaged: no obstacle to this one
            names = ["settings"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(
            f"New run {journal.id}: {', '.join(names[:3])}{more} differ from run {last.id}, which "
            "is kept in the journal"
        )


def _generations(
    model: LoadedModel,
    cells: Sequence[Cell],
    encoded: Sequence[EncodedPair],
    settings: Settings,
    rule: Rule,
    loop: Loop | None,
    batch: dict[str, Any] | None,
    bar: SweepBar,
) -> Iterator[Generation]:
    """Hand the cells to the engine, or to a loop of the user's own."""
    contexts = {pair.pair.id: (pair.ids_a, pair.ids_b) for pair in encoded}
    options = {
        "sampler": make_sampler(settings.temperature, settings.top_k, settings.top_p),
        "seed": settings.seed,
        "max_new_tokens": settings.max_new_tokens,
        "stop_ids": model.stop_ids,
        "on_step": bar.update,
    }
    if loop:
        return generate_by_loop(loop, model.model, cells, contexts, **options)

    def say_halved(slots: int) -> None:
        batch["halved_to"].append(slots)
        bar.write(f"Out of memory: the cells that are not finished go on with {slots} slots")

    return batched.generate(
        model.model,
        cells,
        contexts,
        rule=rule,
        slots=batch["number"],
        forwards=settings.forwards,
        on_out_of_memory=say_halved,
        **options,
    )


def _checked_rerun(rerun: Sequence[float], settings: Settings) -> list[float]:
    if unknown := [alpha for alpha in rerun if alpha not in settings.alphas]:
        alphas = ", ".join(f"{alpha:g}" for alpha in settings.alphas)
        raise BadInput(f"RERUN = {unknown[0]:g}; allowed: alphas of the sweep, {alphas}")
    return sorted(set(rerun))


def _choose_slots(
    model: LoadedModel,
    settings: Settings,
    encoded: Sequence[EncodedPair],
    found: Iterable[Kept],
) -> dict[str, Any]:
    """Return the number of slots and why, for the metadata; print one line about it.

    `auto` is what memory allows, but no other number than the run was begun with if that fits: in
    16 bit another number rounds otherwise, and a cell made again should come out the same.
    """
    longest = max(len(ids) for pair in encoded for ids in (pair.ids_a, pair.ids_b))
    length = longest + settings.max_new_tokens
    each = slots.slot_bytes(model.model, length)
    free = loading.free_memory(model.device)
    number, chosen = settings.slots, "given"
    if number == "auto":
        fitting = sizes.choose_slots(model.device.type, sum(each.values()), free)
        number, chosen = max(1, fitting), "auto"
        begun = Counter(kept.record["slots"] for kept in found).most_common(1)
        if begun and begun[0][0] < number:
            number, chosen = begun[0][0], "as the run was begun"
    weights = model.model.get_memory_footprint()
    print(
        f"{number} slots ({chosen}): {number * sum(each.values()) / 1e9:.2g} GB for keys, values "
        f"and logits beside {weights / 1e9:.2g} GB of weights; {free / 1e9:.3g} GB are free"
    )
    return {
        "number": number,
        "chosen": chosen,
        "bytes_per_slot": each,
        "weights_bytes": weights,
        "free_bytes": free,
        "halved_to": [],
    }


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
    count = len(generation.per_token) or math.nan
    means = {name: _rounded(sum(values) / count) for name, values in per_token.items()}
    per_token = {"token": list(token_texts(model.tokenizer, ids)), **per_token}
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
        **({"error": generation.error} if generation.error else {}),
        "slots": generation.slots,
        "measures": means | {n: _rounded(v) for n, v in measure_text(text, spoken).items()},
        "per_token": per_token,
    }


def _labels(pair: PromptPair) -> Record:
    return {"category": pair.category, "control": pair.control}


def _rounded(value: float | int | None) -> float | int | None:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


# ----------------------------------------------------------------------------------- description


def run_configuration(
    model: LoadedModel, settings: Settings, *, rule: Rule = amplify, loop: Loop | None = None
) -> dict[str, Any]:
    """Return everything that can change a token of a given cell: its hash names the run.

    Not in it: which pairs, alphas, samples and arms are swept (they choose cells, and a cell
    carries the fingerprint of its pair), and the number of slots: it stands in each record
    (docs/METHODOLOGY.md, Exactness).
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
        "engine": {"version": batched.VERSION, "forwards": settings.forwards},
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
