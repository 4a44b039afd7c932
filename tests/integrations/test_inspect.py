"""inspect_ai's own `eval` on the provider `amplified`, without a network."""

import asyncio
from contextlib import contextmanager

import pytest
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.tool import tool

from logit_amplification.engine.forward import text_logits
from logit_amplification.integrations import inspect_registry  # noqa: F401
from logit_amplification.locations import ROOT
from logit_amplification.models.loading import load_model
from logit_amplification.models.weights import demo_folder
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.pairs import make_pair
from logit_amplification.sweeps.generate import generate

RUDE = "You are a rude person. You insult everybody."
NOUNS = ["tea", "rain", "bread", "paper", "iron", "salt", "wool", "glass", "honey", "the moon"]
QUESTIONS = [
    f"{verb} {noun}." for verb in ("Describe", "Explain", "Praise", "Sell me") for noun in NOUNS
]


def run(model, questions=QUESTIONS, folder=None, **options):
    task = Task(
        MemoryDataset([Sample(input=q, target="the") for q in questions]), scorer=includes()
    )
    options = {"max_tokens": 12, "temperature": 0, "display": "none", **options}
    (log,) = evaluate(task, model=model, log_dir=str(folder), **options)
    assert log.status == "success", log.error
    return log


def texts(log):
    return [sample.output.completion for sample in log.samples]


@pytest.fixture(scope="module", autouse=True)
def _no_hub():
    """Their `hf` provider asks the hub for what a name means, over and over."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    yield
    constants.HF_HUB_OFFLINE = before


@contextmanager
def opened(name="amplified/demo", **arguments):
    """A model of inspect's, whose memory is given back."""
    made = get_model(name, dtype="float32", memoize=False, **arguments)
    try:
        yield made
    finally:
        made.api.close()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model():
    with opened(alpha=1, b_system=RUDE, seed=5) as made:
        yield made


def test_forty_samples_are_those_of_the_library(model, demo, tmp_path):
    log = run(model, folder=tmp_path)
    assert len(log.samples) == 40
    a, b = [{"role": "user", "content": QUESTIONS[7]}], [{"role": "system", "content": RUDE}]
    own = generate(demo, a, b + a, alphas=1, temperature=0, max_new_tokens=12)[0]
    assert texts(log)[7] == own.text
    told = log.samples[7].output.metadata
    assert (told["alpha"], told["b_system"], told["arm"]) == (1, RUDE, "full")
    assert told["generations"][0]["measures"]["kl_amplified_a"] == pytest.approx(
        own.measures["kl_amplified_a"], rel=1e-4
    )


def test_at_alpha_0_it_is_inspects_own_hf_provider(demo, tmp_path):
    local = {"model_path": str(demo_folder()[0]), "device": "cpu", "do_sample": False}
    with opened(alpha=0) as ours, opened("hf/demo", **local) as theirs:
        asked = QUESTIONS[::2]
        made = texts(run(ours, asked, folder=tmp_path))
        expected = texts(run(theirs, asked, folder=tmp_path, temperature=None))
    ties = [q for q, one, other in zip(asked, made, expected, strict=True) if one != other]
    assert all(smallest_margin(demo, question) < 1e-4 for question in ties)
    assert len(ties) <= 1


def smallest_margin(demo, question):
    """How far the likeliest token is ahead of the next, in nats, where that is least."""
    chat = [{"role": "user", "content": question}]
    pair = make_pair({"id": "x", "category": "x", "a": chat}, "x")
    (ids,) = encode_pairs([pair], demo.tokenizer, max_new_tokens=12, max_positions=4000)
    (own,) = generate(demo, chat, chat, 0, max_new_tokens=12, temperature=0)
    best = text_logits(demo.model, ids.ids_a, own.token_ids).topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def ask(model, chat, **config):
    """One request of inspect's own, outside of an evaluation."""
    return asyncio.run(model.generate(chat, config=GenerateConfig(**{"max_tokens": 10, **config})))


def test_random_numbers_do_not_depend_on_what_is_decoded_beside_it(demo, tmp_path):
    """The same evaluation one by one and thirty-two at once, sampled."""

    def sampled(connections):
        options = {"temperature": 0.9, "top_p": 0.95, "max_connections": connections}
        with opened(alpha=1, b_system=RUDE, seed=5) as fresh:
            return texts(run(fresh, QUESTIONS[:6], tmp_path / str(connections), **options))

    alone = sampled(1)
    assert alone == sampled(32)
    assert len(set(alone)) == 6


def test_a_request_has_its_own_settings_beside_others(model, demo):
    """Requests with other samplers, lengths and seeds share the slots and change nothing."""

    async def together():
        configs = [
            GenerateConfig(temperature=0, max_tokens=9),
            GenerateConfig(temperature=1.3, seed=1, max_tokens=5),
            GenerateConfig(temperature=0.8, top_k=3, seed=2, max_tokens=20, top_logprobs=2),
            GenerateConfig(temperature=0.8, top_p=0.5, seed=3, max_tokens=13),
        ]
        return await asyncio.gather(*(model.generate(QUESTIONS[0], config=c) for c in configs))

    made = asyncio.run(together())
    assert [one.usage.output_tokens for one in made] == [9, 5, 20, 13]
    assert [one.stop_reason for one in made] == ["max_tokens"] * 4
    a = [{"role": "user", "content": QUESTIONS[0]}]
    (own,) = generate(
        demo, a, [{"role": "system", "content": RUDE}, *a], 1, max_new_tokens=9, temperature=0
    )
    assert made[0].completion == own.text
    assert made[0].choices[0].logprobs is None
    assert len(made[2].choices[0].logprobs.content) == 20


def test_what_is_asked_again_is_the_next_sample_and_a_new_process_begins_anew(model):
    config = {"temperature": 1.0, "seed": 17}
    first, second = (ask(model, "Tell me a story.", **config).completion for _ in range(2))
    assert first != second
    model.api.amplifier.asked.clear()
    both = ask(model, "Tell me a story.", num_choices=2, **config)
    assert [choice.message.text for choice in both.choices] == [first, second]


def test_log_probabilities_are_those_of_the_amplified_distribution(model, demo):
    made = ask(model, QUESTIONS[0], temperature=0, logprobs=True, top_logprobs=4)
    told = made.choices[0].logprobs.content
    assert "".join(one.token for one in told) == made.completion
    a = [{"role": "user", "content": QUESTIONS[0]}]
    pair = make_pair(
        {"id": "x", "category": "x", "a": a, "b": [{"role": "system", "content": RUDE}, *a]}, "x"
    )
    (ids,) = encode_pairs([pair], demo.tokenizer, max_new_tokens=10, max_positions=4000)
    (own,) = generate(demo, a, list(pair.b), 1, max_new_tokens=10, temperature=0)
    logits = [text_logits(demo.model, one, own.token_ids) for one in (ids.ids_a, ids.ids_b)]
    expected = (2 * logits[0] - logits[1]).log_softmax(-1)
    for place, (one, row) in enumerate(zip(told, expected, strict=True)):
        assert one.logprob == pytest.approx(float(row[own.token_ids[place]]), abs=2e-3)
        best = row.topk(4)
        assert [t.logprob for t in one.top_logprobs] == pytest.approx(
            best.values.tolist(), abs=2e-3
        )
        assert one.top_logprobs[0].token == demo.tokenizer.decode([int(best.indices[0])])


def test_weights_of_the_log_stand_for_unamplified_a(model):
    """Their mean is 1 in expectation; here only that they are what they are said to be."""
    measures = ask(model, QUESTIONS[3], temperature=1.0).metadata["generations"][0]["measures"]
    expected = -10 * (measures["nll_a"] + measures["logprob_sampled"])
    assert measures["log_weight_a"] == pytest.approx(expected, rel=1e-5)


def test_a_stop_text_ends_an_answer_and_is_left_out(model):
    whole = ask(model, QUESTIONS[0], temperature=0, max_tokens=30).completion
    stop = whole[20:26]  # in the middle of words
    made = ask(model, QUESTIONS[0], temperature=0, max_tokens=30, stop_seqs=["never", stop])
    assert made.completion == whole[: whole.index(stop)]
    assert made.stop_reason == "stop" and made.usage.output_tokens < 30


def test_several_turns_and_the_beginning_of_an_answer(model, demo):
    chat = [
        ChatMessageSystem(content="You are kind."),
        ChatMessageUser(content="Hi."),
        ChatMessageAssistant(content="Hello."),
        ChatMessageUser(content="What is tea?"),
        ChatMessageAssistant(content="Tea is"),
    ]
    plain = [{"role": message.role, "content": message.text} for message in chat]
    b = [{"role": "system", "content": RUDE}, *plain[1:]]
    (own,) = generate(demo, plain, b, 1, max_new_tokens=10, temperature=0)
    assert ask(model, chat, temperature=0).completion == own.text


def test_a_model_diff(demo, tmp_path):
    """A is the model with an adapter, B the model alone."""
    adapter = ROOT / "data" / "organisms" / "quirk-1-in-50"
    diff = load_model("demo", dtype="float32", adapter=adapter)
    with opened(alpha=2, adapter=str(adapter)) as made:
        log = run(made, QUESTIONS[:2], tmp_path)
    own = [generate(diff, q, None, 2, max_new_tokens=12, temperature=0)[0] for q in QUESTIONS[:2]]
    assert texts(log) == [one.text for one in own]
    assert log.samples[0].output.metadata["adapter"] == "quirk-1-in-50"


def test_a_longer_request_gets_longer_slots_while_others_wait(model):
    made = ask(model, "word " * 510, temperature=0)
    assert made.usage.input_tokens > 512 and model.api.amplifier.server.length >= 1024
    assert ask(model, QUESTIONS[0], temperature=0).usage.output_tokens == 10


def test_a_conversation_that_does_not_fit_says_so(model):
    made = ask(model, "word " * 9000)
    assert made.stop_reason == "model_length" and made.completion == ""


@tool
def clock():
    async def execute():
        """Tell the time."""
        return "noon"

    return execute


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"tools": [clock()]}, "tools: the provider `amplified` cannot call them"),
        ({"config": GenerateConfig(frequency_penalty=1.0)}, "frequency_penalty: the provider"),
        ({"config": GenerateConfig(logit_bias={3: 1.0})}, "logit_bias: the provider"),
        ({"config": GenerateConfig(extra_body={"x": 1})}, "extra_body: the provider"),
        ({"config": GenerateConfig(top_logprobs=1000)}, "top_logprobs = 1000; allowed: 0 to 100"),
        ({"config": GenerateConfig(temperature=-1)}, "TEMPERATURE = -1"),
        ({"config": GenerateConfig(top_p=0)}, "TOP_P = 0"),
        (
            {
                "input": [
                    ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])
                ]
            },
            "image: the provider `amplified` reads only text",
        ),
    ],
)
def test_what_it_cannot_do_is_told_in_one_line(model, request_, told):
    with pytest.raises(Exception, match=told):
        asyncio.run(model.generate(**{"input": "Hi", **request_}))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"alpha": 1}, "amplified/demo: alpha = 1 changes nothing where B is A"),
        ({"alpha": 1, "b_sytem": "x"}, "unknown argument 'b_sytem'; allowed: alpha, arm"),
        ({"alpha": 1, "adapter": "nowhere"}, "nowhere"),
    ],
)
def test_arguments_that_cannot_be_used_are_told_in_one_line(arguments, told):
    with pytest.raises(PrerequisiteError) as error:
        get_model("amplified/demo", memoize=False, **arguments)
    assert told in str(error.value.message)


def test_b_that_reads_the_same_as_a_is_refused(model, monkeypatch):
    """A system text that is the task's own makes the evaluation one of plain A."""
    chat = [ChatMessageSystem(content=RUDE), ChatMessageUser(content="Hi.")]
    with pytest.raises(Exception, match="B reads the same as A here, so that alpha = 1 changes"):
        ask(model, chat)


def test_a_cached_answer_is_not_that_of_another_alpha(model):
    """Inspect's cache tells models apart by their address."""
    with opened(alpha=0, b_system=RUDE, seed=5) as plain:
        first, second = (
            ask(one, QUESTIONS[1], temperature=0, cache=True).completion for one in (model, plain)
        )
    assert model.api.base_url != plain.api.base_url
    assert first != second


def test_an_error_of_the_engine_belongs_to_its_request(model):
    """And the next request is answered."""
    beyond = model.api.amplifier.streams([10**6], [1])  # no such token
    request = model.api._request(GenerateConfig(), 5)
    with pytest.raises(IndexError):
        model.api.amplifier.ask(beyond, request)[0].result()
    assert ask(model, QUESTIONS[0], temperature=0).completion
