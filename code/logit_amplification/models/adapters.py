"""An adapter on a loaded model: a second tree of modules that shares every weight with the first.

Nothing is switched on or off. The model without the adapter is the model that was loaded, and no
exception can leave it in another state; its weights are in memory once.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput


class Gate:
    """Lets chosen rows of a forward go past the adapter, so that one forward reads both ways.

    A hook of the low-rank products: where `rows` is False nothing is added to the base model's
    layer. base: the model without the adapter. rows: (rows,) bool, or None for all.
    """

    def __init__(self, base: Any):
        self.base = base
        self.rows: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Return what the product adds, nothing in rows that do not take part."""
        if self.rows is None:
            return None
        return output.masked_fill(~self.rows.view(-1, *[1] * (output.dim() - 1)), 0)

    @contextmanager
    def open_to(self, rows: Tensor) -> Iterator[None]:
        """Have these rows go through the adapter, and all of them again afterwards."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None


def gate_of(model: Any) -> Gate | None:
    """Return the gate of a model with an adapter whose rows can be told apart, else None."""
    return getattr(model, "adapter_gate", None)


def without_adapter(model: Any) -> Any:
    """Return the model whose weights this one reads with: itself, or what a gate lets through."""
    gate = gate_of(model)
    return gate.base if gate else model


def with_adapter(model: Any, folder: Path) -> Any:
    """Return `model` with the PEFT adapter of a folder; both share all weights.

    The adapter's own weights are float32, as PEFT has it. Raises BadInput naming the folder when it
    holds no adapter of weights, or one of another model.
    """
    # PEFT imports it, and it tells of a kernel that it would like to fetch.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import PeftModel

    kind = adapter_config(folder).get("peft_type", "none")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing"
            )  # PEFT's affair
            # Weights that the file lacks would stay untrained, and that is only warned of.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            adapted = PeftModel.from_pretrained(_sharing_copy(model), folder, is_trainable=False)
    except (BadInput, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a damaged or foreign adapter raises is not one type
        told = " ".join(str(error).split())
        raise BadInput(
            f"ADAPTER = {folder.name!r}: it does not fit {model.config.model_type!r} weights of "
            f"this size: {told:.160}"
        ) from error
    if not hasattr(adapted, "base_model") or not hasattr(adapted.base_model, "model"):
        raise BadInput(
            f"ADAPTER = {folder.name!r}: {kind} adds to the prompt; allowed: adapters of the "
            "weights, as LoRA"
        )
    tree = adapted.base_model.model.requires_grad_(False).eval()
    products = _low_rank_products(tree)
    if products:
        tree.adapter_gate = Gate(model)
        for product in products:
            product.register_forward_hook(tree.adapter_gate)
    return tree


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return a folder's adapter_config.json. Raises BadInput where there is none."""
    path = folder / "adapter_config.json"
    try:
        if (folder / "adapter_model.safetensors").is_file():  # what the run's name has the hash of
            return json.loads(path.read_text("utf-8"))
        raise FileNotFoundError
    except (OSError, ValueError):
        raise BadInput(
            f"ADAPTER = {str(folder)!r}; allowed: a folder with a PEFT adapter, "
            "adapter_config.json and adapter_model.safetensors"
        ) from None


def sharing(model: Any) -> dict[int, Any]:
    """Return what a deep copy of a model must not copy: `copy.deepcopy`'s memo."""
    kept = [*model.parameters(), *model.buffers()]
    # What LLM.int8 keeps beside a weight moves into the layer's state when it is first used.
    kept += [m.state for m in model.modules() if hasattr(m, "state") and hasattr(m.state, "CB")]
    gate = gate_of(model)
    return {id(one): one for one in ([*kept, gate] if gate else kept)}


def _sharing_copy(model: Any) -> Any:
    return copy.deepcopy(model, sharing(model))


def _low_rank_products(tree: Any) -> list[nn.Module]:
    """The last product of each adapted layer; none when the adapter does more than add these.

    Rows cannot be told apart where whole layers are replaced, biases trained or weights rescaled
    (DoRA): such an adapter is read in a forward of its own.
    """
    from peft.tuners.lora import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    products: list[nn.Module] = []
    for module in tree.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return []
        if isinstance(module, BaseTunerLayer):
            plain = isinstance(module, LoraLayer) and not module.lora_variant
            quantised = type(module).__name__ in ("Linear8bitLt", "Linear4bit")
            if not plain or not (type(module) is Linear or quantised):
                return []
            products += module.lora_B.values()
    trained = tree.peft_config["default"].bias != "none"
    return [] if trained else products
