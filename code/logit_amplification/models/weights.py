"""Hash a model's files, and convert the demo model to a folder of safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput
from ..locations import cache_folder
from .local import DEMO_INSTALL, DEMO_PACKAGE, WANTED_FILES


def hash_weights(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every weight, configuration and tokenizer file in `folder`, by name."""
    names = sorted({path for pattern in WANTED_FILES for path in folder.glob(pattern)})
    return {path.name: _sha256(path) for path in names}


def _sha256(path: Path) -> str:
    # The hub's cache names the blob of a large file by its SHA-256, which saves reading 14 GB.
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64:
        return blob
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def demo_folder() -> tuple[Path, dict[str, Any]]:
    """Return the demo model's folder of safetensors, and its revision and hashes.

    The folder is made once from the package's GGUF file, because reading the GGUF takes about 20
    seconds each time, and reading the folder one second. Its weights are the GGUF's 4-bit weights,
    dequantised to float32 by transformers, in ordinary linear layers. Raises BadInput when the
    package is not installed.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise BadInput(f"MODEL = 'demo': its package is not installed; install it: {DEMO_INSTALL}")
    gguf = files[0]
    digest = _sha256(gguf)
    folder = cache_folder() / f"{gguf.stem}-{digest[:12]}"
    if not folder.is_dir():
        _convert_demo(gguf, folder)
    return folder, {"revision": None, "files_sha256": {gguf.name: digest}}


def _convert_demo(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("Unpacking the demo model (once, about 20 seconds) ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Each process writes a folder of its own and renames it when complete, so two cannot clash.
    with (
        quiet_transformers(),
        redirect_stderr(io.StringIO()),  # hides a progress bar that cannot be turned off
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
    ):
        made = Path(scratch) / "model"
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(made)
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, which is fine
                raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and advice within this context, but not its errors."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
