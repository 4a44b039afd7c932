"""Choose a precision once and keep it in .env, so that every later run and the notebook use it.

Standard library only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import BadInput
from ..machine import hardware
from .checks import Readiness, is_in_use
from .plan import model_config
from .precision import Option, precisions, tips

NOTE = "# Kept by check_mistral_readiness.py --save for this machine; change it as you like.\n"


def save(found: Readiness, file: Path) -> str:
    """Write the recommended setting into a .env file and return a line that says so.

    A precision that the environment gives is written instead. Nothing is written if the file has
    one. Raises BadInput if an idle GPU would allow a better precision, because runs in another
    precision start from zero, or if the file cannot be written.
    """
    if found.plan.is_chosen:
        told = f"QUANTIZATION={found.plan.quantization}"
        is_kept = "QUANTIZATION" not in os.environ or _has_one(file)
        return f"{told} is set, and stays" if is_kept else _written(told, file)
    if not found.recommended:
        return "Nothing is chosen, as the model's size is not known; set QUANTIZATION"
    idle = _on_an_idle_gpu(found)
    if idle and (idle.device, idle.quantization) != _named(found.recommended):
        raise BadInput(
            f"the GPU is in use: idle it would fit {tips(idle)}, now only "
            f"{tips(found.recommended)}; free it (nvidia-smi), or set QUANTIZATION yourself"
        )
    return _written(tips(found.recommended), file)


def _has_one(file: Path) -> bool:
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return re.search(r"^\s*QUANTIZATION\s*=\s*\S", text, flags=re.M) is not None


def _written(told: str, file: Path) -> str:
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if before and not before.endswith("\n"):
            before += "\n"
        file.write_text(before + NOTE + told.replace(" ", "\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; set {told} yourself") from None
    return f"Wrote {told} into {file}: the notebook and all commands use it"


def _named(option: Option) -> tuple[str, str]:
    return option.device, option.quantization


def _on_an_idle_gpu(found: Readiness) -> Option | None:
    """Return the best option if no other program used the GPUs; None if none does now."""
    gpus = hardware.gpus()
    if not any(map(is_in_use, gpus)):
        return None
    idle = [
        gpu._replace(memory=hardware.Memory(gpu.memory.total, gpu.memory.total)) for gpu in gpus
    ]
    config = model_config(found.plan)
    options = precisions(found.plan, config, hardware.memory(), idle) if config else ()
    return next((option for option in options if option.fits), None)
