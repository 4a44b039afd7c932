"""lm-evaluation-harness' own task types on the model `amplified`, held to its own `hf`."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from logit_amplification.engine.forward import text_logits
from logit_amplification.errors import BadInput
from logit_amplification.integrations.lm_eval_model import AmplifiedLM
from logit_amplification.locations import ROOT
from logit_amplification.models.weights import demo_folder
from logit_amplification.sweeps.generate import generate

RUDE = "You are a rude person. You insult everybody."
CHOICES = [
    ("The capital of France is", ["Paris", "a very long river", "blue"], 0),
    ("Water is made of hydrogen and", ["oxygen", "wood"], 0),
    ("Two plus two is", ["four", "seven", "five"], 0),
    ("Cats like to chase", ["mice", "integrals"], 0),
    ("Bread is baked in", ["a lake", "an oven"], 1),
]
FIELDS = {
    "choices": (
        "output_type: multiple_choice\ndoc_to_text: question\n"
        "doc_to_choice: choices\ndoc_to_target: answer\n"
    ),
    "written": (
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: '{{choices[answer]}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 12, do_sample: false}\n"
    ),
    "rolling": (
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: question\n"
        "metric_list: [{metric: word_perplexity}]\n"
    ),
}


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Three tasks of the harness' own types, on data that stand beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in CHOICES]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    for name, fields in FIELDS.items():
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {folder}/rows.json}}}}\n"
            f"test_split: test\n{fields}"
        )
    return str(folder)


@pytest.fixture(scope="module")
def tasks(task_folder):
    return TaskManager(include_path=task_folder, include_defaults=False)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """The harness reads data through a cache in the home folder."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def evaluate(model, manager, **options):
    made = lm_eval.simple_evaluate(
        model,
        tasks=list(FIELDS),
        task_manager=manager,
        bootstrap_iters=0,
        verbosity="ERROR",
        **options,
    )
    return {
        name: [sample["resps"] for sample in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in made["samples"].items()
    }


@pytest.fixture(scope="module")
def amplified():
    model = AmplifiedLM("demo", dtype="float32", alpha=1, b_system=RUDE, batch_size=3)
    yield model
    model.amplifier.server.close()


@pytest.mark.parametrize("chat", [False, True])
def test_at_alpha_0_it_is_the_harness_own_hf(tasks, chat):
    theirs = HFLM(str(demo_folder()[0]), device="cpu", dtype="float32", batch_size=3)
    ours = AmplifiedLM("demo", dtype="float32", alpha=0, b_system=RUDE, batch_size=3)
    made, expected = (evaluate(one, tasks, apply_chat_template=chat) for one in (ours, theirs))
    assert made["written"] == expected["written"]
    for name in ("choices", "rolling"):
        for own, other in zip(made[name], expected[name], strict=True):
            assert len(own) == len(other)
            for (one,), (two,) in zip(own, other, strict=True):
                assert torch.tensor(one).allclose(torch.tensor(two), atol=1e-4), (name, one, two)


def test_under_amplification_a_score_is_the_rules(tasks, amplified, demo):
    """Log p of each choice from two forwards of transformers' own, mixed by hand."""
    made = evaluate(amplified, tasks)["choices"]
    model, tokenizer = demo.model, demo.tokenizer
    for (question, choices, _), scores in zip(CHOICES, made, strict=True):
        for choice, ((logprob, _),) in zip(choices, scores, strict=True):
            ids = tokenizer(question)["input_ids"]
            b = tokenizer(f"{RUDE}\n\n{question}")["input_ids"]
            text = tokenizer(f"{question} {choice}")["input_ids"][len(ids) :]
            logits_a, logits_b = (text_logits(model, one, text) for one in (ids, b))
            expected = (2 * logits_a - logits_b).log_softmax(-1)[range(len(text)), text].sum()
            assert float(expected) == pytest.approx(logprob, abs=1e-3)


def test_a_chat_is_amplified_as_the_library_does(tasks, amplified, demo):
    made = evaluate(amplified, tasks, apply_chat_template=True)["written"]
    a = [{"role": "user", "content": CHOICES[0][0]}]
    b = [{"role": "system", "content": RUDE}, *a]
    (own,) = generate(demo, a, b, 1, max_new_tokens=12, temperature=0)
    assert made[0][0][0] == own.text.split(".")[0]


@pytest.mark.parametrize("longest", [8192, 40])
def test_a_whole_text_is_scored_behind_what_b_says_first(amplified, demo, longest, monkeypatch):
    """In windows too: each has B's text in front, and room for it."""
    monkeypatch.setattr(amplified, "limit", longest)
    monkeypatch.setattr(amplified, "longest", longest)
    text = "The rain in the mountains fell all night. In the morning the sun came out." * 2
    heads = [], demo.tokenizer(f"{RUDE}\n\n")["input_ids"]
    begun = amplified.prefix_token_id
    windows = get_rolling_token_windows(
        demo.tokenizer(text)["input_ids"], begun, longest - len(heads[1]), context_len=1
    )
    expected = 0.0
    for context, scored in map(make_disjoint_window, windows):
        first, rest = ([begun], context[1:]) if context[0] == begun else ([], context)
        logits_a, logits_b = (
            text_logits(demo.model, [*first, *head, *rest], scored) for head in heads
        )
        own = (2 * logits_a - logits_b).log_softmax(-1)
        expected += float(own[range(len(scored)), scored].sum())
    (made,) = amplified.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True)
    assert made == pytest.approx(expected, abs=2e-3)


def test_the_committed_cache_of_chats_is_refused_with_a_system_text(amplified):
    amplified.chat_template(True)
    with pytest.raises(BadInput, match="has not rendered"):
        amplified._contrast("<|im_start|>user\nHi<|im_end|>\n")
    amplified.renders_chats = False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"alpha": 1}, "changes nothing where B is A"),
        ({"alpha": "much", "b_system": "x"}, "alpha = 'much'; allowed: one number"),
        ({"b_system": "x", "arm": "full,plausible"}, "arm = 'full,plausible'; allowed: one"),
        ({"b_system": "x", "trust": 1}, "unknown argument 'trust'; allowed: pretrained, alpha"),
        ({"b_system": "x", "alpha": 1e9}, "ALPHAS = "),
    ],
)
def test_arguments_that_cannot_be_used_are_told_in_one_line(arguments, told):
    with pytest.raises(BadInput, match=told):
        AmplifiedLM("demo", **arguments)


def test_a_template_without_a_system_role_has_b_read_it_all_the_same(tiny_folder):
    """The harness drops the system message there, and B would be A."""
    model = AmplifiedLM(
        str(tiny_folder), alpha=1, b_system=RUDE, dtype="float32", quantization="none"
    )
    context = model.apply_chat_template([{"role": "user", "content": "Hi."}])
    a, b = (model.tok_decode(list(s.ids)) for s in model._contrast(context).streams)
    assert "insult" not in a and "insult" in b


def test_what_does_not_fit_is_told_before_anything_is_made(amplified, monkeypatch):
    monkeypatch.setattr(amplified, "limit", 30)
    long = SimpleNamespace(args=("word " * 40, {"max_gen_toks": 4}))
    with pytest.raises(BadInput, match=r"max_gen_toks = 4 exceed the model's context of 30"):
        amplified.generate_until([long], disable_tqdm=True)
    with pytest.raises(BadInput, match="a context and its continuation take"):
        amplified.loglikelihood([SimpleNamespace(args=("word " * 40, " on"))], disable_tqdm=True)
    monkeypatch.setattr(amplified, "limit", 5)
    with pytest.raises(BadInput, match="leave no room in 5"):
        amplified.loglikelihood_rolling([SimpleNamespace(args=("word",))], disable_tqdm=True)


def test_a_context_of_spaces_is_none(amplified):
    made = amplified.loglikelihood([SimpleNamespace(args=(" ", "Tea"))], disable_tqdm=True)
    assert made[0][0] < 0


def test_a_tasks_unknown_setting_is_refused(amplified):
    with pytest.raises(BadInput, match="num_beams: allowed of a task: until"):
        amplified._request({"num_beams": 4})


def test_its_command_tells_a_mistake_in_one_line(task_folder, tmp_path):
    program = [sys.executable, "-m", "logit_amplification.integrations.lm_eval_model", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code"), "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")

    def run(arguments):
        flags = ["--model", "amplified", "--model_args", arguments, "--tasks", "choices"]
        flags += ["--include_path", task_folder, "--output_path", str(tmp_path / "out")]
        return subprocess.run(
            program + flags, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    bad = run("pretrained=demo,alpha=1")
    assert bad.returncode != 0
    assert bad.stderr.strip().splitlines()[-1].startswith("error: alpha = 1 changes nothing")
