"""Small random adapters for the models of the tests, as PEFT writes them."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model


def save_adapter(model, folder, seed=3, **options):
    """Write an adapter whose weights are random and not small."""
    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    config = LoraConfig(**{**given, "task_type": "CAUSAL_LM", **options})
    get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder
