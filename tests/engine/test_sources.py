"""A and B read with other weights: an adapter on and off, two checkpoints, a base of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import save_tiny_mistral
from peft import PeftModel

from adapters import save_adapter
from decoding import GREEDY, LENGTH, TINY_CONTEXTS, demo_contexts
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.batch.slots import Slots
from logit_amplification.engine.forward import next_logits
from logit_amplification.engine.interface import Cell, Contrast, Request, Stream
from logit_amplification.engine.reference import LoopEngine
from logit_amplification.errors import BadInput
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.models import adapters
from logit_amplification.models.loading import load_model

ALPHAS = (-1.0, 0.0, 0.5, 2.0)


@pytest.fixture(scope="session")
def tiny_adapter(tiny, tmp_path_factory):
    return save_adapter(tiny.model, tmp_path_factory.mktemp("adapters") / "tiny")


@pytest.fixture
def adapted(tiny_folder, tiny_adapter):
    return load_model(tiny_folder, quantization="none", dtype="float32", adapter=tiny_adapter)


def peft_model(model, folder):
    """A model of its own with the adapter, as PEFT makes it."""
    made = PeftModel.from_pretrained(copy.deepcopy(model), folder)
    return made.base_model.model.eval()


def greedy_by_hand(models, contexts, alpha, length=LENGTH, stop_ids=()):
    """Tokens of base + alpha * (a - b), each context through a model of its own, no batching."""
    fed, caches = [list(ids) for ids in contexts], [None] * len(contexts)
    tokens = []
    while len(tokens) < length:
        logits = []
        for number, (model, ids) in enumerate(zip(models, fed, strict=True)):
            row, caches[number] = next_logits(model, ids, caches[number])
            logits.append(row[0])
        *base, a, b = logits
        token = int(((base or [a])[0] + alpha * (a - b)).argmax())
        tokens.append(token)
        fed = [[token]] * len(contexts)
        if token in stop_ids:
            break
    return tokens


def engine_tokens(sources, contexts, names, *, stop_ids=frozenset(), length=LENGTH, **options):
    contrasts = {
        name: Contrast(
            *(Stream(tuple(ids), source) for ids, source in zip(two, names[name], strict=True))
        )
        for name, two in contexts.items()
    }
    cells = [Cell(name, alpha, 0) for name in contexts for alpha in ALPHAS]
    request = Request(GREEDY, 0, length, stop_ids)
    engine = BatchedEngine(sources, 5, **options)
    return {g.cell: g.token_ids for g in engine.generate(cells, contrasts, request)}


def expected_tokens(plain, contexts, names, stop_ids=frozenset(), length=LENGTH):
    return {
        Cell(name, alpha, 0): greedy_by_hand(
            [plain[source] for source in reversed_base(names[name])],
            reversed_base(ids),
            alpha,
            length,
            stop_ids,
        )
        for name, ids in contexts.items()
        for alpha in ALPHAS
    }


def reversed_base(three):
    """(a, b, base) as (base, a, b); two stay as they are."""
    return (three[2], three[0], three[1]) if len(three) == 3 else three


@pytest.mark.parametrize("forwards", [1, 2])
def test_an_adapter_on_and_off_gives_the_tokens_of_two_plain_models(
    adapted, tiny, tiny_adapter, forwards
):
    plain = {
        "model": peft_model(tiny.model, tiny_adapter),
        "model_b": tiny.model,
    }
    contexts = TINY_CONTEXTS | {"same": (TINY_CONTEXTS["one"][0],) * 2}
    names = dict.fromkeys(contexts, ("model", "model_b"))
    names["null"] = ("model", "model")
    names["three"] = ("model_b", "model")  # swapped
    made = engine_tokens(adapted.sources, contexts, names, forwards=forwards)
    assert made == expected_tokens(plain, contexts, names)
    assert made[Cell("same", -1.0, 0)] != made[Cell("same", 2.0, 0)]
    assert len({tuple(made[Cell("null", alpha, 0)]) for alpha in ALPHAS}) == 1


def test_swapped_pairs_fill_every_slot_of_two_forwards(adapted, tiny, tiny_adapter):
    plain = {"model": peft_model(tiny.model, tiny_adapter), "model_b": tiny.model}
    names = dict.fromkeys(TINY_CONTEXTS, ("model_b", "model"))
    made = engine_tokens(adapted.sources, TINY_CONTEXTS, names, forwards=2)
    assert made == expected_tokens(plain, TINY_CONTEXTS, names)


def test_the_demo_models_adapter_gives_the_tokens_of_two_plain_models(demo, tmp_path):
    folder = save_adapter(demo.model, tmp_path / "adapter", init_lora_weights="gaussian")
    with_it = PeftModel.from_pretrained(copy.deepcopy(demo.model), folder).eval()
    with torch.no_grad():
        for name, weight in with_it.named_parameters():
            if "lora_B" in name:  # zero as PEFT begins
                weight.normal_(0, 0.02)
    with_it.save_pretrained(folder)
    loaded = load_model("demo", dtype="float32", adapter=folder)
    (both,) = demo_contexts(demo, "persona-pirate").values()
    contexts = {"pair": both, "same": (both[0], both[0])}
    names = dict.fromkeys(contexts, ("model", "model_b"))
    made = engine_tokens(loaded.sources, contexts, names, stop_ids=loaded.stop_ids)
    plain = {"model": with_it.base_model.model, "model_b": demo.model}
    assert made == expected_tokens(plain, contexts, names, loaded.stop_ids)
    assert made[Cell("same", -1.0, 0)] != made[Cell("same", 0.0, 0)]


def test_without_its_adapter_a_model_is_the_base_model_bit_for_bit(adapted, tiny):
    ids = TINY_CONTEXTS["one"][0]
    off, _ = next_logits(adapted.sources["model_b"], ids)
    on, _ = next_logits(adapted.model, ids)
    assert torch.equal(off, next_logits(tiny.model, ids)[0])
    assert not torch.allclose(on, off, atol=0.1)


def test_weights_are_in_memory_once(adapted):
    base = {part.data_ptr() for part in adapted.sources["model_b"].parameters()}
    more = {part.data_ptr(): part for part in adapted.model.parameters()}
    assert base <= set(more)
    own = sum(more[place].nbytes for place in set(more) - base)
    off = adapted.sources["model_b"]
    plain = sum(part.nbytes for part in (*off.parameters(), *off.buffers()))
    assert adapted.weight_bytes() == plain + own


def test_an_exception_in_a_step_leaves_the_adapter_as_it_was(adapted, monkeypatch):
    ids = TINY_CONTEXTS["one"][0]
    before = [next_logits(model, ids)[0] for model in adapted.sources.values()]
    slots = Slots(list(adapted.sources.values()), 2, 64, kind="packed")
    from logit_amplification.engine.batch.cache import prefill

    slots.fill(0, [prefill(model, ids) for model in adapted.sources.values()])
    for module in slots.batches[0].model.modules():
        if module.__class__.__name__ == "MistralDecoderLayer":
            module.forward = lambda *given, **more: 1 / 0
    with pytest.raises(ZeroDivisionError):
        slots.forward(torch.zeros(2, dtype=torch.long))
    assert adapters.gate_of(adapted.model).rows is None
    after = [next_logits(model, ids)[0] for model in adapted.sources.values()]
    assert all(map(torch.equal, before, after))


def test_one_forward_reads_both_ways(adapted):
    slots = Slots(list(adapted.sources.values()), 3, 64)
    assert len(slots.batches) == 1 and slots.batches[0].source is adapted.model


def test_an_adapter_whose_rows_cannot_be_told_apart_is_read_by_itself(tiny, tiny_folder, tmp_path):
    folder = save_adapter(tiny.model, tmp_path / "dora", use_dora=True)
    loaded = load_model(tiny_folder, quantization="none", dtype="float32", adapter=folder)
    assert len(Slots(list(loaded.sources.values()), 3, 64).batches) == 2
    plain = {
        "model": peft_model(tiny.model, folder),
        "model_b": tiny.model,
    }
    names = dict.fromkeys(TINY_CONTEXTS, ("model", "model_b")) | {"null": ("model", "model")}
    made = engine_tokens(loaded.sources, TINY_CONTEXTS, names)
    assert made == expected_tokens(plain, TINY_CONTEXTS, names)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_an_adapter_on_a_quantised_model_shares_its_weights(
    tiny, tiny_folder, tiny_adapter, quantization
):
    loaded = load_model(
        tiny_folder, quantization=quantization, dtype="float32", adapter=tiny_adapter
    )
    alone = load_model(tiny_folder, quantization=quantization, dtype="float32")
    ids = TINY_CONTEXTS["one"][0]
    on, off = (next_logits(model, ids)[0] for model in loaded.sources.values())
    assert torch.equal(off, next_logits(alone.model, ids)[0])
    assert not torch.allclose(on, off, atol=0.1)
    names = dict.fromkeys(TINY_CONTEXTS, ("model", "model_b"))
    made = engine_tokens(loaded.sources, TINY_CONTEXTS, names, forwards=2)
    assert made[Cell("null", -1.0, 0)] != made[Cell("null", 2.0, 0)]


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """Another checkpoint of the tiny model: smaller, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "other"
    return save_tiny_mistral(folder, num_hidden_layers=1, hidden_size=32, initializer_range=0.5)


def test_two_checkpoints_and_a_base_give_the_tokens_of_plain_models(
    tiny, tiny_folder, other_folder, tmp_path
):
    base_folder = save_tiny_mistral(tmp_path / "base", num_hidden_layers=3)
    given = {"quantization": "none", "dtype": "float32"}
    loaded = load_model(tiny_folder, model_b=other_folder, model_base=base_folder, **given)
    plain = {
        "model": tiny.model,
        "model_b": load_model(other_folder, **given).model,
        "model_base": load_model(base_folder, **given).model,
    }
    two = {name: plain[name] for name in ("model", "model_b")}
    names = dict.fromkeys(TINY_CONTEXTS, ("model", "model_b")) | {"null": ("model", "model")}
    made = engine_tokens({n: loaded.sources[n] for n in two}, TINY_CONTEXTS, names)
    assert made == expected_tokens(two, TINY_CONTEXTS, names)
    contexts = {name: (*ids, ids[0]) for name, ids in TINY_CONTEXTS.items()}
    names = {name: (*two, "model_base") for name, two in names.items()}
    made = engine_tokens(loaded.sources, contexts, names)
    assert made == expected_tokens(plain, contexts, names)


def test_a_vocabulary_with_other_ids_is_refused_in_one_line(tiny_folder, tmp_path):
    other = save_tiny_mistral(tmp_path / "other")
    path = other / "tokenizer.json"
    text = path.read_text("utf-8")
    path.write_text(
        text.replace('"A": 35', '"A": 999').replace('"B": 36', '"B": 35').replace("999", "36")
    )
    given = {"quantization": "none", "dtype": "float32"}
    with pytest.raises(BadInput, match=r"MODEL_B = .*'A' has a different id"):
        load_model(tiny_folder, model_b=other, **given)
    wide = save_tiny_mistral(tmp_path / "wide", vocab_size=300)
    with pytest.raises(BadInput, match=r"MODEL_BASE = .*300 logits, and .* has 259"):
        load_model(tiny_folder, model_base=wide, **given)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "allowed: a folder with a PEFT adapter"),
        ({"target_modules": ["nothing"]}, "it does not fit 'mistral' weights"),
    ],
)
def test_a_bad_adapter_is_refused_in_one_line(tiny, tiny_folder, tmp_path, config, told):
    import json

    folder = tmp_path / "adapter"
    folder.mkdir()
    if config:
        save_adapter(tiny.model, folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(BadInput, match=told) as caught:
        load_model(tiny_folder, quantization="none", dtype="float32", adapter=folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_size_or_with_missing_weights_is_refused(
    tiny, tiny_folder, other_folder, tmp_path
):
    from safetensors.torch import load_file, save_file

    given = {"quantization": "none", "dtype": "float32"}
    other = load_model(other_folder, **given)
    with pytest.raises(BadInput, match="it does not fit"):
        load_model(tiny_folder, adapter=save_adapter(other.model, tmp_path / "other"), **given)
    folder = save_adapter(tiny.model, tmp_path / "part")
    path = folder / "adapter_model.safetensors"
    kept = {name: t for name, t in load_file(path).items() if "layers.1" not in name}
    save_file(kept, path)
    with pytest.raises(BadInput, match="missing adapter keys"):
        load_model(tiny_folder, adapter=folder, **given)


def test_a_loop_of_ones_own_reads_one_model(adapted):
    contrast = Contrast(Stream((1, 2), "model"), Stream((1, 2), "model_b"))
    request = Request(make_sampler(0.7), 0, 3)
    with pytest.raises(BadInput, match="a loop of your own reads one model"):
        list(LoopEngine(adapted.model).generate([Cell("x", 0.0, 0)], {"x": contrast}, request))
