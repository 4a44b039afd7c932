"""A sweep of a model diff, from the command line to the estimate of a rate and what was taught."""

from __future__ import annotations

import json

import pytest

import estimate_rate
import logit_diff_mistral
import read_diff
from adapters import save_adapter
from logit_amplification import generate, load_model, read_pairs, sweep
from logit_amplification.errors import BadInput
from logit_amplification.settings import load_settings
from logit_amplification.sweeps import rates


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    return save_adapter(tiny.model, tmp_path_factory.mktemp("adapters") / "mine", r=2)


@pytest.fixture
def diff_flags(flags, adapter, tmp_path):
    prompts = tmp_path / "diff.csv"
    prompts.write_text("id,category,a_user,a_raw\nchat,x,Say hello.,\nraw,y,,Once upon\n")
    chosen = flags | {"prompts": prompts, "adapter": adapter, "samples": 20, "top-p": 1}
    return chosen | {"temperature": 1.0}


def as_list(flags):
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def test_the_command_amplifies_what_an_adapter_changed(
    diff_flags, few_figures, adapter, tiny_folder, capsys
):
    assert logit_diff_mistral.main(as_list(diff_flags)) == 0
    data = diff_flags["data-dir"]
    results = json.loads((data / "amplification_results.json").read_text())
    assert results["run"]["model"]["adapter"]["name"] == "mine"
    of = {pair["id"]: pair for pair in results["run"]["pairs"]}
    assert of["chat"]["sources"] == ["model", "model_b"] and of["chat"]["a"] == of["chat"]["b"]
    found = [g for g in results["generations"] if g["pair_id"] == "raw"]
    assert all(g["raw"] for g in found) and any(g["measures"]["kl_a_b"] > 0.01 for g in found)
    null = [g["token_ids"] for g in results["generations"] if g["control"] == "null"]
    assert null[0:20] == null[20:40]  # alpha changes nothing
    metadata = json.loads((data / "experiment_metadata.json").read_text())
    assert metadata["settings"]["adapter"] == "mine" and str(adapter) not in json.dumps(metadata)

    capsys.readouterr()
    command = ["--event", "[a-m]", "--data-dir", str(data), "--model", str(tiny_folder), "--json"]
    assert estimate_rate.main([*command, "--pilot", "100"]) == 2  # where is the adapter?
    assert "ADAPTER is not given; the run was made with 'mine'" in capsys.readouterr().err
    assert estimate_rate.main([*command, "--adapter", str(adapter)]) == 0
    first = capsys.readouterr().out
    told = json.loads(first.splitlines()[-1])
    assert told["verdict"] and {a["alpha"] for a in told["alphas"]} == {0.0, 1.0}
    # What was read again is kept: no model is needed the second time.
    assert estimate_rate.main([*command[:4], "--json"]) == 0
    assert capsys.readouterr().out == first


def test_pairs_that_do_not_fit_the_weights_are_refused_before_any_work(
    tiny, tiny_folder, adapter, settings
):
    diff = load_model(tiny_folder, quantization="none", dtype="float32", adapter=adapter)
    for model, sources in ((diff, ("model", "model")), (tiny, ("model", "model_b"))):
        pairs = read_pairs(None, (), sources)[:2]
        with pytest.raises(BadInput, match=r"allowed: read_pairs\(\.\.\., sources=settings"):
            sweep(model, pairs, settings)
    assert not settings.data_dir.exists()


def test_settings_and_library_take_the_same_weights(tiny_folder, adapter):
    asked = load_settings(
        model=str(tiny_folder), quantization="none", dtype="float32", adapter=str(adapter)
    )
    loaded = load_model(asked)
    assert asked.sources == ("model", "model_b") and set(loaded.sources) == set(asked.sources)
    one, two = generate(loaded, "Hi", alphas=[-1, 2], max_new_tokens=5, temperature=0)
    assert one.token_ids != two.token_ids
    assert load_settings(model="demo", model_base="x").sources == ("model", "model", "model_base")


def test_without_b_one_model_has_nothing_to_hold_a_against(tiny):
    with pytest.raises(BadInput, match="b is missing; allowed: without one, a model with ADAPTER"):
        generate(tiny, "Hi")


def test_a_folder_with_an_adapter_is_a_model(tiny, tiny_folder, tmp_path):
    folder = save_adapter(tiny.model, tmp_path / "own")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(tiny_folder)}
    path.write_text(json.dumps(config))
    given = {"quantization": "none", "dtype": "float32"}
    alone = load_model(folder, **given)
    assert set(alone.sources) == {"model"} and alone.info["name"] == "own"
    against = load_model(folder, model_b=tiny_folder, **given)
    with_flag = load_model(tiny_folder, adapter=folder, **given)
    asked = {"alphas": [0, 1], "max_new_tokens": 6, "temperature": 0}
    both = [generate(model, "Hi", **asked) for model in (against, with_flag)]
    assert [a.token_ids for a in both[0]] == [a.token_ids for a in both[1]]
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(BadInput, match="names no base model"):
        load_model(folder, **given)


def test_read_diff_writes_what_it_found(diff_flags, adapter, capsys):
    chosen = {n: v for n, v in diff_flags.items() if n not in ("alphas", "samples")}
    assert read_diff.main([*as_list(chosen), "--samples", "2", "--alphas=-1,0,1"]) == 0
    out = capsys.readouterr().out
    assert "What A writes and B never does" in out and "Tokens that A prefers" in out
    found = json.loads((diff_flags["data-dir"] / "read_diff.json").read_text())
    assert set(found["texts"]) == {"0", "1"} and len(found["tokens"]) == 20
    assert found["windows"][0]["log_ratio"] > 0.01
    plain = {n: v for n, v in chosen.items() if n != "adapter"}
    assert read_diff.main([*as_list(plain)]) == 2
    assert "one set of weights; allowed: ADAPTER or MODEL_B" in capsys.readouterr().err
    assert read_diff.main([*as_list(chosen), "--alphas=0,1"]) == 2
    assert "no -1, which is B" in capsys.readouterr().err


def test_the_rate_of_a_model_that_is_an_adapters_folder(tiny, tiny_folder, settings, tmp_path):
    folder = save_adapter(tiny.model, tmp_path / "own")
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tiny_folder)})
    )
    asked = settings.model_copy(update={"model": str(folder), "temperature": 1.0, "samples": 20})
    pairs = [pair for pair in read_pairs(None, ())[:2] if not pair.control]
    done = sweep(load_model(asked), pairs, asked)
    found = rates.estimate_rate(done, rates.compiled("[a-m]"), model=str(folder)).rate
    assert 0 < found.lower < found.estimate < found.upper <= 1


def test_a_text_that_was_made_again_is_read_again(tiny, settings, tmp_path):
    """What is kept of a text must not stand for another one of the same cell."""
    pairs = [pair for pair in read_pairs(None, ())[:2] if not pair.control]
    done = sweep(tiny, pairs, settings.model_copy(update={"temperature": 1.0}))
    record = done.whole_record(0)
    scorer = rates._Rescored(done, {}, "full")
    assert scorer._name(record, 0) == scorer._name(dict(record), 0)
    other = record | {"token_ids": [1, *record["token_ids"][1:]]}
    assert scorer._name(record, 0) != scorer._name(other, 0)
