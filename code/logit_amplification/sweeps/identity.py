"""Define the identity of a run: everything that can change a token, hashed into its name."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from ..engine.batch import batched
from ..engine.vllm import engine as vllm
from ..logits.amplification import Rule, amplify
from ..models.loading import LoadedModel
from ..settings import Settings
from .fingerprint import display_name, fingerprint


def run_configuration(
    model: LoadedModel,
    settings: Settings,
    *,
    step: str,
    rule: Rule = amplify,
    loop: Callable[..., Iterator[Any]] | None = None,
) -> dict[str, Any]:
    """Return everything that can change a token of a given cell; its hash names the run.

    step: the kind of step that was chosen, not `auto`.

    Not included are the pairs, alphas, samples and arms that are swept (they choose cells, and a
    cell carries the fingerprint of its pair), and the number of slots, which is in each record
    (docs/METHODOLOGY.md, Exactness). Raises BadInput when rule or loop read something that cannot
    be compared between runs.
    """
    if loop:
        engine = {"name": "loop"}
    elif settings.engine == "vllm":
        engine = vllm.described(settings.vllm_python, settings.vllm_arguments)
    else:
        engine = batched.described(settings.forwards, step)
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return {
        "model": model.info,
        "sampling": {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
        },
        "engine": engine,
        "rule": named(rule, "RULE"),
        "loop": None if loop is None else named(loop, "LOOP"),
        # Rules are hashed as byte code, which differs between versions of Python.
        "libraries": libraries | {"python": ".".join(platform.python_version_tuple()[:2])},
    }


def named(function: Callable[..., Any], setting: str) -> dict[str, str]:
    """Return the name of a rule or loop, and the hash of its code and of all that it reads.

    setting: how an error names it. Raises BadInput as `fingerprint` does.
    """
    return {"name": display_name(function), "sha256": fingerprint(function, setting)}
