"""Format the readiness check as text for a terminal or the notebook, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import without_secrets
from ..locations import DEMO, MISTRAL
from ..machine import hardware, sizes
from ..models.local import chosen_revision
from .checks import Readiness, plan_of
from .plan import Plan, model_config, weights_to_fetch
from .precision import Option, gigabytes, precisions, tips


def lines(found: Readiness) -> Iterator[str]:
    """Yield the result as text, line by line."""
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        yield f"{'[' + check.level + ']':<6} {check.name:<{width}}  {check.text}"
    yield ""
    yield from precision_table(found)
    yield "Ready." if found.ready else "Not ready: see [FAIL] above."


def precision_table(found: Readiness) -> Iterator[str]:
    """Yield the table of precisions and the recommended settings, line by line."""
    if found.options:
        yield f"{found.plan.model}, contexts of up to {found.plan.length} tokens; GB:"
        yield (
            "device  quantization  format    weights  keys+values  logits  beside  needed   free"
            "  slots  fits"
        )
        for one in found.options:
            yield (
                f"{one.device:<8}{one.quantization:<14}{one.dtype:<8}"
                f"{one.weights / 1e9:>9.1f}{one.keys_and_values / 1e9:>13.1f}"
                f"{one.logits / 1e9:>8.1f}{one.beside / 1e9:>8.1f}{one.needed / 1e9:>8.1f}"
                f"{one.free / 1e9:>7.1f}{one.slots:>7}  {'yes' if one.fits else 'no'}"
            )
        yield ""
    if found.recommended:
        slots = found.recommended.slots
        yield f"Recommended: {tips(found.recommended)} ({slots} generations side by side)"


def before_loading(settings: Any) -> Iterator[str]:
    """Yield which model is about to be loaded and its size, then any more exact option that fits.

    settings: valid `Settings`. Raises BadInput for a bad prompt file.
    """
    plan, _ = plan_of(settings)
    config = model_config(plan)
    here = (hardware.memory(), hardware.gpus())
    options = [] if config is None else list(precisions(plan, config, *here))
    chosen = next((one for one in options if one.quantization == plan.quantization), None)
    taken = f"; its weights take {gigabytes(chosen.weights)} of memory" if chosen else ""
    yield f"About to load {without_secrets(plan.model)}: {_whereabouts(plan, config)}{taken}"
    # An explicit choice of precision gets no advice.
    by_default = "quantization" not in settings.model_fields_set
    if chosen and by_default and _none_fits_too(chosen, options):
        asked = f"QUANTIZATION={chosen.quantization} (the default)"
        yield f"{asked}; none would fit here too and is more exact: QUANTIZATION=none"


def other_model(settings: Any) -> str:
    """Return how to use the demo model in the notebook, or Mistral if the demo model is chosen.

    settings: valid `Settings`. Raises BadInput for a bad prompt file.
    """
    plan, _ = plan_of(settings)
    if plan.model != DEMO:
        return 'For the demo model instead: PARAMETERS = {"model": "demo"}, or run make lab'
    mistral = plan._replace(model=MISTRAL, revision=chosen_revision(MISTRAL, "auto"))
    size = _whereabouts(mistral, sizes.MISTRAL_7B)
    # Where the environment sets the demo model, it sets that model's precision too.
    parameters = json.dumps({"model": MISTRAL, "quantization": "8bit"})
    return f"For Mistral 7B instead ({size}): PARAMETERS = {parameters}"


def _whereabouts(plan: Plan, config: dict | None) -> str:
    fetched = weights_to_fetch(plan, config)
    if not fetched or Path(plan.model).expanduser().is_dir():
        return "already on this machine"
    return "not on this machine yet" if fetched == 1 else f"{gigabytes(fetched)} to download"


def _none_fits_too(chosen: Option, options: list[Option]) -> bool:
    whole = [one for one in options if (one.device, one.quantization) == (chosen.device, "none")]
    return chosen.quantization != "none" and any(one.fits for one in whole)


def as_json(found: Readiness) -> str:
    """Return the result as JSON text, with sizes in bytes."""
    options = [
        dict(option._asdict(), needed=option.needed, fits=option.fits) for option in found.options
    ]
    recommended = found.recommended and found.recommended._asdict()
    return json.dumps(
        {
            "ready": found.ready,
            "plan": found.plan._asdict(),
            "checks": [check._asdict() for check in found.checks],
            "options": options,
            "recommended": recommended,
        },
        indent=1,
    )
