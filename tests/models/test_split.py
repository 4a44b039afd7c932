"""A model that no single device holds: over processor and disk it makes the same tokens."""

from __future__ import annotations

import pytest

from decoding import demo_contexts, generate
from logit_amplification.engine.batch.step import kind_of_step
from logit_amplification.engine.interface import Cell
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.machine import devices, hardware, sizes
from logit_amplification.models.loading import load_model
from logit_amplification.models.spec import ModelSpec, model_spec
from logit_amplification.prompts.files import read_pairs
from logit_amplification.readiness.plan import Plan
from logit_amplification.readiness.precision import precisions
from logit_amplification.settings import load_settings

NAMES = [pair.id for pair in read_pairs(ROOT / "data" / "prompt_pairs.csv")][:2]


def test_half_of_the_demo_model_on_the_disk_makes_the_same_tokens(demo):
    given = {"model": "demo", "dtype": "float32", "max_memory": "cpu=250MB"}
    split = load_model(load_settings(**given, device="split"))
    places = set(split.model.hf_device_map.values())
    assert places == {"cpu", "disk"} and devices.is_split(split.model)
    assert not devices.is_split(demo.model)
    assert split.info == demo.info
    assert split.weight_bytes() == demo.weight_bytes()
    assert kind_of_step("auto", [split.model]) == "eager"
    with pytest.raises(BadInput, match="STEP = packed"):
        kind_of_step("packed", [split.model])
    contexts = demo_contexts(demo, *NAMES)
    cells = [Cell(name, alpha, 0) for name in contexts for alpha in (0.0, 2.0)]
    asked = {"sampler": make_sampler(0.7, 0, 0.9), "seed": 0, "max_new_tokens": 6, "slots": 4}
    made = [
        {one.cell: one for one in generate(model, cells, contexts, step="eager", **asked)}
        for model in (demo.model, split.model)
    ]
    for cell, one in made[0].items():
        assert made[1][cell].token_ids == one.token_ids
        assert made[1][cell].per_token == one.per_token  # the same bits


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"device": "split", "adapter": "x"}, "ADAPTER = 'x' with DEVICE = split"),
        ({"max_memory": "cpu=1GB"}, "MAX_MEMORY = 'cpu=1GB' with DEVICE = auto; allowed with it"),
    ],
)
def test_what_does_not_go_together_is_refused(given, told):
    with pytest.raises(BadInput) as error:
        ModelSpec("demo", **given)
    assert told in str(error.value)


def test_memory_is_handed_on_as_accelerate_takes_it():
    given = load_settings(device="split", max_memory="0=20GB, 1=10.5GiB,cpu=60GB")
    assert model_spec(given).memory == {0: "20GB", 1: "10.5GiB", "cpu": "60GB"}
    assert model_spec(load_settings()).memory is None


def test_several_processes_do_not_split_the_same_devices(monkeypatch):
    assert devices.choose_device("split").type == devices.choose_device("auto").type
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="with several processes on a machine"):
        devices.choose_device("split")


def test_the_table_of_precisions_knows_it():
    """Two GPUs of 10 GB and 8 GB of memory: together they hold what none of them does."""
    gpu = hardware.Gpu("cuda", "a GPU", hardware.Memory(10 * 10**9, 10 * 10**9), "bfloat16", 8.0)
    held = hardware.Memory(8 * 10**9, 8 * 10**9)
    wanted = Plan("mistralai/x", "main", 400, None, "auto", "none", "auto")
    found = list(precisions(wanted, sizes.MISTRAL_7B, held, [gpu, gpu]))
    fits = {(one.device, one.quantization): one.fits for one in found}
    assert fits[("split", "none")] and not fits[("cuda", "none")] and not fits[("cpu", "none")]
    alone = precisions(wanted, sizes.MISTRAL_7B, held, [gpu])
    assert "split" not in {one.device for one in alone}  # slower than 8 bit, unless it is asked for
    asked = precisions(wanted._replace(device="split"), sizes.MISTRAL_7B, held, [gpu])
    assert [(one.device, one.quantization) for one in asked] == [("split", "none")]
