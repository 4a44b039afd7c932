"""The model as a step on the CPU runs it: the same parameters, behind products prepared for them.

oneDNN brings each weight into the order in which its kernel reads it, once. The model itself stays
as it is, and contexts are read with it. What a step gains: docs/PERFORMANCE.md, "Steps".
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

# Of the machine's memory: what weights and their copy may take. Not of what is free just now, for
# the kind of step is a part of a run's name and must be the same when the run goes on.
SHARE_OF_MEMORY = 0.5


def can_pack(model: Any) -> bool:
    """Whether oneDNN multiplies by this model's weights, and memory has room for a second copy."""
    if model.device.type != "cpu" or getattr(model, "is_quantized", False) or is_split(model):
        return False
    if not torch.backends.mkldnn.is_available() or not _multiplies(model.dtype):
        return False
    packed = sum(linear.weight.nbytes for linear in _linear_layers(model))
    held = model.get_memory_footprint() + packed
    return packed > 0 and held <= SHARE_OF_MEMORY * hardware.memory().total


def packed_copy(model: Any) -> Any:
    """Return a model with the parameters of `model`, and packed weights where it multiplies.

    Only steps feed it, so it attends in slots for good: to set that around each takes 0.8 ms.
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
    """A linear layer whose product takes the weight in oneDNN's own order."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = _Packed(linear.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs @ weight.T + bias: (..., in) -> (..., out)."""
        return torch.ops.logit_amplification.packed_linear(inputs, self.weight, self.bias)


class _Packed:
    """One packed weight; found by its original's address for as long as a layer holds it."""

    def __init__(self, weight: Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        _packed[weight.data_ptr()] = self


_packed: weakref.WeakValueDictionary[int, _Packed] = weakref.WeakValueDictionary()


# An operator of our own, because the compiler can take a packed weight for a constant only: what
# it sees is the original, the same graph for every layer.
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
    """A linear layer and nothing else: what hangs on it, as an adapter's gate, would be lost."""
    return type(module) is nn.Linear and not module._forward_hooks


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a kernel for products in this format on this processor."""
    if dtype == torch.float32:
        return True
    found = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in found and found[dtype]()
