"""Paths of the project's folders, and the names of the two models with built-in support.

In a checkout the folders are next to the code; in an installation they are in the working
directory. Standard library only, and compatible with Python 3.8, because the readiness check
imports it before anything is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
DEMO = "demo"  # SmolLM2-135M-Instruct, from a PyPI package
NAME = "logit-amplification"
PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parents[1] / "pyproject.toml").is_file() and (
    PACKAGE.parents[1] / "data"
).is_dir()
# Relative when installed, so it follows the working directory instead of fixing it at import.
ROOT = PACKAGE.parents[1] if IN_CHECKOUT else Path()


def data_folder() -> Path:
    """Return the default folder for the journal and the JSON, CSV and TXT files."""
    return ROOT / "data"


def visualizations_folder() -> Path:
    """Return the default folder for figures."""
    return ROOT / "visualizations"


def shipped_file(name: str) -> Path:
    """Return the path of a file in `data/` that ships with the code, such as `prompt_pairs.csv`."""
    return (ROOT if IN_CHECKOUT else PACKAGE) / "data" / name


def cache_folder(
    in_checkout: bool = IN_CHECKOUT,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> Path:
    """Return the project's cache: `.cache` of the checkout, or a folder in the user's cache.

    It holds the unpacked demo model, among others.
    """
    if in_checkout:
        return ROOT / ".cache"
    usual = {"darwin": "~/Library/Caches", "win32": environ.get("LOCALAPPDATA")}.get(platform)
    return Path(environ.get("XDG_CACHE_HOME") or usual or "~/.cache").expanduser() / NAME
