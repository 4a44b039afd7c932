"""Will the workbench run here, and at which precision? Asked before anything is fetched.

Standard library only, and Python 3.8 reads it: it must be able to say what is missing. Settings are
read through `settings` where its libraries are installed; before that the defaults count.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from .. import locations
from ..locations import DEMO, MISTRAL, ROOT
from . import hardware, sizes
from .local import (
    DEMO_INSTALL,
    DEMO_PACKAGE,
    FETCH,
    cache_folder,
    chosen_revision,
    faults,
    model_folder,
    read_json,
    snapshot_folder,
)

OLDEST_PYTHON = (3, 10)
BRINGS_THEM = "the installation (make demo, or pip install -r requirements.txt) brings them"
QUANTIZATIONS = ("none", "8bit", "4bit")  # the better first: docs/METHODOLOGY.md, Precision
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
# Bytes of Python with torch and transformers loaded, and of a GPU's context and workspaces beside.
PROCESS_BYTES = 900_000_000
# Tokens of the longest built-in prompt with Mistral's tokenizer or the demo model's (a test counts
# them), and of an answer by default: what the default sweep's memory is estimated with.
BUILT_IN_PROMPT, NEW_TOKENS = 352, 100
CHARACTERS_PER_TOKEN = 3  # of other prompts, whose tokenizer is not at hand: rather too few
HUB_SECONDS = 2


class Check(NamedTuple):
    """One line of the answer: `OK`, `WARN` or `FAIL`, and what to do about it."""

    level: str
    name: str
    text: str


class Option(NamedTuple):
    """One precision on one device: the bytes of the default sweep there, and whether it fits."""

    device: str
    quantization: str
    dtype: str
    weights: int
    keys_and_values: int
    logits: int
    beside: int  # Python, its libraries, the GPU's context
    free: int
    slots: int  # 0: not one fits

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return self.weights + self.keys_and_values + self.logits + self.beside

    @property
    def fits(self) -> bool:
        """Whether at least one generation can be made."""
        return self.slots > 0


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


class Readiness(NamedTuple):
    """Everything found."""

    plan: Plan
    checks: list[Check]
    options: list[Option]
    chosen: Option | None  # what the settings ask for
    recommended: Option | None

    @property
    def ready(self) -> bool:
        """Whether the recommended setting will run."""
        return bool(self.recommended) and all(check.level != "FAIL" for check in self.checks)


def check_machine(model: str | None = None, settings: Any = None) -> Readiness:
    """Check this machine for `settings`, or for those found in .env and the environment.

    model: another one than they name.
    """
    plan, environment = plan_of(settings) if settings else _read_settings(model)
    held, gpus = hardware.memory(), hardware.gpus()
    config = model_config(plan)
    options = [] if config is None else list(precisions(plan, config, held, gpus))
    asked = [option for option in options if option.quantization == plan.quantization]
    chosen = asked[0] if asked else None
    recommended = next((option for option in options if option.fits), None)
    fetched = weights_to_fetch(plan, config)
    checks = [
        _python(),
        _packages(),
        _memory(held),
        _gpu(gpus),
        _disk(plan, fetched),
        *_token(plan, fetched),
        _model(plan, fetched),
        *(_model(other, weights_to_fetch(other, model_config(other))) for other in plan.others),
        environment,
        _fit(plan, config, chosen, recommended, options),
    ]
    return Readiness(plan, checks, options, chosen, recommended)


# ---------------------------------------------------------------------------------------- settings


def _read_settings(model: str | None) -> tuple[Plan, Check]:
    name = model or MISTRAL
    length = BUILT_IN_PROMPT + NEW_TOKENS
    default = Plan(name, chosen_revision(name, "auto"), length, None, "auto", "8bit", "auto")
    needed = ("dotenv", "pydantic_settings")
    if sys.version_info < OLDEST_PYTHON or not all(map(importlib.util.find_spec, needed)):
        return default, Check("WARN", ".env", "not read before the packages are installed")
    from ..errors import BadInput
    from ..settings import load_settings

    try:
        return plan_of(load_settings(model=model))
    except BadInput as error:
        return default, Check("FAIL", ".env", str(error))


def plan_of(settings: Any) -> tuple[Plan, Check]:
    """Read what is to be run out of valid settings. Raises BadInput for a bad prompt file."""
    from ..prompts.files import read_pairs

    longest = BUILT_IN_PROMPT
    built_in = type(settings).model_fields["prompts"].default, Path(DEMO)
    if settings.prompts not in built_in:
        chats = [chat for pair in read_pairs(settings.prompts) for chat in (pair.a, pair.b)]
        characters = max(sum(len(message["content"]) for message in chat) for chat in chats)
        longest = characters // CHARACTERS_PER_TOKEN
    plan = Plan(
        settings.model,
        chosen_revision(settings.model, settings.revision),
        longest + settings.max_new_tokens,
        None if settings.slots == "auto" else settings.slots,
        settings.device,
        settings.quantization,
        settings.dtype,
        settings.adapter,
        settings.model_b,
        settings.model_base,
    )
    found = [path for path in (ROOT / ".env", Path(".env")) if path.is_file()]
    return plan, Check("OK", ".env", "valid" if found else "none; the defaults count")


def model_config(plan: Plan) -> dict | None:
    """The model's architecture: its own config.json, here or on the hub, or what is known of it."""
    if plan.model == DEMO:
        return sizes.SMOLLM2_135M
    folder = local_folder(plan)
    config = read_json(folder / "config.json") if folder else None
    if config is None and plan.model == MISTRAL:
        return sizes.MISTRAL_7B
    if config is None and folder is None:
        config, _ = _ask_hub(f"{plan.model}/resolve/{plan.revision}/config.json", plan)
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


# ------------------------------------------------------------------------------------------ checks


def _python() -> Check:
    version, oldest = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        return Check("FAIL", "Python", f"{version}; needed is {oldest} or newer")
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return Check("FAIL", "Python", f"{version} for Intel: torch has no builds for it any more")
    return Check("OK", "Python", version)


def _packages() -> Check:
    """Compare what is installed with requirements.txt: it judges no machine, so it never fails."""
    wanted = dict(_requirements())
    missing = [name for name in wanted if _installed(name) is None]
    wrong = [
        f"{name} is {_installed(name)}, needed is {needed}"
        for name, needed in wanted.items()
        if name not in missing and not satisfies(_installed(name), needed)
    ]
    told = [f"not installed yet ({len(missing)} of {len(wanted)})"] if missing else []
    if told or wrong:
        return Check("WARN", "packages", "; ".join([*told, *wrong, BRINGS_THEM]))
    return Check("OK", "packages", f"{len(wanted)} of {len(wanted)}")


def _requirements() -> Iterator[tuple[str, str]]:
    """Yield the name and the versions of each package in requirements.txt."""
    if locations.IN_CHECKOUT:
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    else:  # the list came with the installation
        lines = metadata.requires(locations.NAME) or []
    for line in lines:
        parts = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*([^#]*)", line.strip())
        if parts:
            yield parts[1], parts[2].strip()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version meets a list like `>=1.2,<2`. Pre-releases and local parts do not count."""

    def numbers(text: str) -> list[int]:
        found = [int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", text.strip())[0])]
        return (found + [0] * 4)[:4]

    have = numbers(version)
    for part in filter(None, wanted.split(",")):
        sign, bound = re.match(r"\s*(>=|<=|==|<|>)(.*)", part).groups()
        limit = numbers(bound)
        kept = {
            ">=": have >= limit,
            "<=": have <= limit,
            "==": have == limit,
            "<": have < limit,
            ">": have > limit,
        }
        if not kept[sign]:
            return False
    return True


def _memory(held: hardware.Memory) -> Check:
    text = f"{gigabytes(held.total)}, {gigabytes(held.free)} free"
    if held.free < 2 * PROCESS_BYTES:
        return Check("WARN", "memory", text + "; close other programs")
    return Check("OK", "memory", text)


def _gpu(gpus: list[hardware.Gpu]) -> Check:
    if not gpus:
        return Check("WARN", "GPU", "none found; the model will run on the CPU, much slower")
    gpu = gpus[0]
    free, total = gigabytes(gpu.memory.free), gigabytes(gpu.memory.total)
    text = f"{gpu.name}, {free} free of {total}, {gpu.dtype}"
    build = _installed("torch") or ""
    if gpu.kind == "cuda" and build.endswith("+cpu"):
        return Check("WARN", "GPU", f"{text}; but torch {build} cannot use it: see pytorch.org")
    return Check("OK", "GPU", text)


def _disk(plan: Plan, fetched: int) -> Check:
    place = locations.cache_folder() if plan.model == DEMO else cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(str(place)).free
    text = f"{gigabytes(free)} free in {place}"
    needed = fetched + (600_000_000 if plan.model == DEMO else 0)  # unpacked to float32
    if free < needed:
        todo = "make room" if plan.model == DEMO else "make room, or set HF_HOME to another disk"
        return Check("FAIL", "disk", f"{text}; needed are {gigabytes(needed)}: {todo}")
    return Check("OK", "disk", text)


def _token(plan: Plan, fetched: int) -> Iterator[Check]:
    """Whether there is a token, never which; the hub is asked whether the model needs one."""
    if plan.model == DEMO or Path(plan.model).expanduser().is_dir():
        return
    name, text = "HF token", "present" if _hub_token() else "none"
    if not fetched:
        yield Check("OK", name, f"{text}; nothing is to be fetched")
        return
    told, code = _ask_hub(f"api/models/{plan.model}/revision/{plan.revision}", plan)
    if told is not None and not told.get("gated"):
        yield Check("OK", name, f"{text}; the model needs none")
    elif told is not None and _hub_token():
        yield Check("OK", name, f"{text}; the model is gated")
    elif told is not None or code in (401, 403):
        todo = "accept its terms on the hub and put HF_TOKEN=... into .env"
        yield Check("FAIL", name, f"{text}; the hub wants one: {todo}")
    else:
        why = f"the hub answers {code}" if code else "the hub does not answer"
        yield Check("WARN", name, f"{text}; whether the model needs one is not known: {why}")


def _hub_token() -> str:
    home = os.environ.get("HF_HOME") or str(cache_folder().parent)
    saved = Path(os.environ.get("HF_TOKEN_PATH") or home + "/token").expanduser()
    return os.environ.get("HF_TOKEN") or (saved.read_text().strip() if saved.is_file() else "")


def _ask_hub(path: str, plan: Plan) -> tuple[dict | None, int]:
    """Ask the hub for a JSON object; None, and the HTTP status or 0, if it gives none in time."""
    if plan.model.startswith((".", "~", "/")) or os.environ.get("HF_HUB_OFFLINE", "0") != "0":
        return None, 0
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    request = urllib.request.Request(f"{endpoint}/{urllib.parse.quote(path)}")
    if _hub_token():
        request.add_unredirected_header("Authorization", f"Bearer {_hub_token()}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
            told = json.loads(answer.read().decode("utf-8"))
            return (told if isinstance(told, dict) else None), answer.status
    except urllib.error.HTTPError as error:
        return None, error.code
    except (OSError, ValueError):
        return None, 0


def _model(plan: Plan, fetched: int) -> Check:
    if plan.model == DEMO:
        if fetched:
            todo = f"make demo brings it, or: {DEMO_INSTALL}"
            return Check("WARN", "model", f"demo: not installed yet; {todo}")
        return Check("OK", "model", "demo: installed")
    folder = local_folder(plan)
    if folder is None and Path(plan.model).is_absolute():
        return Check("FAIL", "model", f"{plan.model}: no such folder")
    if folder is None:
        size = "" if fetched == 1 else f" ({gigabytes(fetched)})"
        return Check("WARN", "model", f"{plan.model}: not fetched yet{size}; run: {FETCH}")
    if found := faults(folder):
        todo = f"run: {FETCH}" if folder.parent.name == "snapshots" else "fetch it again"
        return Check("FAIL", "model", f"{plan.model}: {'; '.join(found)}; {todo}")
    return Check("OK", "model", f"{plan.model}: complete")


# --------------------------------------------------------------------------------------- precision


def precisions(
    plan: Plan, config: dict, held: hardware.Memory, gpus: list[hardware.Gpu]
) -> Iterator[Option]:
    """Yield every precision on the GPU with most memory, then on the CPU: the better first.

    None where the size of what stands beside the model is not known.
    """
    beside = [model_config(other) for other in plan.others]
    if None in beside:
        return
    places = [(gpu.kind, gpu.memory.free, gpu.dtype, QUANTIZATIONS) for gpu in gpus[:1]]
    places.append(("cpu", held.free, hardware.cpu_dtype(), QUANTIZATIONS))
    # Over all of them; what is left goes to the disk, which is not counted. Only whole weights can.
    together = held.free + sum(gpu.memory.free for gpu in gpus)
    places.append(("split", together, places[0][2], ("none",)))
    for kind, free, native, quantizations in places:
        if plan.device == kind or (plan.device == "auto" and (kind != "split" or len(gpus) > 1)):
            dtype = native if plan.dtype == "auto" else plan.dtype
            for quantization in quantizations:
                yield option(plan, [config, *beside], kind, free, quantization, dtype)


def option(
    plan: Plan, configs: list[dict], device: str, free: int, quantization: str, dtype: str
) -> Option:
    """Estimate the default sweep at one precision on a device with `free` bytes.

    configs: of the model, and of what stands beside it.
    """
    itemsize = ITEMSIZE[dtype]
    config, *beside = configs
    weights = sum(sizes.weight_bytes(one, quantization, itemsize) for one in configs)
    weights += _adapter_bytes(plan)
    # A row for A, one for B, which may be read with other weights, and one for a base.
    rows_of_a_slot = [config, *([] if plan.model_b else [config]), *beside]
    parts = [
        sizes.slot_bytes(sizes.cache_shape(one), config["vocab_size"], plan.length, itemsize)
        for one in rows_of_a_slot
    ]
    each = dict(parts[0], keys_and_values=sum(part["keys_and_values"] for part in parts) // 2)
    left = max(0, free - weights - PROCESS_BYTES)
    slots = sizes.choose_slots(device, sum(each.values()), left)
    if plan.slots is not None:
        slots = plan.slots if plan.slots * sum(each.values()) <= left else 0
    rows = max(1, slots)
    held = (rows * each["keys_and_values"], rows * each["logits"])
    return Option(device, quantization, dtype, weights, *held, PROCESS_BYTES, free, slots)


def _adapter_bytes(plan: Plan) -> int:
    """What an adapter takes in memory, in float32; its file mostly has 16 bit."""
    files = Path(plan.adapter).expanduser().glob("*.safetensors") if plan.adapter else ()
    return 2 * sum(path.stat().st_size for path in files)


def _fit(
    plan: Plan,
    config: dict | None,
    chosen: Option | None,
    recommended: Option | None,
    options: list[Option],
) -> Check:
    name = "fits"
    if config is None or (plan.others and not options):
        types = " and ".join(sizes.ESTIMATED_TYPES)
        return Check("FAIL", name, f"not known: only the size of {types} models can be estimated")
    if chosen is None:
        return Check("FAIL", name, f"DEVICE={plan.device}: this machine has none")
    if recommended is None:
        least = min(options, key=lambda found: found.needed)
        return Check(
            "FAIL",
            name,
            f"no: {least.quantization} on {least.device} needs {gigabytes(least.needed)} and "
            f"{gigabytes(least.free)} are free; close programs, use a larger machine, or "
            "DEVICE=split, which keeps on the disk what does not fit, and is slow",
        )
    if not chosen.fits:
        asked = f"QUANTIZATION={chosen.quantization} does not fit on {chosen.device}"
        return Check("WARN", name, f"{asked}; set {tips(recommended)}")
    return Check("OK", name, f"QUANTIZATION={chosen.quantization} on {chosen.device}")


def tips(option: Option) -> str:
    """The settings that an option stands for, as they are written in .env."""
    return f"QUANTIZATION={option.quantization} DEVICE={option.device}"


def gigabytes(count: float) -> str:
    """Bytes in words: 10^9, as files and weights are counted."""
    return f"{count / 1e9:.1f} GB"
