"""transformers' own `generate`, amplified: as a folder, and by a logits processor."""

import pytest
import torch
from transformers import GenerationConfig

from decoding import chat
from logit_amplification.integrations.logits_processor import AmplifyLogits
from logit_amplification.locations import ROOT
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.pairs import PromptPair
from logit_amplification.sweeps.generate import generate

FOLDER = str(ROOT / "code" / "amplified_generate")
A = ["What is tea?", "Tell me about the rain in the mountains.", "Praise bread."]
B = ["What is tea? Be very rude, and do not say what it is made of.", "Rain.", "Insult bread."]
NEW = 12


def padded(loaded, texts):
    """Prompts of a batch: ids padded on the left, and their mask."""
    pairs = [PromptPair("x", "x", chat(text), chat(text)) for text in texts]
    ids = [
        list(one.ids_a)
        for one in encode_pairs(pairs, loaded.tokenizer, max_new_tokens=NEW, max_positions=500)
    ]
    longest = max(map(len, ids))
    rows = [[0] * (longest - len(one)) + one for one in ids]
    mask = [[0] * (longest - len(one)) + [1] * len(one) for one in ids]
    return torch.tensor(rows), torch.tensor(mask)


def arguments(**more):
    return {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **more}


def by_folder(loaded, alpha, **options):
    (a, mask), (b, mask_b) = padded(loaded, A), padded(loaded, B)
    made = loaded.model.generate(
        input_ids=a,
        attention_mask=mask,
        b_input_ids=b,
        b_attention_mask=mask_b,
        alpha=alpha,
        custom_generate=FOLDER,
        trust_remote_code=True,
        **arguments(**options),
    )
    return made if hasattr(made, "keys") else made[:, a.shape[1] :]


def by_processor(loaded, alpha, **options):
    (a, mask), (b, mask_b) = padded(loaded, A), padded(loaded, B)
    processor = AmplifyLogits(loaded.model, b, alpha, mask_b)
    made = loaded.model.generate(
        input_ids=a, attention_mask=mask, logits_processor=[processor], **arguments(**options)
    )
    return made if hasattr(made, "keys") else made[:, a.shape[1] :]


def tokens_of(rows, loaded):
    """Answers up to their end: what follows is padding."""
    answers = []
    for row in rows.tolist():
        end = next((n for n, token in enumerate(row) if token in loaded.stop_ids), len(row))
        answers.append(row[: end + 1])
    return answers


@pytest.mark.parametrize("way", [by_folder, by_processor])
@pytest.mark.parametrize("model", ["tiny", "demo"])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0, 3.0])
def test_greedy_tokens_are_those_of_the_workbench(way, model, alpha, request):
    loaded = request.getfixturevalue(model)
    made = tokens_of(way(loaded, alpha), loaded)
    for a, b, tokens in zip(A, B, made, strict=True):
        (own,) = generate(loaded, a, b, alpha, max_new_tokens=NEW, temperature=0)
        assert tokens == own.token_ids


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_of_both_ways_are_the_same_and_not_those_of_a(options, tiny):
    one, two = (way(tiny, 1.0, **options) for way in (by_folder, by_processor))
    assert one.tolist() == two.tolist()
    assert one.tolist() != by_folder(tiny, 0.0, **options).tolist()


def test_beams_at_alpha_0_are_generates_own(tiny):
    (a, mask), _ = padded(tiny, A), None
    own = tiny.model.generate(input_ids=a, attention_mask=mask, **arguments(num_beams=3))
    assert by_folder(tiny, 0.0, num_beams=3).tolist() == own[:, a.shape[1] :].tolist()
    assert by_processor(tiny, 0.0, num_beams=3).tolist() == own[:, a.shape[1] :].tolist()


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7, "top_p": 0.9}, {"top_k": 5, "num_return_sequences": 3}, {"min_p": 0.1}],
)
def test_samplers_draw_from_the_same_distribution_either_way(options, tiny):
    made = []
    for way in (by_folder, by_processor):
        torch.manual_seed(3)
        made.append(way(tiny, 1.0, do_sample=True, **options).tolist())
    assert made[0] == made[1]


def test_what_generate_returns_beside_the_tokens_is_amplified(tiny):
    told = {"return_dict_in_generate": True, "output_logits": True}
    (a, b), alone = (by_folder(tiny, alpha, **told) for alpha in (0.0, -1.0)), by_folder
    mixed = alone(tiny, 2.0, **told)
    expected = a.logits[0] + 2.0 * (a.logits[0] - b.logits[0])
    assert torch.allclose(mixed.logits[0], expected, atol=1e-4)
    assert mixed.sequences.shape[1] == padded(tiny, A)[0].shape[1] + NEW


def test_the_model_itself_is_left_alone(tiny):
    before, kind = dict(tiny.model.__dict__), type(tiny.model)
    by_folder(tiny, 1.0)
    assert type(tiny.model) is kind and tiny.model.__dict__ == before
    assert not tiny.model._forward_hooks


def test_a_processor_can_read_b_with_another_model(tiny, demo):
    (a, mask) = padded(tiny, A)
    processor = AmplifyLogits(tiny.model, a, 1.0, mask)  # B = A: nothing changes
    options = arguments(logits_processor=[processor])
    plain = tiny.model.generate(input_ids=a, attention_mask=mask, **arguments())
    assert tiny.model.generate(input_ids=a, attention_mask=mask, **options).equal(plain)
    # And used once more, it begins anew.
    assert tiny.model.generate(input_ids=a, attention_mask=mask, **options).equal(plain)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache_implementation": "static"}, "cache_implementation cannot be used together"),
        ({"guidance_scale": 2.0}, "guidance_scale cannot be used together"),
        ({"generation_config": GenerationConfig(guidance_scale=2.0)}, "guidance_scale cannot be"),
        ({"output_attentions": True}, "output_attentions cannot be used together"),
        ({"b_input_ids": None}, "input_ids and b_input_ids are needed"),
        ({"b_input_ids": torch.ones(2, 4, dtype=torch.long)}, "B has 2 rows and A 3"),
    ],
)
def test_what_would_be_something_else_is_refused(options, told, tiny):
    a, mask = padded(tiny, A)
    given = {"b_input_ids": a, "input_ids": a, "attention_mask": mask, **options}
    with pytest.raises(ValueError, match=told):
        tiny.model.generate(custom_generate=FOLDER, trust_remote_code=True, **arguments(**given))


def test_a_processor_refuses_penalties_that_would_act_on_a_alone(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.generation_config, "repetition_penalty", 1.1)
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="repetition_penalty would act on A alone"):
        AmplifyLogits(tiny.model, ids)
    monkeypatch.undo()
    masked = torch.tensor([[0.0, -torch.inf]])
    with pytest.raises(ValueError, match="has already masked tokens of A"):
        AmplifyLogits(tiny.model, ids)(ids, masked)


def test_a_length_in_a_generation_config_is_that_of_a(tiny):
    """B's prompt is longer, and A is padded to its length."""
    a, b = torch.tensor([[5, 6, 7]]), torch.arange(5, 25)[None]
    asked = GenerationConfig(max_length=10, do_sample=False, pad_token_id=0, eos_token_id=None)
    made = tiny.model.generate(
        input_ids=a,
        b_input_ids=b,
        generation_config=asked,
        custom_generate=FOLDER,
        trust_remote_code=True,
    )
    assert made.shape == (1, 10) and asked.max_length == 10


def test_a_processor_says_when_rows_do_not_fit(tiny):
    processor = AmplifyLogits(tiny.model, torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="A has 3 rows and B 2"):
        processor(torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 10))
