"""The artifacts on disk: built from records, and replaced in one piece."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput

SCHEMA = 1
Record = dict[str, Any]


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
        yield json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
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
