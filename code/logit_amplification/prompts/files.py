"""Read prompt pairs from a CSV, JSON or JSONL file, or use the built-in pairs.

Nothing is guessed: a file with a fault is refused, with one line that names the file and the row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..locations import DEMO, shipped_file
from .controls import NULL_CATEGORY, with_controls
from .pairs import ONE_MODEL, PromptPair, make_pair

NULL = "null-control"  # the id of the pair with A = B


def read_pairs(
    path: str | Path | None = None,
    controls: Sequence[str] = (),
    sources: tuple[str, ...] = ONE_MODEL,
) -> list[PromptPair]:
    """Read the pairs of a .csv, .json or .jsonl file; add a null pair if it has none.

    The null pair (category `control`) contrasts the first pair's A with itself, a control on which
    alpha must have no effect. path: None is the built-in file; "demo" is a subset of it that is
    enough to show what the workbench does. controls: see `with_controls`. sources: the names of the
    weights that A, B and the base are read with, as in `Settings.sources`. Raises BadInput that
    names the file and the row.
    """
    subset = DEMO if path is not None and str(path) == DEMO else ""
    path = shipped_file("prompt_pairs.csv") if path is None or subset else Path(path)
    same = (sources[0], sources[0], *sources[2:])  # a null pair uses A's weights on both sides
    pairs: list[PromptPair] = []
    seen: set[str] = set()
    for place, row in _rows(path):
        if subset and row.get("subset") != subset:
            continue
        is_null = isinstance(row, dict) and row.get("id") == NULL
        pair = make_pair(row, f"{path.name}, {place}", same if is_null else sources)
        if pair.id in seen:
            raise BadInput(
                f"{path.name}, {place}: the id {pair.id!r} is used twice; ids are unique"
            )
        seen.add(pair.id)
        pairs.append(pair)
    if not pairs:
        raise BadInput(f"{path.name}: no prompt pairs in it; at least one is needed")
    if not any(pair.control == "null" for pair in pairs):
        if NULL in seen:
            raise BadInput(f"{path.name}: the id {NULL!r} is reserved for the pair with A = B")
        a, base = pairs[0].a, pairs[0].base
        pairs.append(PromptPair(NULL, NULL_CATEGORY, a, a, sources=same, base=base))
    return with_controls(pairs, controls)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a prompt file; place is text for an error message, like `line 2`."""
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise BadInput(f"PROMPTS = {str(path)!r}; allowed: demo, or a .csv, .json or .jsonl file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise BadInput(f"PROMPTS = {str(path)!r}: {error.strerror or error}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadInput(f"{path.name}, line {line}: a NUL byte; a text file has none")
    yield from readers[path.suffix.lower()](path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row:
                raise BadInput(f"{path.name}, {place}: more cells than the header has columns")
            yield place, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        raise BadInput(f"{path.name}, line {reader.reader.line_num}: {error}") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{path.name}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise BadInput(f"{path.name}: a list of pairs is expected, not {type(rows).__name__}")
    yield from ((f"item {number}", row) for number, row in enumerate(rows, start=1))


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadInput(f"{path.name}, line {number}: not JSON: {error}") from None
