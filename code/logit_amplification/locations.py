"""Where the project's folders are, and the two models that it knows by name.

In a checkout they lie beside the code; installed, where the user works. Standard library only, and
Python 3.8 reads it: the readiness check uses it before anything is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
DEMO = "demo"  # SmolLM2-135M-Instruct, out of a PyPI package
NAME = "logit-amplification"
PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parents[1] / "pyproject.toml").is_file() and (
    PACKAGE.parents[1] / "data"
).is_dir()
# Relative when installed: the working folder of the moment, not that of the import.
ROOT = PACKAGE.parents[1] if IN_CHECKOUT else Path()


def data_folder() -> Path:
    """Return where journal, JSON, CSV and TXT go unless a setting says otherwise."""
    return ROOT / "data"


def visualizations_folder() -> Path:
    """Return where figures go unless a setting says otherwise."""
    return ROOT / "visualizations"


def shipped_file(name: str) -> Path:
    """Return a file of `data/` that comes with the code, as `prompt_pairs.csv`."""
    return (ROOT if IN_CHECKOUT else PACKAGE) / "data" / name


def cache_folder(
    in_checkout: bool = IN_CHECKOUT,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> Path:
    """Return where the unpacked demo model is kept: the checkout's `.cache`, or the user's."""
    if in_checkout:
        return ROOT / ".cache"
    usual = {"darwin": "~/Library/Caches", "win32": environ.get("LOCALAPPDATA")}.get(platform)
    return Path(environ.get("XDG_CACHE_HOME") or usual or "~/.cache").expanduser() / NAME
