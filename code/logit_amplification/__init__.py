"""Logit-difference amplification: logits_a + alpha * (logits_a - logits_b), at every token.

The public names are imported on first use, so that importing the package loads nothing heavy. This
file must run on Python 3.8, because the readiness check imports the package before anything is
installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import BadInput as BadInput
    from .logits.amplification import Rule
    from .models.loading import load_model as load_model
    from .notebook.explorer import explore as explore
    from .notebook.results_view import browse as browse
    from .prompts.files import read_pairs as read_pairs
    from .reports.artifacts import save_artifacts as save_artifacts
    from .reports.tables import load_run as load_run
    from .settings import load_settings as load_settings
    from .sweeps.generate import generate as generate
    from .sweeps.sweep import sweep as sweep

    amplify: Rule  # typed here: its definition has no annotations, as the notebook quotes it

__version__ = "0.1.0"

_HOMES = {
    "BadInput": "errors",
    "amplify": "logits.amplification",
    "browse": "notebook.results_view",
    "explore": "notebook.explorer",
    "generate": "sweeps.generate",
    "load_model": "models.loading",
    "load_run": "reports.tables",
    "load_settings": "settings",
    "read_pairs": "prompts.files",
    "save_artifacts": "reports.artifacts",
    "sweep": "sweeps.sweep",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it.

    Raises AttributeError for any other name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List all public names, including those not imported yet."""
    return sorted({*globals(), *__all__})
