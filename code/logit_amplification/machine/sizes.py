"""Estimate how much memory a model and its batch need, from the model's architecture.

Standard library only, and compatible with Python 3.8, because the readiness check uses it before
anything is installed. The engine uses the same estimates afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEP = 32  # rows are allocated in multiples of this many positions
# Larger batches brought no gain on two cores (docs/LOG.md). The number for GPUs is a guess.
MOST_AUTO_SLOTS = {"cpu": 48, "cuda": 128, "mps": 48, "split": 48}
# Rows of float32 logits per slot at the peak of a step: A, B, the model's own output, the amplified
# row, the rule's difference, and the copies of the sampler and the measures.
LOGITS_ROWS = 12

# From config.json of the two models whose size can be estimated before they are downloaded.
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
ESTIMATED_TYPES = ("llama", "mistral")  # gated MLP, no biases, RMS norms


def cache_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number of layers, of key-value heads, and the head size of a configuration."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return config["num_hidden_layers"], config.get("num_key_value_heads") or heads, size


def parameters(config: Mapping[str, Any]) -> dict[str, int]:
    """Count the parameters of a Llama or Mistral model: in linear layers, embeddings and norms.

    config: as in config.json. `linear_rows` is the total number of outputs of the linear layers.
    Raises ValueError for other model types.
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
    """Return the bytes of the weights at `none`, `8bit` (LLM.int8) or `4bit` (NF4, nested).

    Only linear layers are quantised, without the output head; all other weights take `itemsize`
    bytes each. LLM.int8 keeps a float32 scale per row. NF4 keeps 4 bits per weight, an 8-bit scale
    per 64 weights and a float32 per 256 scales (Dettmers et al. 2023, section 3). Raises ValueError
    as `parameters` does.
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
    """Return the bytes that one slot takes: two rows of `length` positions, and rows of logits.

    cache: layers, key-value heads and head size (`cache_shape`). itemsize: bytes per cached number.
    """
    layers, heads, size = cache
    position = 2 * layers * heads * size * itemsize
    return {
        "keys_and_values": 2 * round_up(length) * position,
        "logits": LOGITS_ROWS * 4 * vocabulary,
    }


def choose_slots(device: str, bytes_per_slot: int, free_bytes: int) -> int:
    """Return the number of slots that fit in half of the memory left free by the weights.

    At most `MOST_AUTO_SLOTS` of the device; 0 if not even one fits.
    """
    return max(0, min(MOST_AUTO_SLOTS[device], free_bytes // 2 // bytes_per_slot))


def round_up(length: int) -> int:
    """Return the smallest multiple of STEP that is at least `length`."""
    return -(-length // STEP) * STEP
