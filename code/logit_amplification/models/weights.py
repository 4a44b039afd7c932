"""The files of a model: their hashes, and the demo model as a folder of safetensors."""

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
    """Return the SHA-256 of every weight, configuration and tokenizer file in `folder`."""
    names = sorted({path for pattern in WANTED_FILES for path in folder.glob(pattern)})
    return {path.name: _sha256(path) for path in names}


def _sha256(path: Path) -> str:
    # The hub's cache names the blob of a large file by its SHA-256: no need to read 14 GB again.
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64:
        return blob
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def demo_folder() -> tuple[Path, dict[str, Any]]:
    """Return the demo model as a folder of safetensors, made once from the package's GGUF file.

    Reading the GGUF takes some 20 seconds each time, the folder one. Its weights are the GGUF's
    4-bit weights, dequantised to float32 by transformers: ordinary linear layers.
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
    # A folder of its own per process, renamed when complete: two first starts cannot clash.
    with (
        quiet_transformers(),
        redirect_stderr(io.StringIO()),  # a progress bar that has no switch
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
            if not folder.is_dir():  # another process was faster: fine
                raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of the notebook; its errors still come."""
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
