"""A copy of the model for CPU steps: the same parameters, with weights packed by oneDNN.

oneDNN reorders each weight once into the layout that its kernel reads. The model itself is
unchanged, and contexts are read with it. For the speed of a step see docs/PERFORMANCE.md, "Decode
steps and the hardware limit".
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ...machine import hardware
from ...machine.devices import is_split
from ...models.adapters import sharing
from ..batch.cache import is_exchangeable

# The share of the machine's memory that weights and their copy may take. Total memory rather than
# free memory, because the kind of step is part of a run's name and must be the same when the run is
# resumed.
SHARE_OF_MEMORY = 0.5


def can_pack(model: Any) -> bool:
    """Whether oneDNN can multiply by this model's weights and memory holds a second copy."""
    if model.device.type != "cpu" or getattr(model, "is_quantized", False) or is_split(model):
        return False
    if not torch.backends.mkldnn.is_available() or not _multiplies(model.dtype):
        return False
    packed = sum(linear.weight.nbytes for linear in _linear_layers(model))
    held = model.get_memory_footprint() + packed
    return packed > 0 and held <= SHARE_OF_MEMORY * hardware.memory().total


def packed_copy(model: Any) -> Any:
    """Return a model that shares the parameters of `model` but multiplies with packed weights.

    Only steps feed it, so its attention stays set to "slots": switching it for each step takes 0.8
    ms.
    """
    copied = copy.deepcopy(model, sharing(model))
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if _is_plain(child):
                setattr(module, name, PackedLinear(child))
    if is_exchangeable(type(copied)):
        copied.set_attn_implementation("slots")
    return copied


class PackedLinear(nn.Module):
    """A linear layer that multiplies by a weight in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = _Packed(linear.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs @ weight.T + bias: (..., in) -> (..., out)."""
        return torch.ops.logit_amplification.packed_linear(inputs, self.weight, self.bias)


class _Packed:
    """One packed weight, found by the address of its original as long as a layer holds it."""

    def __init__(self, weight: Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        _packed[weight.data_ptr()] = self


_packed: weakref.WeakValueDictionary[int, _Packed] = weakref.WeakValueDictionary()


# A custom operator, because the compiler can only take a packed weight as a constant. It sees the
# original weight instead, so all layers share one graph.
@torch.library.custom_op("logit_amplification::packed_linear", mutates_args=())
def _packed_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    packed = _packed[weight.data_ptr()].weight
    return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")


@_packed_linear.register_fake
def _(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])


def _linear_layers(model: Any) -> list[nn.Linear]:
    return [module for module in model.modules() if _is_plain(module)]


def _is_plain(module: nn.Module) -> bool:
    """Whether this is exactly a linear layer: packing would lose hooks, as an adapter's gate."""
    return type(module) is nn.Linear and not module._forward_hooks


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a kernel for products in this dtype on this processor."""
    if dtype == torch.float32:
        return True
    found = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in found and found[dtype]()
