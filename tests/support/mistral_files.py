"""The files of a Mistral as the hub has them: the real tokenizer, out of mistral-common."""

from __future__ import annotations

import json
from pathlib import Path

import mistral_common
import sentencepiece
import torch
from conftest import MISTRAL_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import MistralConfig, MistralForCausalLM
from transformers.convert_slow_tokenizer import generate_merges

MODEL_FILE = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
CONTROLS = ("<unk>", "<s>", "</s>")
# What newer commits of the model's repository have: a system text, and spaces around the turns.
NEWER_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('conversation roles must alternate') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.first and system is defined %}"
    "{{- ' [INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}"
    "{%- else %}{{- raise_exception('only user and assistant roles') }}{%- endif %}"
    "{%- endfor %}"
)
TEMPLATES = {"published": MISTRAL_TEMPLATE, "newer": NEWER_TEMPLATE}


def save_tokenizer(folder: Path, template: str = "published", spaces: str = "prepended") -> Path:
    """Write tokenizer.json and its configuration in the ways that converters have written them.

    spaces: `prepended` to every piece by a normalizer (transformers' "legacy"), or by `metaspace`
    to the first piece only.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(MODEL_FILE))
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocabulary.items()}
    merges = generate_merges(vocabulary, scores)
    tokenizer = Tokenizer(
        BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if spaces == "prepended":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in CONTROLS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATES[template],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_mistral(folder: Path, **overrides) -> Path:
    """Write a tiny random Mistral with the real tokenizer and 32,000 entries of vocabulary."""
    config = {
        "vocab_size": 32_000,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "initializer_range": 0.35,
    }
    torch.manual_seed(3)
    model = MistralForCausalLM(MistralConfig(**(config | overrides))).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="3MB")  # in several files, as the real one
    return save_tokenizer(folder)
