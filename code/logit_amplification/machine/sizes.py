"""How many bytes a model and its batch take, estimated from the architecture.

Standard library only, and Python 3.8 reads it: the readiness check uses it before anything is
installed, the engine for the same question afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEP = 32  # the memory of a row is a multiple of so many positions
# More did not pay on two cores (docs/LOG.md). A GPU's number is a guess: none was at hand.
MOST_AUTO_SLOTS = {"cpu": 48, "cuda": 128, "mps": 48, "split": 48}
# Rows of float32 logits that a slot takes at the busiest moment of a step: A, B, the model's own
# output, the amplified row, the rule's difference, the sampler's and the measures' copies.
LOGITS_ROWS = 12

# What config.json says of the two models whose size can be estimated before they are fetched.
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
ESTIMATED_TYPES = ("llama", "mistral")  # gated MLP, no biases, root-mean-square norms


def cache_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Layers, key-value heads and head size of a configuration."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return config["num_hidden_layers"], config.get("num_key_value_heads") or heads, size


def parameters(config: Mapping[str, Any]) -> dict[str, int]:
    """Count the parameters of a Llama or Mistral: in linear layers, embeddings, norms.

    `linear_rows` is the number of outputs of all linear layers. Raises ValueError for other types.
    """
    if config.get("model_type") not in ESTIMATED_TYPES:
        allowed = ", ".join(ESTIMATED_TYPES)
        raise ValueError(f"model type {config.get('model_type')!r}; allowed: {allowed}")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers, kv_heads, head = cache_shape(config)
    queries, keys = config["num_attention_heads"] * head, kv_heads * head
    copies = 1 if config.get("tie_word_embeddings") else 2  # the output head may be the embedding
    return {
        "linear": layers * (2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner),
        "linear_rows": layers * (queries + 2 * keys + 2 * hidden + 2 * inner),
        "embeddings": copies * config["vocab_size"] * hidden,
        "norms": (2 * layers + 1) * hidden,
    }


def weight_bytes(config: Mapping[str, Any], quantization: str, itemsize: int) -> int:
    """Return the bytes of the weights: `none`, `8bit` (LLM.int8) or `4bit` (NF4, nested).

    Only linear layers are quantised, not the output head; the rest has `itemsize` bytes a number.
    LLM.int8 keeps a float32 scale per row. NF4 keeps 4 bits a weight, an 8-bit scale per 64 of
    them and a float32 per 256 scales (Dettmers et al. 2023, section 3).
    """
    count = parameters(config)
    whole = itemsize * (count["embeddings"] + count["norms"])
    linear = count["linear"]
    if quantization == "none":
        return whole + itemsize * linear
    if quantization == "8bit":
        return whole + linear + 4 * count["linear_rows"]
    return whole + linear // 2 + linear // 64 + 4 * linear // (64 * 256)


def slot_bytes(
    cache: tuple[int, int, int], vocabulary: int, length: int, itemsize: int
) -> dict[str, int]:
    """Return what one slot takes: two rows of `length` positions, and its rows of logits."""
    layers, heads, size = cache
    position = 2 * layers * heads * size * itemsize
    return {
        "keys_and_values": 2 * round_up(length) * position,
        "logits": LOGITS_ROWS * 4 * vocabulary,
    }


def choose_slots(device: str, bytes_per_slot: int, free_bytes: int) -> int:
    """Return how many slots fit into half of the memory that is free beside the weights."""
    return max(0, min(MOST_AUTO_SLOTS[device], free_bytes // 2 // bytes_per_slot))


def round_up(length: int) -> int:
    """Return the multiple of STEP that `length` fits into."""
    return -(-length // STEP) * STEP
