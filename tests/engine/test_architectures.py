"""Every family of decoders is equal to transformers' own generate, or refused in one line."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from decoding import GREEDY
from logit_amplification.engine.batch import cache, self_check
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Cell, Contrast, Request, Stream
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT

VOCABULARY, LENGTH = 120, 10
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
# Shorter than the contexts; as many layers as the patterns of full and sliding layers take.
SLIDING = {"sliding_window": 8, "num_hidden_layers": 6}
MLA = {
    **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16},
    **{"v_head_dim": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "head_dim": 8},
}
EQUAL = {
    "mistral": GROUPED | {"sliding_window": None},
    "mistral, sliding window": GROUPED | SLIDING,
    "ministral": GROUPED | SLIDING | {"head_dim": 16},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 32},
    "qwen2_moe": GROUPED | EXPERTS,
    "qwen3_moe": GROUPED | EXPERTS | {"head_dim": 16, "moe_intermediate_size": 32},
    "mixtral": GROUPED | EXPERTS | {"sliding_window": None},
    "gemma": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | SLIDING | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": GROUPED | SLIDING | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gpt_oss": GROUPED | EXPERTS | SLIDING | {"head_dim": 16},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "phi": {},
    "phi3": GROUPED | {"sliding_window": None},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | SLIDING,
    "smollm3": GROUPED,
    "granite": GROUPED,
    "cohere": GROUPED,
    "cohere2": GROUPED | SLIDING,
    "stablelm": GROUPED,
    "starcoder2": GROUPED | {"sliding_window": None},
    "glm": GROUPED | {"head_dim": 16},
    "glm4": GROUPED | {"head_dim": 16},
    "nemotron": GROUPED,
    "exaone4": GROUPED | SLIDING,
    "hunyuan_v1_dense": GROUPED | {"head_dim": 16},
    "ernie4_5": GROUPED | {"head_dim": 16},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "gpt_neox": {},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "rotary_dim": 8},
    "gpt_bigcode": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
}
REFUSED = {
    "bloom": {"n_head": 4, "n_layer": 2},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "recurrent_gemma": GROUPED | {"lru_width": 64, "attention_window_size": 16},
}
PAIRS = [(3, 14), (20, 4), (9, 9), (1, 17), (13, 2)]  # lengths of A and B: unequal, and one equal


def family(name, more):
    """A tiny random model of a family, made from transformers' own configuration."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(name.split(",")[0], **(COMMON | more))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # what starts as zeros or ones says nothing
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def contexts():
    random = torch.Generator().manual_seed(5)
    return {
        f"pair {number}": tuple(
            tuple(torch.randint(3, VOCABULARY, (length,), generator=random).tolist())
            for length in lengths
        )
        for number, lengths in enumerate(PAIRS)
    }


def own_answer(model, ids, **options):
    prompt = torch.tensor([ids])
    answer = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return answer[0, len(ids) :].tolist()


def expected(model, ids_a, ids_b, alpha):
    if alpha == 0:
        return own_answer(model, ids_a)
    if alpha == -1:
        return own_answer(model, ids_b)
    negative = torch.tensor([ids_b])
    return own_answer(model, ids_a, guidance_scale=1 + alpha, negative_prompt_ids=negative)


@pytest.mark.parametrize("name", EQUAL)
def test_a_family_is_equal_to_generate_and_to_guidance_scale(name):
    model = family(name, EQUAL[name])
    pairs = contexts()
    made = BatchedEngine(model, 7).generate(
        [Cell(pair, alpha, 0) for pair in pairs for alpha in (-1.0, 0.0, 1.0)],
        {pair: Contrast(*map(Stream, ids)) for pair, ids in pairs.items()},
        Request(GREEDY, seed=0, max_new_tokens=LENGTH),
    )
    found = {(g.cell.pair_id, g.cell.alpha): g.token_ids for g in made}
    assert len(found) == 15
    assert found == {cell: expected(model, *pairs[cell[0]], cell[1]) for cell in found}


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_decoded_in_slots_is_refused_by_name(name):
    model = family(name, REFUSED[name])
    with pytest.raises(BadInput, match=f"architecture '{name}'.*refused") as refused:
        BatchedEngine(model, 4)
    assert "\n" not in str(refused.value)


def without_sinks(*args, s_aux=None, **more):
    return cache.slot_attention(*args, **more)


def without_mask(module, query, key, value, attention_mask, *args, **more):
    return cache.slot_attention(
        module, query, key, value, torch.zeros_like(attention_mask), *args, **more
    )


def one_position_short(module, query, key, value, attention_mask, *args, **more):
    shorter = torch.nn.functional.pad(attention_mask, (0, 1), value=-torch.inf)[..., 1:]
    return cache.slot_attention(module, query, key, value, shorter, *args, **more)


def without_softcap(*args, softcap=None, **more):
    return cache.slot_attention(*args, **more)


def without_window(*args, sliding_window=None, **more):
    return cache.slot_attention(*args, **more)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("gpt_oss", without_sinks),
        ("llama", without_mask),
        ("llama", one_position_short),
        ("gemma2", without_softcap),
        ("mistral, sliding window", without_window),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_in_the_attention_is_caught_before_anything_is_made(name, fault, monkeypatch):
    monkeypatch.setitem(cache.AttentionInterface._global_mapping, "slots", fault)
    more = {"attn_logit_softcapping": 1.0} if name == "gemma2" else {}
    model = family(name, EQUAL[name] | more)
    with pytest.raises(BadInput, match=f"architecture '{model.config.model_type}'.*refused"):
        BatchedEngine(model, 4)


def test_what_rounding_does_is_far_below_what_is_allowed(demo):
    apart, windows = self_check.divergence(demo.model)
    assert apart < self_check.ALLOWED[torch.float32] / 10
    assert len(windows) == demo.model.config.num_hidden_layers


def test_the_table_in_the_documents_has_these_families():
    text = (ROOT / "docs" / "ARCHITECTURES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w]+)`([^|]*)\| (equal|refused)", text, flags=re.M)
    told = {(name + more.rstrip(), verdict) for name, more, verdict in rows}
    tested = {(name, "equal") for name in EQUAL} | {(name, "refused") for name in REFUSED}
    assert told == tested and len(told) >= 25
