"""Run a sweep: find the cells that are missing, make them, and keep them in the journal.

The notebook and the command line both use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

from ..engine.batch.batched import BatchedEngine
from ..engine.interface import Cell, Contrast, Engine, Request
from ..engine.reference import LoopEngine
from ..engine.vllm import engine as vllm
from ..errors import BadInput, Interrupted, Terminated, sigterm_postponed
from ..evaluation.judge import find_judge, label_answers
from ..logits.amplification import Rule, amplify
from ..machine import devices
from ..models.loading import LoadedModel
from ..models.spec import OTHERS
from ..progress import SweepBar
from ..prompts.chat import EncodedPair, describe_chat, encode_pairs
from ..prompts.pairs import PromptPair
from ..records.claims import delete_claims
from ..records.files import refuse_unwritable
from ..records.journal import Journal, Kept, Key, cell_key, run_id
from ..settings import Settings
from ..statistics.wording import power_sentence
from .capacity import choose_slots, choose_step, longest_context, room_for_slots
from .history import Sweep, assemble, differences, list_runs, planned_keys
from .identity import run_configuration
from .processes import sharing
from .processes.ranks import Ranks
from .recording import make_record

Loop = Callable[..., Iterator[Any]]


def sweep(
    model: LoadedModel,
    pairs: Sequence[PromptPair],
    settings: Settings,
    *,
    rule: Rule = amplify,
    loop: Loop | None = None,
    rerun: Sequence[float] = (),
) -> Sweep | None:
    """Make the cells that the journal lacks, and return all cells of the plan.

    rule: what the notebook's cell defines; other code, or another value that it reads, makes
    another run. loop: a sampling loop like `reference.sample_amplified` to use instead of the
    engine, slowly, one cell after the other. It applies its own rule, so only the arm `full` has a
    meaning. rerun: alphas to make again. If a launcher has started several processes they share the
    cells; the first one returns the sweep, the others None.

    Raises BadInput, before any work, when something does not fit; Interrupted or Terminated when it
    is stopped, after which the journal holds what was finished.
    """
    started = time.perf_counter()
    refuse_unwritable(settings)
    rerun = _checked_rerun(rerun, settings)
    if loop is not None and settings.arms != ("full",):
        raise BadInput(f"ARMS = {','.join(settings.arms)} with a loop of your own; allowed: full")
    if settings.engine == "vllm":
        _refuse_what_vllm_does_not(model, settings, loop)
    plan = describe_plan(pairs, settings)
    planned = list(planned_keys(plan))
    ranks = Ranks.here()

    def configured(step: str) -> dict[str, Any]:
        return run_configuration(model, settings, step=step, rule=rule, loop=loop)

    def is_begun(step: str) -> bool:
        return Journal(settings.data_dir, run_id(configured(step))).folder.exists()

    def choose() -> str:
        return "eager" if loop else choose_step(model, settings, len(planned), is_begun)

    step = ranks.decided("step", choose)
    configuration = configured(step)
    refuse_other_weights(pairs, model)
    encoded = encode_pairs(
        pairs,
        model.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_positions=model.max_positions,
    )
    by_id = {pair.pair.id: pair for pair in encoded}
    contexts = {pair.pair.id: Contrast.of(pair) for pair in encoded}
    # Here, so that a wrong name is reported before the work and not after it.
    judge = find_judge(settings) if ranks.is_first else None
    journal = Journal(settings.data_dir, run_id(configuration))
    room = None if loop else room_for_slots(model, settings, list(contexts.values()), step)
    rooms = ranks.gathered("room for slots", room)
    prepared = configuration if ranks.is_first else None
    with journal.open(prepared, writer=str(ranks.number)) as writer:
        found = writer.found

        def prepare() -> dict[str, Any]:
            """Prepare the journal in the first process; return what all processes have to know."""
            nonlocal found
            _say_what_is_kept(journal, configuration)
            batch = None if loop else choose_slots(rooms, found.values(), step)
            journal.write("plan.json", plan)
            print(power_sentence(len({pair.unit for pair in pairs if not pair.control})))
            if rerun and found:
                writer.append(journal.void(rerun))
                found = {key: one for key, one in found.items() if one.record["alpha"] not in rerun}
            missing = [key not in found for key in planned]
            kept = len(planned) - sum(missing)
            print(f"{sum(missing)} generations to make, {kept} found in the journal", flush=True)
            return sharing.prepared(journal, configuration, plan, missing, batch, ranks)

        work = ranks.decided("what is to be made", prepare)
        sharing.refuse_other_work(work, configuration, plan, ranks)
        origins = {pair.id: pair.origin for pair in pairs}
        missing = list(compress(planned, sharing.unpacked(work["missing"], len(planned))))
        share = sharing.share_of(work, [_cell(key, origins) for key in missing], journal, ranks)
        with (
            SweepBar(len(missing), settings.max_new_tokens) as bar,
            _told_what_is_kept(bar),
            _engine(model, settings, loop, step, work["slots"], encoded, bar) as engine,
            sigterm_postponed() as look,
            share.alive(),
        ):

            def stepped(tokens: int = 0) -> None:
                bar.update(tokens)
                if ranks.is_first:
                    bar.answered_elsewhere(*share.made_by_others())
                look()

            request = Request.of(settings, model.stop_ids, rule=rule, on_step=stepped)
            for generation in engine.generate(share.items(stepped), contexts, request):
                record = make_record(generation, by_id[generation.cell.pair_id], model)
                place = writer.append({"generation": record})
                found[cell_key(record)] = Kept.of(record, writer.name, place)
                share.finished(generation.cell, record["n_tokens"])
                bar.answered(record["n_tokens"], record["text"])
            if not ranks.is_first:
                return None
            if ranks.size > 1:
                found = journal.read()
                delete_claims(journal.folder)
            tokens = sum(found[key].record["n_tokens"] for key in missing)
            bar.ended(tokens)
        seconds = time.perf_counter() - started
        metadata = {
            "run_id": journal.id,
            "run": configuration,
            "settings": _public_settings(settings, model),
            "slots": work["slots"],
            "fewest_threads": getattr(getattr(engine, "threads", None), "fewest", None),
            "chat": describe_chat(model.tokenizer),
            "hardware": devices.describe_hardware(model.device),
            "generations": {"planned": len(planned), "made_in_this_call": len(missing)},
            **sharing.described(ranks, [found[key] for key in missing]),
            "throughput": {
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds, 2),
            },
            "peak_memory_bytes": None if model.is_elsewhere else devices.peak_memory(model.device),
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
    except KeyboardInterrupt as error:
        kind = Terminated if isinstance(error, Terminated) else Interrupted
        raise kind(
            f"Interrupted. {bar.done} of the {bar.answers} generations to make are in the journal; "
            "run this again to make the rest"
        ) from None


def refuse_other_weights(pairs: Sequence[PromptPair], model: LoadedModel) -> None:
    """Raise BadInput unless the pairs are read with exactly the weights that are loaded.

    Otherwise a difference of weights could silently have no effect.
    """
    read, loaded = {name for pair in pairs for name in pair.sources}, set(model.sources)
    if read != loaded:
        told = " and ".join(sorted(read)), " and ".join(sorted(loaded))
        raise BadInput(
            f"the pairs are read with the weights {told[0]}, and loaded are {told[1]}; allowed: "
            "read_pairs(..., sources=settings.sources) with the settings that the model has"
        )


def describe_plan(pairs: Sequence[PromptPair], settings: Settings) -> dict[str, Any]:
    """Return which cells are asked for, in the form of `plan.json` beside the journal."""
    return {
        "pairs": [
            {
                "id": pair.id,
                "category": pair.category,
                "family": pair.unit,
                "attribute": str(pair.attribute or ""),
                "control": pair.control,
                "origin": pair.origin,
                "fingerprint": pair.fingerprint,
                "a": list(pair.a),
                "b": list(pair.b),
                **({"sources": list(pair.sources)} if set(pair.sources) != {"model"} else {}),
                **({"base": list(pair.base)} if pair.base else {}),
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
    """Print one line if this is another experiment than the last one in this folder."""
    earlier = list_runs(journal.data_dir)
    if earlier and all(one.id != journal.id for one in earlier):
        last = earlier[0]
        try:
            names = [name for name, _, _ in differences(last.configuration(), configuration)]
        except BadInput:  # a damaged earlier run must not stop this one
            names = ["settings"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(
            f"New run {journal.id}: {', '.join(names[:3])}{more} differ from run {last.id}, which "
            "is kept in the journal"
        )


def _refuse_what_vllm_does_not(model: LoadedModel, settings: Settings, loop: Loop | None) -> None:
    """Raise BadInput if a sweep asks vLLM for what only an engine in this process can do."""
    if loop:
        raise BadInput("ENGINE = vllm with a loop of your own; allowed: torch")
    if not model.is_elsewhere:
        raise BadInput("ENGINE = vllm: this model is loaded here; allowed: load_model(settings)")
    if (runs_on := vllm.device_of(settings.vllm_python)) != model.device.type:
        raise BadInput(
            f"DEVICE = {settings.device!r}: vLLM's build in its environment is for {runs_on}, and "
            f"the model would be on {model.device.type}; allowed: {runs_on}"
        )


@contextmanager
def _engine(
    model: LoadedModel,
    settings: Settings,
    loop: Loop | None,
    step: str,
    batch: dict[str, Any] | None,
    encoded: Sequence[EncodedPair],
    bar: SweepBar,
) -> Iterator[Engine]:
    """Yield the engine that was asked for, or one that wraps the user's own loop."""
    if loop:
        yield LoopEngine(model.model, loop)
        return
    if settings.engine == "vllm":
        paraphrases = {pair.pair.id: pair.ids_p for pair in encoded if pair.ids_p}
        if settings.adapter and paraphrases:
            paraphrases = {}
            bar.write("Answers are not scored under paraphrases: with an adapter vLLM cannot")
        longest = longest_context(map(Contrast.of, encoded))
        engine = vllm.VllmEngine(
            model.folder,
            python=settings.vllm_python,
            dtype=model.info["dtype"],
            slots=batch["number"],
            # An answer is also scored after the paraphrase of its prompt.
            longest=max(longest, *(len(pair.ids_p or ()) for pair in encoded))
            + settings.max_new_tokens
            + 1,
            adapter=settings.adapter,
            paraphrases=paraphrases,
            options=settings.vllm_arguments,
            on_start=lambda: bar.write("vLLM is starting in a process of its own"),
        )
        with closing(engine):
            yield engine
        return

    def say_halved(slots: int) -> None:
        batch["halved_to"].append(slots)
        bar.write(f"Out of memory: the cells that are not finished go on with {slots} slots")

    yield BatchedEngine(
        model.sources,
        batch["number"],
        forwards=settings.forwards,
        step=step,
        on_out_of_memory=say_halved,
    )


def _checked_rerun(rerun: Sequence[float], settings: Settings) -> list[float]:
    if unknown := [alpha for alpha in rerun if alpha not in settings.alphas]:
        alphas = ", ".join(f"{alpha:g}" for alpha in settings.alphas)
        raise BadInput(f"RERUN = {unknown[0]:g}; allowed: alphas of the sweep, {alphas}")
    return sorted(set(rerun))


# ----------------------------------------------------------------------------------- description


FOLDERS = {"data_dir", "visualizations_dir", "vllm_python"}  # of this machine


def _public_settings(settings: Settings, model: LoadedModel) -> dict[str, Any]:
    """Return the settings without this machine's folders."""
    values = settings.model_dump(mode="json", exclude=FOLDERS)
    names = {"model": model.info["name"], "prompts": settings.prompts.name}
    names |= {name: Path(getattr(settings, name)).name for name in OTHERS}
    return values | names
