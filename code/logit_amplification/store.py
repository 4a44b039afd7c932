"""The journal and the artifacts on disk.

The journal is the truth: one JSON line per generation, appended and flushed the moment it is
finished. A run's journal is named by the hash of everything that can change a token, so results of
two configurations never share a file. The artifacts are built from it and replaced in one piece.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import BadInput

SCHEMA = 1
Record = dict[str, Any]
Key = tuple[str, str, float, int, str]


def cell_key(record: Record) -> Key:
    """What tells one generation of a run from another; a pair with another text is another pair."""
    return (
        record["pair_id"],
        record["pair_fingerprint"],
        record["alpha"],
        record["sample"],
        record["arm"],
    )


def run_id(configuration: dict[str, Any]) -> str:
    """Return the 16 hexadecimal digits that name this configuration."""
    text = json.dumps(configuration, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The generations of one run on disk: `data/journal/<run id>.jsonl`.

    In memory a record is held without its lists per token, nine tenths of it; `whole` reads them
    back. The file is only ever appended to, so a line stays where it is.
    """

    def __init__(self, data_dir: Path, configuration: dict[str, Any]):
        self.configuration = configuration
        self.id = run_id(configuration)
        self.path = Path(data_dir) / "journal" / f"{self.id}.jsonl"

    def read(self) -> dict[Key, Kept]:
        """Return the generations by cell; a later line replaces an earlier one of the same cell."""
        kept: dict[Key, Kept] = {}
        for place, entry in self._entries():
            if "generation" in entry:
                kept[cell_key(entry["generation"])] = Kept.of(entry["generation"], place)
            for alpha in entry.get("rerun", ()):
                kept = {key: one for key, one in kept.items() if one.record["alpha"] != alpha}
        return kept

    def whole(self, kept: Kept) -> Record:
        """Return a record with its lists per token."""
        with self.path.open("rb") as file:
            file.seek(kept.place)
            return json.loads(file.readline())["generation"]

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            return
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):  # else it is torn
                    try:
                        yield place, json.loads(line.decode(errors="replace"))
                    except json.JSONDecodeError:
                        print(
                            f"{self.path.name}, line {number} is damaged: "
                            "that generation is made again"
                        )
                place += len(line)

    def open(self) -> JournalWriter:
        """Return a writer that appends behind the last whole line."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            file = self.path.open("ab")
            if not is_new:
                content = self.path.read_bytes()
                file.truncate(content.rfind(b"\n") + 1)
        except OSError as error:
            raise BadInput(f"DATA_DIR = {str(self.path.parents[1])!r}: {error.strerror}") from None
        writer = JournalWriter(file)
        if is_new:
            writer.append({"run": self.id, "configuration": self.configuration})
        return writer


@dataclass(frozen=True)
class Kept:
    """A record without its lists per token, and where its line begins in the journal."""

    record: Record
    place: int

    @classmethod
    def of(cls, record: Record, place: int) -> Kept:
        """Let the lists go."""
        return cls({name: v for name, v in record.items() if name != "per_token"}, place)


class JournalWriter:
    """Appends entries; each is on the disk when `append` returns."""

    def __init__(self, file):
        self.file = file

    def append(self, entry: dict[str, Any]) -> int:
        """Write one line, wait until the disk has it, and return where it begins."""
        place = self.file.seek(0, os.SEEK_END)
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self.file.write(line.encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        return place

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


# ------------------------------------------------------------------------------------- artifacts


def write_atomically(path: Path, parts: Iterable[str]) -> Path:
    """Write a text file so that a reader sees the old one or the new one, never half of it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise BadInput(f"cannot write {path.name} in {path.parent}: {error.strerror}") from None
    return path


def write_results(data_dir: Path, run: dict[str, Any], records: Iterable[Record]) -> Path:
    """Write `amplification_results.json`. The same cells give the same bytes."""
    return write_atomically(Path(data_dir) / "amplification_results.json", _results(run, records))


def _results(run: dict[str, Any], records: Iterable[Record]) -> Iterator[str]:
    head = json.dumps(run, ensure_ascii=False, allow_nan=False, indent=1)
    yield f'{{"schema": {SCHEMA},\n"run": {head},\n"generations": ['
    for number, record in enumerate(records):
        yield ",\n" if number else "\n"
        yield json.dumps(record, ensure_ascii=False, allow_nan=False)
    yield "\n]}\n"


def read_results(data_dir: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return the run and the records of `amplification_results.json`."""
    path = Path(data_dir) / "amplification_results.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise BadInput(f"{path.name}: schema {content['schema']}, this version reads {SCHEMA}")
        return content["run"], content["generations"]
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; run a sweep first") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path.name}: not the results of a sweep ({error!r:.80})") from None


def write_metadata(data_dir: Path, metadata: dict[str, Any]) -> Path:
    """Write `experiment_metadata.json`: everything about a run but its generations."""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, indent=2)
    return write_atomically(Path(data_dir) / "experiment_metadata.json", [text, "\n"])


def write_report(data_dir: Path, name: str, sentences: Sequence[str]) -> Path:
    """Write a text artifact, one line per entry."""
    return write_atomically(Path(data_dir) / name, (f"{line}\n" for line in sentences))
