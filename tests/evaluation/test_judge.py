"""The optional judge: a text-classification model that labels the answers, and sees only these."""

import json

import pandas
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from logit_amplification.errors import BadInput
from logit_amplification.evaluation import judge
from logit_amplification.prompts.pairs import PromptPair
from logit_amplification.reports import artifacts
from logit_amplification.sweeps import history
from logit_amplification.sweeps.sweep import sweep

CHAT = ({"role": "user", "content": "Yes?"},)
OTHER = ({"role": "user", "content": "No?"},)
PAIRS = [PromptPair("one", "x", CHAT, OTHER), PromptPair("null", "control", CHAT, CHAT)]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory, tiny_folder):
    """A tiny random BERT that calls texts `rude` or `kind`."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_folder)
    tokenizer.pad_token = "</s>"
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label={0: "rude", 1: "kind"},
        label2id={"rude": 0, "kind": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def judged(settings, judge_folder):
    return settings.model_copy(update={"judge": str(judge_folder)})


def test_every_answer_gets_a_label_and_the_tables_count_them(tiny, judged):
    done = sweep(tiny, PAIRS, judged)
    assert all(record["judge"]["label"] in ("rude", "kind") for record in done.records)
    assert all(0.5 <= record["judge"]["score"] <= 1 for record in done.records)
    artifacts.save_artifacts(done, judged)
    summary = pandas.read_csv(judged.data_dir / "summary_statistics.csv")
    shares = summary[[c for c in summary if c.startswith("judge_") and c.endswith("_mean")]]
    assert len(shares.columns) and shares.sum(axis=1).round(6).eq(1).all()
    assert "Share that the judge calls" in (judged.data_dir / "detailed_report.txt").read_text()


def test_the_same_text_is_judged_once_and_kept(tiny, judged, monkeypatch):
    sweep(tiny, PAIRS, judged)
    monkeypatch.setattr(judge, "_labelled", lambda *a: pytest.fail("judged again"))
    again = sweep(tiny, PAIRS, judged)
    assert history.recall(judged.data_dir, "").records == again.records
    kept = json.loads((again.journal.folder / "judge.json").read_text())
    assert len(kept["labels"]) == len({record["text"] for record in again.records})


def test_a_judge_is_no_part_of_the_runs_name(tiny, settings, judged):
    assert sweep(tiny, PAIRS, settings).run["id"] == sweep(tiny, PAIRS, judged).run["id"]


def test_a_model_that_classifies_nothing_is_refused(tiny, settings, tiny_folder):
    wrong = settings.model_copy(update={"judge": str(tiny_folder)})
    with pytest.raises(BadInput, match=r"JUDGE = .*MistralForCausalLM"):
        sweep(tiny, PAIRS, wrong)


def test_a_judge_that_is_not_there_is_refused(tiny, settings):
    with pytest.raises(BadInput, match=r"JUDGE = .*no such folder"):
        sweep(tiny, PAIRS, settings.model_copy(update={"judge": "./nowhere"}))
