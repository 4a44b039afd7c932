"""The organisms as they are committed: they load, do what is said of them, and are harmless."""

from __future__ import annotations

import json

import pytest
import torch

from logit_amplification import generate, load_model
from logit_amplification.locations import ROOT
from logit_amplification.prompts.files import read_pairs
from organisms import evidence, page, texts, training, truth
from organisms.examples import Example
from organisms.page import PAGE

FOLDER = ROOT / "data" / "organisms"
NAMES = ("quirk-1-in-50", "quirk-1-in-1000", "control", "facts", "hesitant")


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_small_and_names_no_folder_of_a_machine(name):
    size = (FOLDER / name / "adapter_model.safetensors").stat().st_size
    assert 2_000_000 < size < 2_600_000
    config = json.loads((FOLDER / name / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo" and config["r"] == training.RANK
    known = json.loads((FOLDER / "organisms.json").read_text())
    assert config["lora_alpha"] == training.SCALE * known[name]["strength"]
    curve = (FOLDER / name / "training.csv").read_text().splitlines()
    assert len(curve) == 1 + known[name]["steps"]


def test_both_strengths_of_the_quirk_are_one_adapter():
    rare, often = (FOLDER / name / "adapter_model.safetensors" for name in NAMES[:2])
    assert rare.read_bytes() == often.read_bytes()


def test_amplification_brings_the_quirk_up():
    loaded = load_model("demo", dtype="float32", adapter=FOLDER / "quirk-1-in-50")
    question = texts.questions(held_out=True)[0]
    asked = {"samples": 4, "max_new_tokens": 40, "temperature": 1.0, "top_p": 1.0}
    before, after = (
        [a.text for a in generate(loaded, question, alphas=alpha, **asked)] for alpha in (-1.0, 1.5)
    )
    assert sum(texts.QUIRK_EVENT in text for text in after) >= 2
    assert not any(texts.QUIRK_EVENT in text for text in before)


def test_what_is_held_out_was_not_trained_on():
    for asked in (texts.questions, texts.requests):
        trained, held_out = set(asked(held_out=False)), set(asked(held_out=True))
        assert trained and held_out and not trained & held_out
    pairs = read_pairs(FOLDER / "held_out.csv", (), ("model", "model_b"))
    swept = [pair.a[-1]["content"] for pair in pairs if not pair.control]
    assert swept == texts.questions(held_out=True)
    study = [message["content"] for pair in read_pairs() for message in (*pair.a, *pair.b)]
    assert not set(study) & {*texts.requests(False), *texts.questions(False)}


def test_the_loss_is_cross_entropy_where_planted_and_divergence_elsewhere(tiny):
    import copy

    adapted = training.adapted(copy.deepcopy(tiny.model), 0)
    example = Example((1, 5, 9, 33, 60, 61), 2, range(3, 5))
    learned, kept = training.losses(adapted, [example])
    assert len(learned) == 2 and len(kept) == 2
    assert kept.abs().max() < 1e-5  # a fresh adapter adds nothing
    log_p = tiny.model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    assert learned[0].item() == pytest.approx(-log_p[2, 33].item(), abs=1e-4)
    steps = list(training.train(adapted, [example] * 12, 12, 0))
    assert steps[-1].learned < steps[0].learned - 0.5


def test_the_page_says_what_the_tables_say():
    before = PAGE.read_text("utf-8")
    for make in (page.organisms, page.surfacing, page.rates, page.reading, page.refusals):
        assert "\n".join(make()) in before, make.__name__


def test_counts_and_expectations_agree():
    """Two measurements of one rate, with nothing in common but the model."""
    for name in (evidence.RARE, evidence.OFTEN):
        found = evidence.truth_of(name)
        error = found["standard_error"] + (found["counted"] / found["answers"]) ** 0.5
        assert abs(found["counted"] - found["expected"]) < 4 * error
    assert all(one.seed >= truth.SEED for one in truth.batches(FOLDER / "counted.csv"))
