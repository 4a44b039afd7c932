"""The engine against transformers' own generate, against the reference loop, and against itself."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from conftest import save_tiny_mistral
from transformers import GPT2Config, GPT2LMHeadModel

from decoding import (
    GREEDY,
    LENGTH,
    TINY_CONTEXTS,
    contrasts,
    demo_contexts,
    generate,
    run,
    tokens_of,
)
from logit_amplification.engine import interface
from logit_amplification.engine.batch import cache
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.batch.step import Rows
from logit_amplification.engine.forward import text_logits
from logit_amplification.engine.interface import Cell, Contrast, Request, Stream
from logit_amplification.engine.reference import LoopEngine, sample_amplified
from logit_amplification.errors import BadInput
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.arms import ARMS
from logit_amplification.logits.sampling import keep_top_k, make_sampler, nucleus, uniforms
from logit_amplification.logits.vocabulary import PER_TOKEN
from logit_amplification.models.loading import LoadedModel, load_model
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.pairs import PromptPair
from logit_amplification.settings import load_settings


@pytest.fixture(params=["tiny", "demo"])
def subject(request):
    """A loaded model and contexts for it."""
    loaded = request.getfixturevalue(request.param)
    if request.param == "tiny":
        return loaded, TINY_CONTEXTS
    # The tiny model has many cells in every test; of the demo model a long pair and the null pair.
    names = ("persona-pirate", "null-control")
    return loaded, demo_contexts(loaded, *names)


def plain(loaded, ids, **options):
    """Transformers' own greedy answer to one context."""
    prompt = torch.tensor([ids])
    answer = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=LENGTH,
        pad_token_id=min(loaded.stop_ids),
        **options,
    )
    return answer[0, len(ids) :].tolist()


def guided(loaded, ids_a, ids_b, alpha):
    """Transformers' own classifier-free guidance."""
    negative = torch.tensor([ids_b])
    return plain(loaded, ids_a, guidance_scale=1 + alpha, negative_prompt_ids=negative)


# ------------------------------------------------------------------------- against transformers


def test_alpha_zero_is_the_models_own_answer_to_a(subject):
    loaded, contexts = subject
    made = run(loaded, [Cell(name, 0.0, 0) for name in contexts], contexts)
    for cell, generation in made.items():
        assert generation.token_ids == plain(loaded, contexts[cell.pair_id][0])


def test_alpha_minus_one_is_the_models_own_answer_to_b(subject):
    loaded, contexts = subject
    made = run(loaded, [Cell(name, -1.0, 0) for name in contexts], contexts)
    for cell, generation in made.items():
        assert generation.token_ids == plain(loaded, contexts[cell.pair_id][1])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_many_pairs_in_one_batch_equal_guidance_scale_one_plus_alpha(subject, alpha):
    loaded, contexts = subject
    made = run(loaded, [Cell(name, alpha, 0) for name in contexts], contexts)
    for cell, generation in made.items():
        assert generation.token_ids == guided(loaded, *contexts[cell.pair_id], alpha)


def test_one_pair_alone_equals_guidance_scale_one_plus_alpha(subject):
    loaded, contexts = subject
    name = next(iter(contexts))
    made = run(loaded, [Cell(name, 1.0, 0)], {name: contexts[name]}, slots=1)
    assert made[Cell(name, 1.0, 0)].token_ids == guided(loaded, *contexts[name], 1.0)


# --------------------------------------------------------------------- against the reference loop


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_engine_makes_the_tokens_of_the_notebooks_loop(subject, temperature):
    loaded, contexts = subject
    sampler = make_sampler(temperature, 0, 0.95)
    small = loaded.model.num_parameters() < 1e6
    alphas, samples = ((-1.0, 0.7, 2.0), (0, 1)) if small else ((0.7,), (0,))
    cells = [Cell(name, alpha, s) for name in contexts for alpha in alphas for s in samples]
    made = run(loaded, cells, contexts, sampler=sampler)
    request = Request(sampler, seed=0, max_new_tokens=LENGTH, stop_ids=loaded.stop_ids)
    loop = LoopEngine(loaded.model).generate(cells, contrasts(contexts), request)
    for generation in loop:
        other = made[generation.cell]
        assert other.token_ids == generation.token_ids
        assert other.finish_reason == generation.finish_reason
        ours, theirs = torch.tensor(other.per_token), torch.tensor(generation.per_token)
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_cached_logits_are_those_of_the_whole_sequence_read_at_once(tiny):
    """Pitfall P4: nothing is fed twice, and the two caches are not shared."""
    ids_a, ids_b = TINY_CONTEXTS["two"]
    steps = sample_amplified(
        tiny.model, ids_a, ids_b, 1.0, sampler=GREEDY, uniforms=torch.zeros(8), stop_ids=frozenset()
    )
    answer = []
    for step in steps:
        for ids, logits in ((ids_a, step.logits_a), (ids_b, step.logits_b)):
            whole = tiny.model(torch.tensor([[*ids, *answer]])).logits[:, -1]
            assert torch.allclose(logits, whole, atol=1e-4)
        answer.append(step.token)


def test_a_model_with_absolute_positions_equals_guidance_too():
    """Pitfall P6: with rotary embeddings a constant shift of positions would go unnoticed."""
    torch.manual_seed(0)
    shape = {"vocab_size": 120, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**shape, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    loaded = LoadedModel(model, None, stop_ids=frozenset({0}), max_positions=64, info={})
    cells = [Cell(name, 1.0, 0) for name in TINY_CONTEXTS]
    for cell, generation in run(loaded, cells, TINY_CONTEXTS, slots=3).items():
        assert generation.token_ids == guided(loaded, *TINY_CONTEXTS[cell.pair_id], 1.0)


# ------------------------------------------------------------------------------------- identities


def test_amplification_changes_the_tokens(subject):
    """Pitfall P1, the predecessor's: alpha must reach the sampled tokens."""
    loaded, contexts = subject
    name = next(iter(contexts))
    made = tokens_of(run(loaded, [Cell(name, alpha, 0) for alpha in (0.0, 5.0)], contexts))
    assert made[Cell(name, 0.0, 0)] != made[Cell(name, 5.0, 0)]


def test_the_first_token_is_the_argmax_computed_by_hand(tiny):
    ids_a, ids_b = TINY_CONTEXTS["one"]
    a, b = (tiny.model(torch.tensor([ids])).logits[0, -1] for ids in (ids_a, ids_b))
    changed = 0
    for alpha in (0.0, 1.0, 3.0, 8.0):
        made = run(tiny, [Cell("one", alpha, 0)], TINY_CONTEXTS, length=1)
        expected = int((a + alpha * (a - b)).argmax())
        assert made[Cell("one", alpha, 0)].token_ids == [expected]
        changed += expected != int(a.argmax())
    assert changed  # else this test could not tell amplification from none


def test_equal_contexts_make_alpha_irrelevant_bit_for_bit(subject):
    loaded, contexts = subject
    null = next(name for name in contexts if contexts[name][0] == contexts[name][1])
    cells = [Cell(null, alpha, 0) for alpha in (-1.0, 0.0, 1.0, 30.0)]
    made = run(loaded, cells, contexts, sampler=make_sampler(0.8))
    first, *others = made.values()
    assert all(other.token_ids == first.token_ids for other in others)
    assert all(other.per_token == first.per_token for other in others)


def test_a_cell_comes_out_the_same_alone_reversed_and_in_company(tiny):
    """Bit for bit in float32 too, for the tiny model; docs/METHODOLOGY.md says where it may not."""
    sampler = make_sampler(0.9, 0, 0.95)
    cells = [Cell(name, alpha, s) for name in TINY_CONTEXTS for alpha in (0.0, 2.0) for s in (0, 1)]
    together = tokens_of(run(tiny, cells, TINY_CONTEXTS, sampler=sampler))
    backwards = tokens_of(run(tiny, cells[::-1], TINY_CONTEXTS, sampler=sampler))
    assert together == backwards
    for cell in cells[::5]:
        alone = tokens_of(run(tiny, [cell], TINY_CONTEXTS, sampler=sampler))
        assert alone[cell] == together[cell]


def test_every_alpha_takes_the_same_path(tiny, monkeypatch):
    """Pitfall P9: no special case for alpha 0 or 1. One forward per step, whatever alpha is."""
    counts = []
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0):
        calls = []
        forward = Rows.forward
        monkeypatch.setattr(
            Rows, "forward", lambda self, t, f=forward, c=calls: (c.append(1), f(self, t))
        )
        run(tiny, [Cell("one", alpha, 0)], TINY_CONTEXTS, stop_ids=frozenset())
        monkeypatch.setattr(Rows, "forward", forward)
        counts.append(len(calls))
    assert counts == [LENGTH - 1] * 5


def test_each_context_is_prefilled_once_and_let_go(tiny, monkeypatch):
    prefilled = []
    prefill = cache.prefill
    monkeypatch.setattr(
        cache, "prefill", lambda model, ids: (prefilled.append(ids), prefill(model, ids))[1]
    )
    cells = [Cell(name, alpha, 0) for name in TINY_CONTEXTS for alpha in (0.0, 0.5, 1.0, 2.0, 3.0)]
    made = run(tiny, cells, TINY_CONTEXTS, slots=3)
    assert len(made) == len(cells)
    distinct = {ids for pair in TINY_CONTEXTS.values() for ids in pair}
    assert len(prefilled) == len(distinct) and set(prefilled) == distinct
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is cache.Prefix]


def test_logits_are_float32_before_the_subtraction(tiny_folder):
    """Pitfall P10: a bfloat16 difference would be multiplied by alpha."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).eval()
    seen = []

    def rule(logits_a, logits_b, alpha):
        seen.append((logits_a.dtype, logits_b.dtype))
        return amplify(logits_a, logits_b, alpha)

    cells = [Cell("one", 1.0, 0)]
    options = {"sampler": GREEDY, "seed": 0, "max_new_tokens": 3, "slots": 2}
    list(generate(model, cells, TINY_CONTEXTS, rule=rule, **options))
    assert set(seen) == {(torch.float32, torch.float32)} and len(seen) == 3


@pytest.mark.parametrize("arm", ARMS)
def test_arms_side_by_side_are_what_they_are_alone(tiny, arm):
    sampler = make_sampler(0.9)
    cells = [Cell("one", 1.5, 0, name) for name in ARMS]
    together = tokens_of(run(tiny, cells, TINY_CONTEXTS, sampler=sampler))
    alone = tokens_of(run(tiny, [Cell("one", 1.5, 0, arm)], TINY_CONTEXTS, sampler=sampler))
    assert alone[Cell("one", 1.5, 0, arm)] == together[Cell("one", 1.5, 0, arm)]


def test_the_models_attention_is_given_back(tiny):
    before = tiny.model.config._attn_implementation
    unfinished = generate(
        tiny.model,
        [Cell("one", 1.0, 0)] * 3,
        TINY_CONTEXTS,
        sampler=GREEDY,
        seed=0,
        max_new_tokens=4,
    )
    next(unfinished)
    unfinished.close()
    assert tiny.model.config._attn_implementation == before != "slots"


# ------------------------------------------------------------------------------- ends and records


def test_an_end_token_ends_its_row_and_no_other(tiny):
    """Pitfall P8, with every id of the list; the end token itself is recorded and measured."""
    cells = [Cell(name, 1.0, 0) for name in TINY_CONTEXTS]
    endless = run(tiny, cells, TINY_CONTEXTS, stop_ids=frozenset())
    first, second = endless[cells[0]].token_ids[3], endless[cells[1]].token_ids[5]
    made = run(tiny, cells, TINY_CONTEXTS, stop_ids=frozenset({first, second}))
    assert {g.finish_reason for g in made.values()} >= {"eos"}
    for cell in cells:
        tokens = endless[cell].token_ids
        end = next((i for i, token in enumerate(tokens) if token in {first, second}), None)
        expected = tokens if end is None else tokens[: end + 1]
        assert made[cell].token_ids == expected
        assert made[cell].finish_reason == ("length" if end is None else "eos")
        assert len(made[cell].per_token) == len(expected)


def test_the_demo_model_ends_its_answers(demo):
    contexts = demo_contexts(demo, "edge-one-character")
    made = run(demo, [Cell("edge-one-character", 0.0, 0)], contexts, length=100, slots=1)
    (generation,) = made.values()
    assert generation.finish_reason == "eos"
    assert generation.token_ids[-1] in demo.stop_ids
    assert not set(generation.token_ids[:-1]) & demo.stop_ids


def test_no_prompt_text_comes_out(demo):
    """Pitfall P7: a completion begins behind the prompt."""
    secret = "zyzzyva-4711"
    chat = ({"role": "user", "content": f"Say hello. Do not repeat this word: {secret}."},)
    pair = PromptPair("secret", "x", chat, ({"role": "user", "content": "Say hello."},))
    (encoded,) = encode_pairs([pair], demo.tokenizer, max_new_tokens=12, max_positions=8192)
    contexts = {"secret": (encoded.ids_a, encoded.ids_b)}
    for generation in run(demo, [Cell("secret", 0.0, 0)], contexts, length=12).values():
        text = demo.tokenizer.decode(generation.token_ids)
        assert "Do not repeat" not in text and "<|im_start|>" not in text


def test_common_random_numbers_do_not_depend_on_alpha_or_arm(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(interface, "uniforms", lambda *key: (asked.append(key), uniforms(*key))[1])
    cells = [Cell("one", alpha, 0, arm) for alpha in (0.0, 2.0) for arm in ("full", "plausible")]
    run(tiny, cells, TINY_CONTEXTS, sampler=make_sampler(1.0))
    assert asked == [(0, "one", 0, LENGTH)] * 4


# ----------------------------------------------------------------------------- rules gone wrong


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (lambda a, b, alpha: a[:, :-1], "must return logits of shape"),
        (lambda a, b, alpha: a.double(), "must return torch.float32"),
        (lambda a, b, alpha: None, "must return logits of shape"),
        (
            lambda a, b, alpha: a + b[:, :7],
            r"raised RuntimeError: .* of shape \(\d+, 259\)",
        ),
        (lambda a, b: a, "raised TypeError"),
    ],
)
def test_a_rule_that_returns_nonsense_gets_one_clear_line(tiny, rule, complaint):
    with pytest.raises(BadInput, match=complaint):
        run(tiny, [Cell("one", 1.0, 0)], TINY_CONTEXTS, rule=rule)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_becomes_nan_or_infinite_ends_with_an_error_and_the_others_go_on(tiny, value):
    cells = [Cell(name, alpha, 0) for name in TINY_CONTEXTS for alpha in (0.0, 1.0, 2.0)]
    steps = iter(range(1000))

    def breaking(logits_a, logits_b, alpha):
        broken = (alpha == 1.0) & (next(steps) >= 3)
        return torch.where(broken, value, amplify(logits_a, logits_b, alpha))

    whole = run(tiny, cells, TINY_CONTEXTS, slots=5)
    made = run(tiny, cells, TINY_CONTEXTS, slots=5, rule=breaking)
    assert set(made) == set(cells)
    for cell, generation in made.items():
        if cell.alpha == 1.0:
            assert generation.finish_reason == "error"
            number = len(generation.token_ids)
            told = f"the amplified logits of token {number + 1} are NaN or infinite"
            assert generation.error == told
            assert generation.token_ids == whole[cell].token_ids[:number]
            assert len(generation.per_token) == number
        else:
            assert generation == whole[cell]
    assert any(made[cell].token_ids for cell in cells if cell.alpha == 1.0)


def test_a_generation_is_plain_data(tiny):
    (generation,) = run(tiny, [Cell("one", 1.0, 0)], TINY_CONTEXTS).values()
    assert all(type(token) is int for token in generation.token_ids)
    assert all(type(value) is float for step in generation.per_token for value in step)
    assert replace(generation.cell, alpha=2.0) != generation.cell


# --------------------------------------------------------------------- streams, draws, cells


def test_the_log_probability_of_an_answer_is_that_of_reading_it_again(tiny):
    """Teacher-forced, in float32, without a cache: both contexts, the rule, the truncation."""
    settings = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    cells = [Cell(name, alpha, 0) for name in TINY_CONTEXTS for alpha in (0.0, 1.5)]
    made = run(tiny, cells, TINY_CONTEXTS, sampler=make_sampler(**settings))
    column, nll_b = PER_TOKEN.index("logprob_sampled"), PER_TOKEN.index("nll_b")
    for cell, generation in made.items():
        ids = generation.token_ids
        a, b = (text_logits(tiny.model, one, ids) for one in TINY_CONTEXTS[cell.pair_id])
        logits = keep_top_k(amplify(a, b, cell.alpha) / 0.8, 40)
        kept, probabilities = nucleus(logits, 0.9)
        logprobs = (probabilities / probabilities.sum(-1, keepdim=True)).log()
        again = [row[where == token] for row, where, token in zip(logprobs, kept, ids, strict=True)]
        assert sum(row[column] for row in generation.per_token) == pytest.approx(
            float(sum(again)), abs=1e-3
        )
        under_b = -b.log_softmax(-1)[range(len(ids)), ids]
        found = torch.tensor([row[nll_b] for row in generation.per_token])
        torch.testing.assert_close(found, under_b, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Other weights with the same vocabulary."""
    folder = save_tiny_mistral(tmp_path_factory.mktemp("other") / "other", initializer_range=0.3)
    return load_model(
        load_settings(model=str(folder), quantization="none", dtype="float32", device="cpu")
    )


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
def test_two_sets_of_weights_are_amplified_against_each_other(tiny, other, alpha):
    """The same ids under both: keys and values must not be shared, and each has its own rows."""
    engine = BatchedEngine({"before": other.model, "after": tiny.model}, 3)
    ids = {name: tuple(two[0]) for name, two in TINY_CONTEXTS.items()}
    contexts = {n: Contrast(Stream(i, "after"), Stream(i, "before")) for n, i in ids.items()}
    request = Request(GREEDY, seed=0, max_new_tokens=LENGTH)
    made = engine.generate([Cell(name, alpha, 0) for name in ids], contexts, request)
    for generation in made:
        text: list[int] = []
        for token in generation.token_ids:
            read = torch.tensor([[*ids[generation.cell.pair_id], *text]])
            a, b = (one.model(read).logits[:, -1] for one in (tiny, other))
            assert int(amplify(a, b, alpha).argmax()) == token
            text.append(token)
    assert not any(contrast.is_null for contrast in contexts.values())


def test_a_base_for_some_pairs_alone_is_refused(tiny):
    contexts = {
        "one": Contrast(Stream((1, 2)), Stream((1, 3))),
        "two": Contrast(Stream((1, 2)), Stream((1, 3)), Stream((1, 4))),
    }
    engine = BatchedEngine(tiny.model, 2)
    with pytest.raises(BadInput, match="some pairs of a run have a base and some have none"):
        list(engine.generate([Cell("one", 0.0, 0)], contexts, Request(GREEDY, 0, 3)))


def test_cells_are_taken_when_there_is_room_for_them(tiny):
    """Another process may take the others: none is asked for before its slot is free."""
    taken = []

    def cells():
        for number in range(20):
            taken.append(number)
            yield Cell("one", number / 10, 0)

    made = generate(
        tiny.model, cells(), TINY_CONTEXTS, slots=3, sampler=GREEDY, seed=0, max_new_tokens=2
    )
    for number, _ in enumerate(made, start=1):
        assert len(taken) <= number + 3
    assert len(taken) == number == 20
