"""Every knob of the workbench: its name, default and allowed values, and where a value comes from.

A value is taken from the first of: an argument (a flag, or the notebook's parameters cell), the
environment, the file `.env`, the default. One name serves everywhere: `max_new_tokens` here is
`MAX_NEW_TOKENS` in `.env` and `--max-new-tokens` on the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dotenv import dotenv_values
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from .errors import BadInput
from .locations import DEMO, MISTRAL, ROOT, data_folder, shipped_file, visualizations_folder
from .logits.vocabulary import ARM_NAMES, LIST_ARMS, WHOLE_ARMS

MEMORY = re.compile(r"(\d+|cpu|mps)=\d+(\.\d+)?[KMGT]i?B")  # as accelerate reads sizes
CONTROL_NAMES = ("swapped", "shuffled", "paraphrase")
# The project's .env first, then the one of the current folder: the later wins.
ENV_FILES = (ROOT / ".env", Path(".env"))


def _knob(default: Any, meaning: str, allowed: str, **limits: Any) -> Any:
    return Field(
        default,
        description=f"{meaning}: {allowed}",
        json_schema_extra={"allowed": allowed},
        **limits,
    )


class _DotEnv(DotEnvSettingsSource):
    """The file .env without the variables that belong to Hugging Face's own libraries."""

    def __call__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__call__().items() if not name.startswith("hf_")}


class Settings(BaseSettings):
    """The settings of one sweep. Frozen; made by `load_settings`, which words the errors."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        env_ignore_empty=True,
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
    )

    model: str = _knob(
        MISTRAL,
        "the model to load",
        "`demo` (SmolLM2-135M), a Hugging Face id, or a folder with safetensors weights",
        min_length=1,
    )
    revision: str = _knob(
        "auto",
        "revision of a Hugging Face model",
        "a branch, tag or commit; auto is the commit pinned for Mistral, main for others",
        min_length=1,
    )
    quantization: Literal["none", "8bit", "4bit"] = _knob(
        "8bit",
        "precision of the weights",
        "none, 8bit (LLM.int8) or 4bit (NF4); `full` means none; the demo model's default is none",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _knob(
        "auto", "dtype of weights and activations", "auto, float32, bfloat16 or float16"
    )
    device: Literal["auto", "cpu", "cuda", "mps", "split"] = _knob(
        "auto",
        "where the model runs",
        "auto, cpu, cuda, mps, or split: over all GPUs, then main memory, then the disk",
    )
    max_memory: str = _knob(
        "",
        "with DEVICE=split, the most memory that weights may take on each device",
        "devices and sizes separated by commas, as in 0=20GB,1=20GB,cpu=60GB; empty: all that "
        "is free",
    )
    adapter: str = _knob(
        "",
        "amplify what an adapter changed (A is the model with the adapter, B the model without it)",
        "a folder with a PEFT adapter; empty: A and B use the same weights",
    )
    model_b: str = _knob(
        "",
        "another checkpoint for B (A uses MODEL)",
        "a Hugging Face id, ID@REVISION, or a folder; its vocabulary must be that of MODEL",
    )
    model_base: str = _knob(
        "",
        "the model that the difference is added to instead of A, as MODEL_BASE + alpha * (A - B)",
        "a Hugging Face id, ID@REVISION, or a folder; its vocabulary must be that of MODEL",
    )
    prompts: Path = _knob(
        shipped_file("prompt_pairs.csv"),
        "the file of prompt pairs",
        "a .csv, .json or .jsonl file, or demo (31 of the built-in ones; the demo model's default)",
    )
    controls: Annotated[tuple[str, ...], NoDecode] = _knob(
        (),
        "control pairs to derive from the prompt pairs",
        "none, or any of swapped (B against A), shuffled (A against the B of another pair) and "
        "paraphrase (A against its own paraphrase), separated by commas",
    )
    alphas: Annotated[tuple[float, ...], NoDecode] = _knob(
        (-1.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0),
        "values of alpha to sweep (0 is A alone and is always added, -1 is B alone)",
        "numbers from -100 to 100 separated by commas, as in 0,0.5,1",
    )
    samples: int = _knob(
        1, "samples per pair and alpha", "a whole number from 1 to 10000", ge=1, le=10_000
    )
    max_new_tokens: int = _knob(
        100,
        "maximum length of an answer in tokens",
        "a whole number from 1 to 100000",
        ge=1,
        le=100_000,
    )
    temperature: float = _knob(
        0.7, "sampling temperature (0 is greedy)", "0, or a number from 0.01 to 100", ge=0, le=100
    )
    top_p: float = _knob(
        0.9,
        "top-p (nucleus) sampling (1 turns it off)",
        "a number above 0 and at most 1",
        gt=0,
        le=1,
    )
    top_k: int = _knob(
        0,
        "top-k sampling: keep the k likeliest tokens (0 turns it off)",
        "a whole number from 0",
        ge=0,
        le=10_000_000,
    )
    seed: int = _knob(
        0, "random seed for all sampling", "a whole number from 0 to 2^63 - 1", ge=0, lt=2**63
    )
    arms: Annotated[tuple[str, ...], NoDecode] = _knob(
        ("full",),
        "arms, which are variants of the rule (docs/METHODOLOGY.md defines them)",
        f"any of {', '.join(WHOLE_ARMS)}, candidates_top20, "
        f"{', '.join(LIST_ARMS[1:])}; add _top5, _top100 or _top1000 for lists of another "
        "length than 20",
    )
    slots: int | Literal["auto"] = _knob(
        "auto",
        "batch slots, the number of generations decoded in parallel",
        "auto or a whole number from 1 to 4096",
    )
    forwards: int = _knob(
        1,
        "forward passes per step: one for A's and B's rows together, or one for each of them "
        "(for 8bit, where the rows of one forward influence each other)",
        "1 or 2",
        ge=1,
        le=2,
    )
    step: Literal["auto", "eager", "packed", "compiled"] = _knob(
        "auto",
        "how a decoding step is computed on a CPU: by the model as it is (eager), with packed "
        "weights, or with packed weights and compiled layers",
        "auto, eager, packed or compiled; auto picks the fastest for this machine and sweep",
    )
    engine: Literal["torch", "vllm"] = _knob(
        "torch",
        "the engine that generates: the workbench's own engine (torch), or vLLM in a separate "
        "process",
        "torch or vllm",
    )
    vllm_python: Path = _knob(
        ROOT / ".venv-vllm" / "bin" / "python",
        "the Python interpreter of vLLM's separate environment",
        "a Python whose environment has vLLM; `make vllm` creates one",
    )
    vllm_options: str = _knob(
        "",
        "additional arguments for vLLM's class LLM",
        'a JSON object, as in {"tensor_parallel_size": 2}',
    )
    judge: str = _knob(
        "",
        "a text-classification model that labels the answers, in addition to the built-in "
        "phrase list",
        "a Hugging Face id, or a folder with safetensors weights; empty: no judge",
    )
    data_dir: Path = _knob(
        data_folder(), "where to write the journal, JSON, CSV and TXT", "a folder"
    )
    visualizations_dir: Path = _knob(
        visualizations_folder(), "where to write the figures", "a folder"
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the weights that A and B are read with, and those of a base of its own."""
        b = "model_b" if self.adapter or self.model_b else "model"
        return ("model", b, "model_base") if self.model_base else ("model", b)

    @property
    def vllm_arguments(self) -> dict[str, Any]:
        """`vllm_options`, read."""
        return json.loads(self.vllm_options or "{}")

    @field_validator("quantization", mode="before")
    @classmethod
    def _full_means_none(cls, value: Any) -> Any:
        return "none" if value == "full" else value

    @field_validator("alphas", "arms", "controls", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "controls" and (value == "none" or not value):
            return ()
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        elif isinstance(value, int | float):
            value = [value]
        if not value:
            raise ValueError(f"no {info.field_name} given")
        return value

    @field_validator("alphas")
    @classmethod
    def _alphas_in_range_and_with_zero(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if any(abs(alpha) > 100 for alpha in alphas):
            raise ValueError("out of range")
        return tuple(sorted({0.0, *alphas}))

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [arm for arm in arms if arm not in ARM_NAMES]:
            raise ValueError(f"unknown: {unknown}")
        return tuple(dict.fromkeys(arms))

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, controls: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [control for control in controls if control not in CONTROL_NAMES]:
            raise ValueError(f"unknown: {unknown}")
        return tuple(dict.fromkeys(controls))

    @field_validator("temperature")
    @classmethod
    def _temperature_does_not_overflow(cls, temperature: float) -> float:
        if 0 < temperature < 0.01:
            raise ValueError("too small to divide logits by")
        return temperature

    @field_validator("slots")
    @classmethod
    def _slots_in_range(cls, slots: int | str) -> int | str:
        if slots != "auto" and not 1 <= slots <= 4096:
            raise ValueError("out of range")
        return slots

    @field_validator("max_memory")
    @classmethod
    def _devices_and_sizes(cls, given: str) -> str:
        if given and not all(MEMORY.fullmatch(part.strip()) for part in given.split(",")):
            raise ValueError("not a device and a size")
        return given

    @field_validator("vllm_options")
    @classmethod
    def _options_are_an_object(cls, options: str) -> str:
        if options and not isinstance(json.loads(options), dict):
            raise ValueError("no object")
        return options

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_demo_model(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("model") == DEMO:
            values.setdefault("quantization", "none")
            values.setdefault("prompts", DEMO)
        return values

    @classmethod
    def settings_customise_sources(
        cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
    ):
        """Read .env through `_DotEnv`; everything else as pydantic-settings does."""
        return init_settings, env_settings, _DotEnv(settings_cls, env_file=ENV_FILES)


class ArgumentsAlone(Settings):
    """Settings from arguments alone: another program's .env or environment must not matter."""

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **others):
        """Read nothing else."""
        return (init_settings,)


SettingsType = TypeVar("SettingsType", bound=Settings)


def load_settings(
    kind: type[SettingsType] = Settings, *, flags: Sequence[str] | None = None, **values: Any
) -> SettingsType:
    """Return settings out of `flags` (a command line) or `values`, the environment and .env.

    Raises BadInput: one line with the setting, what was given, where, and what is allowed.
    """
    values = {name: value for name, value in values.items() if value is not None}
    flags = None if flags is None else _joined(flags)
    _hand_hugging_face_its_variables()
    for name in kind.model_fields:
        if given_by_flag(name, flags or ()) == "":
            allowed = kind.model_fields[name].json_schema_extra["allowed"]
            raise BadInput(f"{name.upper()} = '' (flag {flag_of(name)}); allowed: {allowed}")
    try:
        return kind(_cli_parse_args=None if flags is None else list(flags), **values)
    except ValidationError as error:
        raise BadInput(_worded(kind, error.errors()[0], flags or (), values)) from None
    except SettingsError as error:
        raise BadInput(_worded_parser_error(kind, str(error))) from None
    except UnicodeDecodeError:
        raise BadInput(".env is not a UTF-8 text file") from None


def _joined(flags: Sequence[str]) -> list[str]:
    """Join `--alphas -1,0,1` to `--alphas=-1,0,1`: argparse takes `-1,0,1` for a flag."""
    joined: list[str] = []
    for part in flags:
        if re.match(r"-[\d.]", part) and joined and re.fullmatch(r"--[a-z][a-z-]*", joined[-1]):
            joined[-1] += f"={part}"
        else:
            joined.append(part)
    return joined


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def given_by_flag(name: str, flags: Sequence[str]) -> str | None:
    """What the command line gives for a setting: `--name=value` or `--name value`."""
    for part, following in zip_longest(flags, flags[1:]):
        flag, equals, value = part.partition("=")
        if flag == flag_of(name):
            return value if equals else following
    return None


def shown_path(path: Path) -> str:
    """Return a path as a reader wants it: from the current folder on, when it lies below."""
    path = Path(path).resolve()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _hand_hugging_face_its_variables() -> None:
    """HF_TOKEN, HF_HOME, ... in .env are for huggingface_hub, which reads the environment."""
    for path in reversed(ENV_FILES):
        try:
            variables = dotenv_values(path)
        except UnicodeDecodeError:
            raise BadInput(f"{path.name} is not a UTF-8 text file") from None
        for name, value in variables.items():
            if name.upper().startswith("HF_") and value:
                os.environ.setdefault(name, value)


def _worded(kind: type[Settings], error: Any, flags: Sequence[str], values: dict) -> str:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    known = kind.model_fields
    if name not in known:
        where = "an argument" if name in values else ".env"
        allowed = ", ".join(field.upper() for field in known)
        return f"unknown setting {name.upper()} in {where}; allowed: {allowed}"
    by_flag = given_by_flag(name, flags)
    if name in values:
        given, where = values[name], "argument"
    elif by_flag is not None:
        given, where = by_flag, f"flag {flag_of(name)}"
    elif name.upper() in os.environ:
        given, where = os.environ[name.upper()], "environment"
    else:
        given, where = error["input"], ".env"
    return (
        f"{name.upper()} = {given!r} ({where}); allowed: {known[name].json_schema_extra['allowed']}"
    )


def _worded_parser_error(kind: type[Settings], message: str) -> str:
    message = message.removeprefix("error parsing CLI: ")
    if "unrecognized arguments" in message:
        flags = " ".join(map(flag_of, kind.model_fields))
        return f"{message}; allowed: {flags}"
    for name, field in kind.model_fields.items():
        if f"{flag_of(name)}:" in message:
            return f"{message}; allowed: {field.json_schema_extra['allowed']}"
    return message
