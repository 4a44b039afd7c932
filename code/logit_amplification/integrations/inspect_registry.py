"""What inspect_ai finds by this package's entry point: the provider's name, and nothing heavy."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="amplified")
def amplified() -> type[ModelAPI]:
    """Return the provider of `--model amplified/...`, which brings torch along."""
    from .inspect_provider import AmplifiedAPI

    return AmplifiedAPI
