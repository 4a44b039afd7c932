"""Write and read the artifact files of a run; each file is replaced atomically."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..settings import Settings

SCHEMA = 1
OUTPUT_FOLDERS = ("data_dir", "visualizations_dir")
Record = dict[str, Any]


def refuse_unwritable(settings: Settings, names: Sequence[str] = OUTPUT_FOLDERS) -> None:
    """Raise BadInput, before any work is done, for an output folder that cannot be written."""
    for name in names:
        folder = Path(getattr(settings, name))
        try:
            _try_folder(folder)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            told = getattr(error, "strerror", None) or error
            raise BadInput(f"{name.upper()} = {str(folder)!r}: {told}") from None


def _try_folder(folder: Path) -> None:
    """Create an unnamed file in the folder, then remove any folders that had to be made for it.

    Raises OSError, or ValueError for a NUL byte in the name, when the folder cannot be written.
    """
    for attempts_left in reversed(range(10)):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return
        except FileNotFoundError:  # another process tests it too, and has just removed it
            if not attempts_left:
                raise
        finally:
            for path in made:
                with suppress(OSError):  # never made, or filled by another process since
                    path.rmdir()


def write_atomically(path: Path, parts: Iterable[str]) -> Path:
    """Write a text file so that readers see the old file or the new one, never a part of it.

    parts: pieces of text, written in order. Returns the path. Raises BadInput when the file cannot
    be written.
    """
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
    """Write `amplification_results.json`. Equal input gives equal bytes. Raises BadInput."""
    return write_atomically(Path(data_dir) / "amplification_results.json", _results(run, records))


def _results(run: dict[str, Any], records: Iterable[Record]) -> Iterator[str]:
    head = json.dumps(run, ensure_ascii=False, allow_nan=False, indent=1)
    yield f'{{"schema": {SCHEMA},\n"run": {head},\n"generations": ['
    for number, record in enumerate(records):
        yield ",\n" if number else "\n"
        yield json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    yield "\n]}\n"


def read_results(data_dir: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return the run and the records of `amplification_results.json`.

    Raises BadInput when the file is missing, has another schema, or is not the results of a sweep.
    """
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
    """Write `experiment_metadata.json`: everything about a run except its generations."""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, indent=2)
    return write_atomically(Path(data_dir) / "experiment_metadata.json", [text, "\n"])


def write_report(data_dir: Path, name: str, sentences: Sequence[str]) -> Path:
    """Write a text artifact called `name`, one line per entry."""
    return write_atomically(Path(data_dir) / name, (f"{line}\n" for line in sentences))
