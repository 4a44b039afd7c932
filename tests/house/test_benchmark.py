"""The benchmark: its peers do the same work as the engine, and its page shows its figures."""

import argparse
import json
import math

import pytest
import torch

import benchmark
from adapters import save_adapter
from benchmarks import adapters, exactness, gpu, inspect_peers, mistral_shape, results, scale, speed
from benchmarks.subject import Subject
from decoding import TINY_CONTEXTS
from logit_amplification.engine.interface import Cell
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits.amplification import amplify
from logit_amplification.machine import sizes
from logit_amplification.models.loading import load_model
from logit_amplification.settings import load_settings

CELLS = [Cell(name, alpha, 0) for name in TINY_CONTEXTS for alpha in (0.0, 1.0, 2.5)]


@pytest.fixture
def subject(tiny):
    """The tiny model with so small a nucleus that every draw is the favourite."""
    settings = load_settings(model="demo", temperature=1, top_p=1e-6, max_new_tokens=12)
    return Subject(tiny, settings, TINY_CONTEXTS, CELLS)


def answers(subject):
    return {g.cell: g.token_ids for g in subject.generate(CELLS, slots=5)}


def test_the_peers_amplify_as_the_engine_does(subject):
    """Else their speed would be that of something else."""
    ours = [answers(subject)[cell] for cell in CELLS]
    assert list(speed.generate_batched(subject, CELLS, 7)) == ours
    assert list(speed.generate_guided(subject, CELLS)) == ours


@pytest.mark.parametrize("kind", ["eager", "packed"])
def test_the_ways_with_an_adapter_read_the_same(tiny, tiny_folder, tmp_path, kind):
    folder = save_adapter(tiny.model, tmp_path / "adapter")
    loaded = load_model(tiny_folder, quantization="none", dtype="float32", adapter=folder)
    found = {}
    with torch.inference_mode():
        for name, (slots, step) in adapters.ways(loaded, kind).items():
            step()
            step()
            found[name] = torch.cat(slots.logits())
    ours = found.pop(adapters.GATED)
    plain = found.pop(adapters.PLAIN)
    assert len(found) == (2 if kind == "eager" else 1)
    assert all(torch.allclose(ours, other, atol=1e-4) for other in found.values())
    assert not torch.allclose(ours, plain, atol=0.1)


def test_the_bare_forward_reads_what_the_engine_reads(subject):
    """They run, and take the time of a forward at least."""
    for kind in ("eager", "packed"):
        for steps in (speed.engine_steps, speed.bare_steps):
            assert steps(subject, CELLS[:4], kind, 0) > 0.1
    assert speed.static_steps(subject, CELLS[:4], 0) > 0.1
    assert subject.model.config._attn_implementation == "sdpa"


def test_forced_texts_give_the_logits_they_were_drawn_from(subject):
    texts = torch.tensor([answers(subject)[CELLS[1]]])
    for forwards in (1, 2):
        logits = amplify(*exactness.forced(subject, [CELLS[1]], texts, forwards=forwards), 1.0)
        assert logits.argmax(-1)[:, 0].tolist() == texts[0].tolist()


def test_equal_cells_are_counted(subject):
    made = {g.cell: g for g in subject.generate(CELLS, slots=5)}
    assert exactness._equal(made, made) == {
        "cells": len(CELLS),
        "same tokens": len(CELLS),
        "same measures": len(CELLS),
    }
    other = {g.cell: g for g in subject.generate(CELLS, slots=5, rule=lambda a, b, alpha: -a)}
    assert exactness._equal(other, made)["same tokens"] == 0


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_a_model_of_a_shape_is_whole(tmp_path, monkeypatch, quantization):
    """Random weights in every place, loaded as a model of the hub is; here in a small shape."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    folder = tmp_path / ".cache" / "mistral-7b-random"
    mistral_shape.write_random_mistral(folder, sizes.MISTRAL_7B | small | heads, layers_per_file=2)
    assert len(list(folder.glob("*.safetensors"))) == 4
    monkeypatch.setattr(mistral_shape, "ROOT", tmp_path)
    options = argparse.Namespace(quantization=[quantization], prompt=5, steps=4, widths=[2])
    options.shape = "mistral-7b"
    (row,) = mistral_shape.true_size(options)
    assert row["quantization"] == quantization and float(row["tokens/s"]) > 0


def test_the_script_for_a_gpu_checks_first_and_measures_then(tmp_path, monkeypatch, capsys):
    """On whatever device is here, in a tiny shape."""
    monkeypatch.setattr(mistral_shape, "ROOT", tmp_path)
    monkeypatch.setattr(mistral_shape, "in_a_process", in_this_process)
    options = argparse.Namespace(shape="tiny", quantization=["none"], widths=[1, 2])
    options.prompt, options.steps = 5, 4
    rows = gpu.gpu(options)
    assert [row["slots"] for row in rows] == [1, 2]
    assert all(float(row["of the forward alone"]) > 0.2 for row in rows)
    told = capsys.readouterr().out
    assert "The engine makes the tokens of `generate`, greedily, in float32. Yes." in told
    assert "A cell comes out the same alone as beside others. Yes." in told


def in_this_process(name, *flags):
    parsed = argparse.Namespace(shape="tiny", quantization=["none"], widths=[1, 2])
    parsed.prompt, parsed.steps = 5, 4
    assert name == "true-size" and "--shape=tiny" in flags
    return mistral_shape.true_size(parsed)


def test_nothing_is_measured_where_a_check_fails(monkeypatch):
    made = gpu.run_small

    def wrong(*args, **options):
        generations = made(*args, **options)
        list(generations.values())[-1].token_ids[-1] += 1
        return generations

    monkeypatch.setattr(gpu, "run_small", wrong)
    with pytest.raises(BadInput, match="engine and generate differ on this machine"):
        gpu.gpu(argparse.Namespace(shape="tiny", quantization=["none"], widths=[1]))


def test_a_float32_head_gives_the_float32_logits(tiny):
    head = exactness.Float32Head(tiny.model.lm_head)
    hidden = torch.randn(2, 1, tiny.model.config.hidden_size)
    assert torch.equal(head(hidden), tiny.model.lm_head(hidden))
    assert head(hidden.bfloat16()).dtype == torch.float32


def test_divergence_is_zero_for_the_same_and_counts_other_favourites():
    one = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    kl, changed = exactness.divergence(one, one)
    assert kl.tolist() == [[0.0, 0.0]] and changed == 0
    kl, changed = exactness.divergence(one, one.flip(-1))
    assert changed == 1 and kl[0, 0] == pytest.approx(math.tanh(0.5))


def test_an_unknown_measurement_is_one_line(capsys):
    assert benchmark.main(["speed"]) == 2
    assert "no measurement 'speed'; allowed: peers, vllm, limit" in capsys.readouterr().out


def test_the_pages_show_the_figures_that_were_measured():
    measured = json.loads((ROOT / "docs" / "performance.json").read_text("utf-8"))
    pages = [document.read_text("utf-8") for document in results.DOCUMENTS]
    assert set(measured) | {"gpu"} == set(benchmark.MEASUREMENTS)  # no GPU was at hand so far
    for page in pages:
        assert results.with_tables(page, measured) == page
    for name in measured:
        assert any(f"<!-- {name} -->\n| " in page for page in pages), name


def test_the_readme_quotes_the_measured_ratio():
    measured = json.loads((ROOT / "docs" / "performance.json").read_text("utf-8"))
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())

    def faster_than(peer):
        ratios = [r["ours is faster by"] for r in measured["peers"]["rows"] if peer in r["made by"]]
        return [float(ratio.split()[0]) for ratio in ratios]  # in bfloat16, in float32

    half, whole = faster_than("guidance_scale")
    assert f"{half:.0f} times the tokens per second of transformers' `generate" in readme
    assert f"in bfloat16 and {whole:.0f} times in float32" in readme
    half, whole = faster_than("DynamicCache")
    assert f"{half:.1f} and {whole:.1f} times those of a batched loop" in readme


def test_an_evaluation_runs_with_every_provider(monkeypatch):
    """The same answers of inspect's own provider and ours, where the model is alone."""
    for name, value in {"VERBS": ("Describe",), "NOUNS": ("tea", "rain"), "TOKENS": 6}.items():
        monkeypatch.setattr(inspect_peers, name, value)
    models = inspect_peers.providers("float32")
    counts = {name: inspect_peers.evaluate(model) for name, model in models.items()}
    for model in models.values():
        model.api.close()
    assert counts[inspect_peers.HF] == counts[inspect_peers.ALONE] == 12


def test_sharing_and_merging_are_measured_on_whole_runs(tmp_path):
    """Small, to see that it runs: every cell is claimed once, and found again."""
    assert scale.claim_all(tmp_path, cells=200, processes=3) > 0
    made = scale.merge(argparse.Namespace(cells=700, slots=4))
    assert made["cells"] == 700 and float(made["reading, s"]) >= 0
