"""Which model to load, how, and what to compare it with; validated before any work."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from ..errors import BadInput
from ..locations import DEMO
from ..settings import Settings

CHOICES = ("quantization", "dtype", "device", "engine")
OTHERS = ("adapter", "model_b", "model_base")
MAY_BE_EMPTY = (*OTHERS, "max_memory")


@dataclass(frozen=True)
class ModelSpec:
    """A model and how to load it: names, revisions and values as in `Settings`.

    quantization: None means `none` for the demo model and `8bit` for others; `full` means `none`.
    Raises BadInput, naming what is allowed, for a value that is not.
    """

    model: str
    revision: str = "auto"
    quantization: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    adapter: str = ""
    model_b: str = ""
    model_base: str = ""
    engine: str = "torch"
    max_memory: str = ""

    def __post_init__(self):
        usual = "none" if self.model == DEMO else "8bit"
        chosen = {None: usual, "full": "none"}.get(self.quantization, self.quantization)
        object.__setattr__(self, "quantization", chosen)
        for name in (field.name for field in fields(self)):
            value, setting = getattr(self, name), Settings.model_fields[name]
            known = get_args(setting.annotation) if name in CHOICES else None
            missing = not value and name not in MAY_BE_EMPTY
            if not isinstance(value, str) or missing or (known and value not in known):
                allowed = setting.json_schema_extra["allowed"]
                raise BadInput(f"{name.upper()} = {value!r:.60}; allowed: {allowed}")
        if self.device == "split" and self.adapter:
            raise BadInput(
                f"ADAPTER = {self.adapter!r:.60} with DEVICE = split; allowed with it: auto, cpu, "
                "cuda, mps"
            )
        if self.max_memory and self.device != "split":
            raise BadInput(
                f"MAX_MEMORY = {self.max_memory!r:.60} with DEVICE = {self.device}; allowed with "
                "it: split"
            )

    @property
    def memory(self) -> dict[int | str, str] | None:
        """`max_memory` as a dictionary for accelerate; None means all free memory."""
        parts = (part.split("=") for part in self.max_memory.replace(" ", "").split(",") if part)
        return {int(n) if n.isdigit() else n: size for n, size in parts} or None


def model_spec(model: Any, **choices: str | None) -> ModelSpec:
    """Return the spec of a name, of a folder, or of an object with a spec's attributes (Settings).

    Choices that are not None override what `model` says. Raises BadInput for any other kind of
    `model`, and as `ModelSpec` does.
    """
    given = {name: value for name, value in choices.items() if value is not None}
    if isinstance(model, str | Path):
        return ModelSpec(str(model), **given)
    if isinstance(model, ModelSpec):
        return replace(model, **given)
    names = [field.name for field in fields(ModelSpec)]
    if not all(hasattr(model, name) for name in names):
        raise BadInput(f"MODEL = {model!r:.60}; allowed: a name, a folder, or settings")
    return ModelSpec(**({name: getattr(model, name) for name in names} | given))


def other_spec(spec: ModelSpec, name: str) -> ModelSpec:
    """Return the spec of MODEL_B or MODEL_BASE, loaded like `spec`.

    name: `ID`, `ID@REVISION` or a folder. Raises BadInput as `ModelSpec` does.
    """
    folder = Path(name).expanduser().is_dir()  # its name may contain an @
    model, _, revision = (name, "", "") if folder else name.partition("@")
    choices = {choice: getattr(spec, choice) for choice in (*CHOICES, "max_memory")}
    return ModelSpec(model, revision or "auto", **choices)
