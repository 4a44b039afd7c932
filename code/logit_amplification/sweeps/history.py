"""Read sweeps back from the journal: assemble, list, find and compare runs.

No torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..evaluation.attributes import of_record
from ..evaluation.outcomes import score, usual_nll
from ..records.files import Record
from ..records.journal import Journal, Kept, Key, journal_folder, text_key


@dataclass(frozen=True)
class Sweep:
    """A sweep: its configuration, its records in the plan's order, and how it was run.

    The records lack their per-token lists; `whole_records` reads these from the journal.
    """

    run: dict[str, Any]
    records: list[Record]
    metadata: dict[str, Any]
    journal: Journal = field(repr=False)
    places: list[Kept] = field(repr=False)

    def whole_records(self) -> Iterator[Record]:
        """Return an iterator over the records with their per-token lists."""
        return map(self.whole_record, range(len(self.records)))

    def whole_record(self, number: int) -> Record:
        """Return one record with its per-token lists."""
        return self.journal.whole(self.places[number]) | self.records[number]


def planned_keys(plan: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the key of every cell of a plan, pair by pair, so that contexts are dropped early."""
    for pair in plan["pairs"]:
        for alpha in plan["alphas"]:
            for sample in range(plan["samples"]):
                for arm in plan["arms"]:
                    yield pair["id"], pair["fingerprint"], alpha, sample, arm


def assemble(
    journal: Journal,
    configuration: Mapping[str, Any],
    plan: Mapping[str, Any],
    found: Mapping[Key, Kept],
    metadata: dict[str, Any],
) -> Sweep:
    """Return what `found` has of a plan as a sweep, scored, in the plan's order."""
    places = [found[key] for key in planned_keys(plan) if key in found]
    # The labels of a pair may have changed since; those of the plan count.
    names = ("category", "control", "family", "attribute")
    labels = {pair["id"]: {n: pair[n] for n in names if n in pair} for pair in plan["pairs"]}
    records = [kept.record | labels[kept.record["pair_id"]] for kept in places]
    usual = usual_nll(records)
    records = [
        record
        | {"outcome": score(record, usual)._asdict()}
        | {"attributes": of_record(record["text"], record.get("attribute", ""))}
        for record in records
    ]
    if labels := journal.judgements().get("labels"):
        found = ((r, labels.get(text_key(r["text"]))) for r in records)
        records = [r | ({"judge": {"label": j[0], "score": j[1]}} if j else {}) for r, j in found]
    run = {"id": journal.id, **configuration, "pairs": plan["pairs"]}
    return Sweep(run, records, metadata, journal, places)


def recall(data_dir: Path, run: str, *, every: bool = False) -> Sweep:
    """Return a run as its journal has it, finished or not.

    run: as in `find_run`. every: with all alphas and samples of its pairs that the journal holds,
    not only those requested last. Raises BadInput if there is no such run, or if none of its
    generations is finished.
    """
    journal = find_run(data_dir, run)
    configuration, plan = journal.configuration(), journal.plan()
    found = journal.read()
    if every and found:
        alphas, samples = ({key[n] for key in found} for n in (2, 3))
        plan = plan | {"alphas": sorted(alphas), "samples": max(samples) + 1}
    recalled = assemble(journal, configuration, plan, found, plan.get("metadata", {}))
    if not recalled.records:
        raise BadInput(f"run {journal.id}: none of its generations is finished")
    return recalled


def list_runs(data_dir: Path) -> list[Journal]:
    """Return the runs of a data folder, the most recently used first."""
    plans = journal_folder(data_dir).glob("*/plan.json")
    newest = sorted(plans, key=lambda path: path.stat().st_mtime, reverse=True)
    return [Journal(data_dir, path.parent.name) for path in newest]


def find_run(data_dir: Path, run: str) -> Journal:
    """Return the run whose id begins with `run`; an empty string is the most recently used run.

    Raises BadInput if there is no such run, or more than one.
    """
    runs = list_runs(data_dir)
    if not runs:
        raise BadInput(f"DATA_DIR = {str(data_dir)!r}: no runs in it; run a sweep first")
    found = [journal for journal in runs if journal.id.startswith(run)]
    if not found or (run and len(found) > 1):
        known = ", ".join(journal.id for journal in runs)
        raise BadInput(f"run {run!r}: {len(found)} runs begin so; allowed: {known}")
    return found[0]


def differences(one: Any, two: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, value in one, value in two) wherever two configurations differ."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in [*one, *(key for key in two if key not in one)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(one.get(key), two.get(key), inner)
    elif one != two:
        yield name, one, two


def in_words(value: Any) -> str:
    """Return a value of a configuration as text; long ones, such as hashes, are shortened."""
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."


def describe(journal: Journal) -> str:
    """Return one line about a run: its id, last use, progress, model and sampling."""
    configuration, plan = journal.configuration(), journal.plan()
    model, sampling = configuration["model"], configuration["sampling"]
    planned = sum(1 for _ in planned_keys(plan))
    changed = time.localtime((journal.folder / "plan.json").stat().st_mtime)
    used = time.strftime("%Y-%m-%d %H:%M", changed)
    finished = len(set(planned_keys(plan)) & journal.read().keys())
    return (
        f"{journal.id}  {used}  {finished} of {planned} generations  {model['name']} "
        f"{model['quantization']} {model['dtype']}, temperature {sampling['temperature']:g}, top-p "
        f"{sampling['top_p']:g}, seed {sampling['seed']}, rule {configuration['rule']['name']}"
    )


def compare(one: Journal, two: Journal) -> Iterator[str]:
    """Yield lines that say which settings of two runs differ, and which of their common cells."""
    for name, left, right in differences(one.configuration(), two.configuration()):
        yield f"{name}: {in_words(left)} | {in_words(right)}"
    left, right = one.read(), two.read()
    common = left.keys() & right.keys()
    shared = [(key, left[key].record, right[key].record) for key in left if key in common]
    other = [key for key, a, b in shared if a["token_ids"] != b["token_ids"]]
    yield (
        f"{len(common)} cells are in both, {len(left) - len(common)} only in the first, "
        f"{len(right) - len(common)} only in the second; {len(other)} have other tokens"
    )
    for pair_id, _, alpha, sample, arm in other:
        yield f"  {pair_id}, alpha {alpha:g}, sample {sample}, {arm}"
