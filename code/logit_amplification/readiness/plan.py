"""What is to be run, and how much of its model must still be downloaded."""

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
    """What is to be run: the settings if they can be read, otherwise the defaults."""

    model: str
    revision: str
    length: int  # positions of the longest context including its answer
    slots: int | None  # None: auto
    device: str
    quantization: str
    dtype: str  # "auto", or as the setting DTYPE says
    adapter: str = ""
    model_b: str = ""  # ID, or ID@REVISION, as in the settings
    model_base: str = ""
    is_chosen: bool = False  # whether QUANTIZATION is set, and not just its default

    def other(self, name: str) -> Plan:
        """Return the plan for MODEL_B or MODEL_BASE: another model, loaded like this one."""
        model, _, revision = name.partition("@")
        return self._replace(model=model, revision=chosen_revision(model, revision or "auto"))

    @property
    def others(self) -> list[Plan]:
        """The plans for MODEL_B and MODEL_BASE, if they are set."""
        return [self.other(name) for name in (self.model_b, self.model_base) if name]


def model_config(plan: Plan) -> dict | None:
    """Return the model's config.json, from this machine or the hub, or as built in.

    None if there is none, or if it is not of a type whose size can be estimated.
    """
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
    """Return the model's folder on this machine, or None if it has none."""
    folder = Path(plan.model).expanduser()
    return folder if folder.is_dir() else snapshot_folder(plan.model, plan.revision)


def weights_to_fetch(plan: Plan, config: dict | None) -> int:
    """Return the bytes that are still to be downloaded; 0 if the model is complete.

    1 means that something is missing, but its size is not known.
    """
    if plan.model == DEMO:
        return 0 if importlib.util.find_spec(DEMO_PACKAGE) else 100_000_000
    folder = local_folder(plan)
    if folder and not faults(folder):
        return 0
    here = sum(path.stat().st_size for path in model_folder(plan.model).glob("blobs/*"))
    return max(1, sizes.weight_bytes(config, "none", 2) - here if config else 1)


def hub_token() -> str:
    """Return the hub's token from the environment or the file that its tools write, else ""."""
    home = os.environ.get("HF_HOME") or str(cache_folder().parent)
    saved = Path(os.environ.get("HF_TOKEN_PATH") or home + "/token").expanduser()
    return os.environ.get("HF_TOKEN") or (saved.read_text().strip() if saved.is_file() else "")


def ask_hub(path: str, plan: Plan) -> tuple[dict | None, int]:
    """Ask the hub for a JSON object; return it, or None, with the HTTP status.

    The status is 0 when the hub is not asked (local folder, offline mode), does not answer within
    `HUB_SECONDS` or answers with something that is not JSON.
    """
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
