"""Models for the tests: a tiny random Mistral on disk, and the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.locations import ROOT
from logit_amplification.models.loading import LoadedModel, load_model
from logit_amplification.reports.figures import gallery
from logit_amplification.settings import Settings, load_settings

# The template that Mistral 7B Instruct v0.2 was published with: it refuses the system role.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path_factory):
    """A developer's .env or environment must not change what the tests see."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    nowhere = tmp_path_factory.mktemp("no-env") / ".env"
    monkeypatch.setattr("logit_amplification.settings.ENV_FILES", (nowhere,))


def save_tiny_mistral(folder: Path, **overrides) -> Path:
    """Save a random Mistral with grouped-query attention and a byte-level tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = MISTRAL_TEMPLATE
    fast.save_pretrained(folder)
    config = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.35,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(7)
    MistralForCausalLM(MistralConfig(**(config | overrides))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return save_tiny_mistral(tmp_path_factory.mktemp("models") / "tiny-mistral")


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> LoadedModel:
    return load_model(
        load_settings(model=str(tiny_folder), quantization="none", dtype="float32", device="cpu")
    )


@pytest.fixture(scope="session")
def demo() -> LoadedModel:
    """The demo model in float32: there the engine and everybody else agree to the token."""
    return load_model(load_settings(model="demo", dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def notebook_path() -> Path:
    return ROOT / "experiment_logit_amplification.ipynb"


# ------------------------------------------------------------------------------- small sweeps

PROMPTS = (
    "id,category,a_user,b_user,a_system,b_system\n"
    "greet,x,Say hello to me.,Say goodbye to me.,,\n"
    "tone,y,What is tea?,,Be rude.,Be kind.\n"
)


@pytest.fixture
def settings(tmp_path, tiny_folder):
    return load_settings(
        model=str(tiny_folder),
        quantization="none",
        dtype="float32",
        device="cpu",
        alphas=[0, 0.5, 2],
        samples=2,
        max_new_tokens=6,
        arms="full",
        slots=4,
        data_dir=tmp_path / "data",
        visualizations_dir=tmp_path / "visualizations",
    )


@pytest.fixture
def generated(monkeypatch):
    """The cells that the engine is asked for, one list per sweep."""
    asked = []
    generate = BatchedEngine.generate

    def watched(self, cells, contexts, request):
        asked.append(list(cells))
        return generate(self, asked[-1], contexts, request)

    monkeypatch.setattr(BatchedEngine, "generate", watched)
    return asked


@pytest.fixture
def few_figures(monkeypatch):
    """One figure instead of all, for sweeps whose figures are not what is tested."""
    draw_texts = gallery.draw_texts
    monkeypatch.setattr(
        gallery, "draw_all", lambda run, records: {"text_by_alpha": draw_texts(run, records)}
    )


@pytest.fixture
def flags(tmp_path, tiny_folder):
    """Flags of a small sweep on the tiny model."""
    return flags_in(tmp_path, tiny_folder)


def flags_in(folder: Path, tiny_folder: Path) -> dict:
    prompts = folder / "prompts.csv"
    prompts.write_text(PROMPTS)
    return {
        "model": tiny_folder,
        "quantization": "none",
        "dtype": "float32",
        "device": "cpu",
        "prompts": prompts,
        "alphas": "0,1",
        "max-new-tokens": 5,
        "arms": "full",
        "slots": 4,
        "data-dir": folder / "out" / "data",
        "visualizations-dir": folder / "out" / "figures",
    }
