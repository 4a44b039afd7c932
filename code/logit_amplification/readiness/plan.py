"""What is to be run, and how much of its model is on this machine or the hub."""

from __future__ import annotations

import importlib.util
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

from ..locations import DEMO, MISTRAL
from ..machine import sizes
from ..models.local import (
    DEMO_PACKAGE,
    cache_folder,
    chosen_revision,
    faults,
    model_folder,
    read_json,
    snapshot_folder,
)

HUB_SECONDS = 2


class Plan(NamedTuple):
    """What is to be run: settings where they can be read, else the defaults."""

    model: str
    revision: str
    length: int  # positions of the longest context with its answer
    slots: int | None  # None: auto
    device: str
    quantization: str
    dtype: str  # "auto", or as the setting DTYPE says
    adapter: str = ""
    model_b: str = ""  # ID, or ID@REVISION, as in the settings
    model_base: str = ""

    def other(self, name: str) -> Plan:
        """The plan of MODEL_B or MODEL_BASE: another model, loaded as this one is."""
        model, _, revision = name.partition("@")
        return self._replace(model=model, revision=chosen_revision(model, revision or "auto"))

    @property
    def others(self) -> list[Plan]:
        """The plans of the models beside."""
        return [self.other(name) for name in (self.model_b, self.model_base) if name]


def model_config(plan: Plan) -> dict | None:
    """The model's architecture: its own config.json, here or on the hub, or what is known of it."""
    if plan.model == DEMO:
        return sizes.SMOLLM2_135M
    folder = local_folder(plan)
    config = read_json(folder / "config.json") if folder else None
    if config is None and plan.model == MISTRAL:
        return sizes.MISTRAL_7B
    if config is None and folder is None:
        config, _ = ask_hub(f"{plan.model}/resolve/{plan.revision}/config.json", plan)
    try:
        sizes.parameters(config or {})
    except (ValueError, KeyError, TypeError):
        return None
    return config


def local_folder(plan: Plan) -> Path | None:
    """Where the model lies on this machine, if it does."""
    folder = Path(plan.model).expanduser()
    return folder if folder.is_dir() else snapshot_folder(plan.model, plan.revision)


def weights_to_fetch(plan: Plan, config: dict | None) -> int:
    """Return the bytes that are still to be fetched before the model is whole; 0 if it is here."""
    if plan.model == DEMO:
        return 0 if importlib.util.find_spec(DEMO_PACKAGE) else 100_000_000
    folder = local_folder(plan)
    if folder and not faults(folder):
        return 0
    here = sum(path.stat().st_size for path in model_folder(plan.model).glob("blobs/*"))
    return max(1, sizes.weight_bytes(config, "none", 2) - here if config else 1)


def hub_token() -> str:
    """The hub's token from the environment or where its tools save it, else nothing."""
    home = os.environ.get("HF_HOME") or str(cache_folder().parent)
    saved = Path(os.environ.get("HF_TOKEN_PATH") or home + "/token").expanduser()
    return os.environ.get("HF_TOKEN") or (saved.read_text().strip() if saved.is_file() else "")


def ask_hub(path: str, plan: Plan) -> tuple[dict | None, int]:
    """Ask the hub for a JSON object; None, and the HTTP status or 0, if it gives none in time."""
    if plan.model.startswith((".", "~", "/")) or os.environ.get("HF_HUB_OFFLINE", "0") != "0":
        return None, 0
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    request = urllib.request.Request(f"{endpoint}/{urllib.parse.quote(path)}")
    if hub_token():
        request.add_unredirected_header("Authorization", f"Bearer {hub_token()}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
            told = json.loads(answer.read().decode("utf-8"))
            return (told if isinstance(told, dict) else None), answer.status
    except urllib.error.HTTPError as error:
        return None, error.code
    except (OSError, ValueError):
        return None, 0
