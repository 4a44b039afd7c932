"""Put an adapter on a loaded model as a second tree of modules that shares all weights.

Nothing is switched on or off. The model without the adapter is the model that was loaded, so no
exception can leave it in another state, and its weights are in memory only once.
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
    """A hook that lets chosen rows bypass the adapter, so that one forward pass serves A and B.

    It is attached to the low-rank products: where `rows` is False, nothing is added to the output
    of the base model's layer. base: the model without the adapter. rows: (rows,) bool, or None if
    all rows use the adapter.
    """

    def __init__(self, base: Any):
        self.base = base
        self.rows: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Return the product with zeros in rows that bypass the adapter, or None for no change."""
        if self.rows is None:
            return None
        return output.masked_fill(~self.rows.view(-1, *[1] * (output.dim() - 1)), 0)

    @contextmanager
    def open_to(self, rows: Tensor) -> Iterator[None]:
        """Within this context only rows that are True use the adapter; afterwards all do."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None


def gate_of(model: Any) -> Gate | None:
    """Return the gate of a model whose adapter can be bypassed by row, else None."""
    return getattr(model, "adapter_gate", None)


def without_adapter(model: Any) -> Any:
    """Return the model behind a gated adapter, or `model` itself if it has no gate."""
    gate = gate_of(model)
    return gate.base if gate else model


def with_adapter(model: Any, folder: Path) -> Any:
    """Return `model` with the PEFT adapter in a folder; the two share all of the model's weights.

    The adapter's own weights are float32, which is PEFT's default. Raises BadInput naming the
    folder when it holds no adapter of weights (such as LoRA), or one for another model.
    """
    # PEFT imports bitsandbytes, which warns of a kernel that it would like to download.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import PeftModel

    kind = adapter_config(folder).get("peft_type", "none")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing"
            )  # about PEFT's own code
            # PEFT only warns of weights missing from the file, which would stay untrained.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            adapted = PeftModel.from_pretrained(_sharing_copy(model), folder, is_trainable=False)
    except (BadInput, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged or foreign adapter can raise many types
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
    """Return a folder's adapter_config.json.

    Raises BadInput if it cannot be read, or if there is no adapter_model.safetensors beside it.
    """
    path = folder / "adapter_config.json"
    try:
        if (folder / "adapter_model.safetensors").is_file():  # its hash is in the run's name
            return json.loads(path.read_text("utf-8"))
        raise FileNotFoundError
    except (OSError, ValueError):
        raise BadInput(
            f"ADAPTER = {str(folder)!r}; allowed: a folder with a PEFT adapter, "
            "adapter_config.json and adapter_model.safetensors"
        ) from None


def sharing(model: Any) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` under which a copy of a model shares all of its weights."""
    kept = [*model.parameters(), *model.buffers()]
    # On first use LLM.int8 moves what it keeps with a weight into the layer's state.
    kept += [m.state for m in model.modules() if hasattr(m, "state") and hasattr(m.state, "CB")]
    gate = gate_of(model)
    return {id(one): one for one in ([*kept, gate] if gate else kept)}


def _sharing_copy(model: Any) -> Any:
    return copy.deepcopy(model, sharing(model))


def _low_rank_products(tree: Any) -> list[nn.Module]:
    """Return the second low-rank product of each adapted layer; [] if the adapter does more.

    An adapter that replaces whole layers, trains biases or rescales weights (DoRA) cannot be
    bypassed by row, and needs a forward pass of its own.
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
