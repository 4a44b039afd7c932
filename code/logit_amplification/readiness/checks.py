"""Check, before any download, whether the workbench will run here and at which precision.

Standard library only, and compatible with Python 3.8, because it must be able to say what is
missing. Settings are read through `settings` if its libraries are installed; otherwise the defaults
apply.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from .. import locations
from ..locations import DEMO, MISTRAL, ROOT
from ..machine import hardware, sizes
from ..models.local import (
    DEMO_INSTALL,
    cache_folder,
    chosen_revision,
    faults,
    fetch_command,
)
from .plan import Plan, ask_hub, hub_token, local_folder, model_config, weights_to_fetch
from .precision import PROCESS_BYTES, Option, gigabytes, precisions, tips

OLDEST_PYTHON = (3, 10)
BRINGS_THEM = "the installation (make demo, or pip install -r requirements.txt) brings them"
# The default sweep's memory is estimated with the tokens of the longest built-in prompt, by
# Mistral's or the demo model's tokenizer (a test counts them), and of an answer by default.
BUILT_IN_PROMPT, NEW_TOKENS = 352, 100
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
IDLE = 0.8  # share of an idle GPU's memory that a desktop leaves free
CHARACTERS_PER_TOKEN = 3  # for other prompts, as no tokenizer is loaded; low, to overestimate


class Check(NamedTuple):
    """One line of the result: the level (`OK`, `WARN` or `FAIL`), its name, and what to do."""

    level: str
    name: str
    text: str


class Readiness(NamedTuple):
    """The complete result of the readiness check."""

    plan: Plan
    checks: list[Check]
    options: list[Option]
    chosen: Option | None  # what the settings ask for
    recommended: Option | None

    @property
    def ready(self) -> bool:
        """Whether no check fails: an option fits, or the model's size cannot be estimated."""
        return all(check.level != "FAIL" for check in self.checks)


def check_machine(model: str | None = None, settings: Any = None) -> Readiness:
    """Check this machine for `settings`, or for those found in .env and the environment.

    model: used instead of the one that .env and the environment name; ignored with `settings`.
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
        _gpu(gpus, plan.device),
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
        return default, Check("WARN", "settings", "not read before the packages are installed")
    from ..errors import BadInput
    from ..settings import load_settings

    try:
        return plan_of(load_settings(model=model))
    except BadInput as error:
        return default, Check("FAIL", "settings", str(error))


def plan_of(settings: Any) -> tuple[Plan, Check]:
    """Return what valid settings ask to run, and the check of them.

    Raises BadInput for a bad prompt file.
    """
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
        "quantization" in settings.model_fields_set,
    )
    found = [path for path in (ROOT / ".env", Path(".env")) if path.is_file()]
    return plan, Check("OK", "settings", f"valid; {'with' if found else 'there is no'} .env")


# ------------------------------------------------------------------------------------------ checks


def _python() -> Check:
    version, oldest = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        return Check("FAIL", "Python", f"{version}; {oldest} or newer is needed")
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return Check("FAIL", "Python", f"{version} for Intel: torch no longer has builds for it")
    return Check("OK", "Python", version)


def _packages() -> Check:
    """Compare the installed packages with requirements.txt.

    The level is WARN at worst, because this says nothing about the machine.
    """
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
    """Yield the name and the allowed versions of each package in requirements.txt."""
    if locations.IN_CHECKOUT:
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    else:  # an installation has the list in its metadata
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
    """Whether a version meets a list like `>=1.2,<2`; pre-release and local parts are ignored."""

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


def _gpu(gpus: list[hardware.Gpu], device: str) -> Check:
    if not gpus:
        return Check("WARN", "GPU", "none found; the model will run on the CPU, much slower")
    gpu = gpus[0]
    free, total = gigabytes(gpu.memory.free), gigabytes(gpu.memory.total)
    text = f"{gpu.name}, {free} free of {total}, {gpu.dtype}"
    build = _installed("torch") or ""
    if gpu.kind == "cuda" and build.endswith("+cpu"):
        told = f"{text}; but torch {build} cannot use it"
        if device == "cpu":
            return Check("WARN", "GPU", told)
        install = f"pip install --force-reinstall torch=={build[:-4]} --index-url {CUDA_INDEX}"
        python = ".venv/bin/python -m"
        return Check("FAIL", "GPU", f"{told}; run: {python} {install}; or set DEVICE=cpu")
    if is_in_use(gpu):
        return Check("WARN", "GPU", f"{text}; other programs hold the rest: see nvidia-smi")
    return Check("OK", "GPU", text)


def is_in_use(gpu: hardware.Gpu) -> bool:
    """Whether a GPU's memory is held by other programs, and not just by a desktop."""
    return gpu.memory.free < IDLE * gpu.memory.total


def _disk(plan: Plan, fetched: int) -> Check:
    place = locations.cache_folder() if plan.model == DEMO else cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(str(place)).free
    text = f"{gigabytes(free)} free in {place}"
    needed = fetched + (600_000_000 if plan.model == DEMO else 0)  # unpacked to float32, in bytes
    if free < needed:
        todo = "make room" if plan.model == DEMO else "make room, or set HF_HOME to another disk"
        return Check("FAIL", "disk", f"{text}; {gigabytes(needed)} are needed: {todo}")
    return Check("OK", "disk", text)


def _token(plan: Plan, fetched: int) -> Iterator[Check]:
    """Say whether there is a token, never which; ask the hub whether the model needs one."""
    if plan.model == DEMO or Path(plan.model).expanduser().is_dir():
        return
    name, text = "HF token", "present" if hub_token() else "none"
    if not fetched:
        yield Check("OK", name, f"{text}; nothing to download")
        return
    told, code = ask_hub(f"api/models/{plan.model}/revision/{plan.revision}", plan)
    if told is not None and not told.get("gated"):
        yield Check("OK", name, f"{text}; the model needs none")
    elif told is not None and hub_token():
        yield Check("OK", name, f"{text}; the model is gated")
    elif told is not None or code in (401, 403):
        todo = "accept its terms on the hub and put HF_TOKEN=... into .env"
        yield Check("FAIL", name, f"{text}; the hub requires one: {todo}")
    else:
        why = f"the hub answers {code}" if code else "the hub does not answer"
        yield Check("WARN", name, f"{text}; it is not known whether the model needs one: {why}")


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
        todo = f"run: {fetch_command(plan.model)}"
        return Check("WARN", "model", f"{plan.model}: not fetched yet{size}; {todo}")
    if found := faults(folder):
        if folder.parent.name != "snapshots":
            return Check("FAIL", "model", f"{plan.model}: {'; '.join(found)}; fetch it again")
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        size = "" if fetched == 1 else f", {gigabytes(fetched)} to go"
        told = f"{plan.model}: not complete ({found[0]}{more}){size}"
        return Check("WARN", "model", f"{told}; run: {fetch_command(plan.model)}")
    return Check("OK", "model", f"{plan.model}: complete")


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
        why = f"no config.json of a {types} model can be read, so the size is not known"
        return Check("WARN", name, f"not known: {why}")
    if chosen is None and options:
        told = f"QUANTIZATION={plan.quantization} does not go with DEVICE={plan.device}"
        return Check("FAIL", name, f"{told}; allowed: {options[0].quantization}")
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
    asked = f"QUANTIZATION={chosen.quantization}" + " (the default)" * (not plan.is_chosen)
    if not chosen.fits and plan.is_chosen:
        short = f"needs {gigabytes(chosen.needed)} and {gigabytes(chosen.free)} are free"
        todo = f"free memory, or set {tips(recommended)}"
        return Check("FAIL", name, f"{asked} does not fit on {chosen.device}: {short}; {todo}")
    if not chosen.fits:
        return Check("WARN", name, f"{asked} does not fit on {chosen.device}; see the table")
    return Check("OK", name, f"{asked} on {chosen.device}")
