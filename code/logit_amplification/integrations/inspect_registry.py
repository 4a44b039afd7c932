"""inspect_ai's entry point: it registers the provider's name without importing torch."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="amplified")
def amplified() -> type[ModelAPI]:
    """Return the class behind `--model amplified/...`; importing it imports torch."""
    from .inspect_provider import AmplifiedAPI

    return AmplifiedAPI
