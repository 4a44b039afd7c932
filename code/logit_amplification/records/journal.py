"""The journal: the record of a run, with every generation on disk as soon as it is finished.

It is authoritative: a run's artifacts can be written again from it alone.

`data/journal/<run>/` is named by the hash of everything that can change a token, so results of two
configurations never share a folder. It holds `configuration.json`, `plan.json` (the latest request)
and one append-only `<writer>.jsonl` per writing process. That file has a JSON line per generation,
which begins with the checksum (CRC-32) of the rest. Readers merge the files by cell.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BadInput
from .files import Record, write_atomically

Key = tuple[str, str, float, int, str]
WRITER = "0"  # the first of the processes that share a run; the others are "1", "2" ...
HEAD = b'{"crc32":"%08x",'
HEAD_LENGTH = len(HEAD % 0)


def cell_key(record: Record) -> Key:
    """Return what identifies a generation in a run; if a pair's text changes, so does its key."""
    return (
        record["pair_id"],
        record["pair_fingerprint"],
        record["alpha"],
        record["sample"],
        record["arm"],
    )


def run_id(configuration: dict[str, Any]) -> str:
    """Return the name of a configuration's run: 16 hexadecimal digits of its SHA-256."""
    text = json.dumps(configuration, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def journal_folder(data_dir: Path) -> Path:
    """Return the folder that holds the journals of all runs."""
    return Path(data_dir) / "journal"


@dataclass(frozen=True)
class Kept:
    """A record without its per-token lists (nine tenths of its size), and where its line is.

    file: the name of the file. place: the byte offset of the line.
    """

    record: Record
    file: str
    place: int

    @classmethod
    def of(cls, record: Record, file: str, place: int) -> Kept:
        """Return a record without its per-token lists."""
        return cls({name: v for name, v in record.items() if name != "per_token"}, file, place)


class Journal:
    """The generations of one run on disk."""

    def __init__(self, data_dir: Path, run: str):
        self.data_dir, self.id = Path(data_dir), run
        self.folder = journal_folder(data_dir) / run
        self.damaged: list[tuple[str, int, int]] = []  # file, line number, byte offset

    # ------------------------------------------------------------------------------------- reading

    def read(self) -> dict[Key, Kept]:
        """Return the generations by cell, merged over all writers.

        Of two lines for the same cell the later one counts. Generations before a `rerun` mark do
        not count at its alphas. An incomplete last line is dropped. A damaged line is reported
        once.
        """
        generations: list[Kept] = []
        void: list[tuple[set[float], dict[str, int]]] = []
        damaged: list[tuple[str, int, int]] = []
        told: set[tuple[str, int]] = set()
        for path in self._files():
            for number, place, entry in _entries(path):
                if entry is None:
                    damaged.append((path.name, number, place))
                elif "generation" in entry:
                    generations.append(Kept.of(entry["generation"], path.name, place))
                elif "rerun" in entry:
                    void.append((set(entry["rerun"]), entry["behind"]))
                elif "damaged" in entry:
                    told |= {(file, place) for file, place in entry["damaged"]}
        self.damaged = [one for one in damaged if (one[0], one[2]) not in told]
        for file, number, _ in self.damaged:
            print(f"journal {self.id}/{file}, line {number} is damaged: its generation is missing")
        return {
            cell_key(kept.record): kept
            for kept in generations
            if not any(
                kept.record["alpha"] in alphas and kept.place < behind.get(kept.file, 0)
                for alphas, behind in void
            )
        }

    def whole(self, kept: Kept) -> Record:
        """Read a record with its per-token lists. Raises ValueError if its line is damaged."""
        with (self.folder / kept.file).open("rb") as file:
            file.seek(kept.place)
            return _parsed(file.readline())["generation"]

    def configuration(self) -> dict[str, Any]:
        """Return the configuration: everything that can change a token of this run.

        Raises BadInput when it is missing or damaged.
        """
        configuration = self._json("configuration.json")
        if run_id(configuration) != self.id:
            raise BadInput(f"journal {self.id}: configuration.json is damaged: not of this run")
        return configuration

    def plan(self) -> dict[str, Any]:
        """Return the latest request: pairs, alphas, samples and arms, and how long it took.

        Raises BadInput when it is missing or damaged.
        """
        plan = self._json("plan.json")
        if missing := {"pairs", "alphas", "samples", "arms"} - set(plan):
            raise BadInput(f"journal {self.id}: plan.json is damaged: no {min(missing)}")
        return plan

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise BadInput(f"journal {self.id}: {name}: {error.strerror}") from None
        except ValueError as error:
            raise BadInput(f"journal {self.id}: {name} is damaged: {error}") from None
        if not isinstance(content, dict):
            raise BadInput(f"journal {self.id}: {name} is damaged: it is no JSON object")
        return content

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def judgements(self) -> dict[str, Any]:
        """Return `judge.json`: which judge, and its labels by `text_key`; {} if there is none.

        Raises BadInput when it is damaged.
        """
        return self._json("judge.json") if (self.folder / "judge.json").exists() else {}

    # ------------------------------------------------------------------------------------- writing

    @contextmanager
    def open(
        self, configuration: dict[str, Any] | None, writer: str = WRITER
    ) -> Iterator[JournalWriter]:
        """Yield a writer that appends after the last complete line; no other may have its name.

        configuration: None for every process but the first, which has prepared the journal; the
        others do not read what is there. Only one first writer is allowed per data folder. The lock
        is the operating system's and ends with the process that holds it. Raises BadInput when
        another process holds it, or when the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_writer(self.data_dir, writer))
                found = {} if configuration is None else self._prepare(configuration)
                path = self.folder / f"{writer}.jsonl"
                file = stack.enter_context(path.open("ab", buffering=0))
                file.truncate(_end_of_last_line(path))
            except OSError as error:
                told = error.strerror or error
                raise BadInput(f"DATA_DIR = {str(self.data_dir)!r}: {told}") from None
            written = JournalWriter(file, path, found)
            if self.damaged:
                written.append({"damaged": [[file, place] for file, _, place in self.damaged]})
            yield written

    def _prepare(self, configuration: dict[str, Any]) -> dict[Key, Kept]:
        try:
            self.configuration()
        except BadInput:  # not there yet, or damaged
            self.write("configuration.json", configuration)
        found = self.read()
        self._put_damaged_aside()
        return found

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace `configuration.json`, `plan.json` or `judge.json`. Raises BadInput."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
        write_atomically(self.folder / name, [text, "\n"])

    def void(self, alphas: Sequence[float]) -> dict[str, Any]:
        """Return a mark that voids all generations so far at these alphas, by any writer."""
        behind = {path.name: path.stat().st_size for path in self._files()}
        return {"rerun": list(alphas), "behind": behind}

    def _put_damaged_aside(self) -> None:
        for name in {file for file, _, _ in self.damaged}:
            number = 1 + len(list(self.folder.glob(f"{name}.damaged-*")))
            shutil.copyfile(self.folder / name, self.folder / f"{name}.damaged-{number}")


class JournalWriter:
    """Appends entries to a journal file; `found` is what the journal held when it was opened."""

    def __init__(self, file: FileIO, path: Path, found: dict[Key, Kept]):
        self.file, self.path, self.name, self.found = file, path, path.name, found

    def append(self, entry: dict[str, Any]) -> int:
        """Write one line, wait until it is on the disk, and return its byte offset.

        Raises BadInput when it cannot be written; then no part of it is left in the file.
        """
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = text.encode()[1:]
        line = HEAD % zlib.crc32(body) + body + b"\n"
        place = self.file.seek(0, os.SEEK_END)
        try:
            while line:  # a nearly full disk writes a part first, and then raises
                line = line[self.file.write(line) :]
            os.fsync(self.file.fileno())
            if not self.path.exists():
                raise OSError(errno.ENOENT, "the journal has vanished")
        except OSError as error:
            self.file.truncate(place)
            raise BadInput(
                f"cannot write {self.path.parent.name}/{self.name} in {self.path.parents[1]}: "
                f"{error.strerror}; what was finished before is kept"
            ) from None
        return place


def text_key(text: str) -> str:
    """Return the key of a text in `judge.json`: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def only_writer(data_dir: Path, writer: str = WRITER) -> Iterator[None]:
    """Lock the data folder for a writer. Raises BadInput naming the process that holds the lock."""
    folder = journal_folder(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / f"{writer}.lock"), folder / f"{writer}.owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        named = owner.read_text("utf-8").strip() if owner.is_file() else "another process"
        raise BadInput(
            f"DATA_DIR = {str(data_dir)!r}: a sweep is already running there ({named}); wait for "
            "it, end it, or use another folder for this one"
        ) from None
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _entries(path: Path) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """Yield (number, byte offset, entry) of each complete line; the entry is None if damaged."""
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):  # otherwise it is incomplete, or still being written
                try:
                    yield number, place, _parsed(line)
                except ValueError:
                    yield number, place, None
            place += len(line)


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the entry of a line. Raises ValueError if its checksum does not match."""
    body = line[HEAD_LENGTH:-1]
    if line[:HEAD_LENGTH] != HEAD % zlib.crc32(body):
        raise ValueError("checksum")
    return json.loads(b"{" + body)


def _end_of_last_line(path: Path) -> int:
    """Return a file's length without an incomplete last line. Reads backwards from the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 20))
            file.seek(start)
            block = file.read(end - start)
            if b"\n" in block:
                return start + block.rindex(b"\n") + 1
            end = start
    return 0
