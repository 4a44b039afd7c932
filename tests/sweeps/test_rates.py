"""The rate of an event at alpha 0, from a run: against the model's own probabilities."""

import json
import re

import pytest
import torch

import estimate_rate
from decoding import PAIRS
from logit_amplification.engine.forward import next_logits
from logit_amplification.engine.interface import Contrast
from logit_amplification.engine.rescoring import logprobs_at_alphas
from logit_amplification.errors import BadInput
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.arms import ARMS
from logit_amplification.logits.sampling import drawn_logprobs, make_sampler, nucleus
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.sweeps import rates
from logit_amplification.sweeps.sweep import sweep

EVENT = r"[qxz]"


@pytest.fixture(scope="module")
def pairs():
    return [pair for pair in PAIRS if not pair.control]


def settings_for(settings, **more):
    chosen = {"samples": 150, "alphas": (0.0, 1.0, 2.0), "max_new_tokens": 1, "temperature": 1.0}
    return settings.model_copy(update=chosen | {"top_p": 0.95, "slots": 32} | more)


def test_drawn_log_probabilities_are_those_of_the_sampler():
    torch.manual_seed(0)
    logits, uniforms = torch.randn(40, 300) * 3, torch.rand(40, dtype=torch.float64)
    drawn = make_sampler(0.7, 50, 0.9)(logits, uniforms)
    again = drawn_logprobs(logits, drawn.tokens, 0.7, 50, 0.9)
    assert torch.allclose(drawn.logprobs, again.float(), atol=1e-5)
    least = logits.argmin(-1)
    assert (drawn_logprobs(logits, least, 0.7, 50, 0.9) == -torch.inf).all()


def test_a_text_read_again_has_the_probability_that_it_was_drawn_with(tiny, settings, pairs):
    run = settings_for(settings, samples=2, max_new_tokens=6)
    done = sweep(tiny, pairs, run)
    limit = {"max_new_tokens": 6, "max_positions": tiny.max_positions}
    encoded = {one.pair.id: one for one in encode_pairs(pairs, tiny.tokenizer, **limit)}
    for record in done.whole_records():
        pair = encoded[record["pair_id"]]
        (found,) = logprobs_at_alphas(
            tiny.sources,
            Contrast.of(pair),
            [record["token_ids"]],
            [record["alpha"]],
            rule=amplify,
            arm=ARMS["full"],
            sampling=done.run["sampling"],
        )
        drawn = record["per_token"]["logprob_sampled"]
        assert found[0].tolist() == pytest.approx(drawn, abs=2e-3)


@pytest.mark.parametrize(("name", "event"), [("tiny", EVENT), ("demo", "^(A|W)")])
def test_the_estimate_holds_the_models_own_probability(request, settings, pairs, name, event):
    """Of one token it is known: the mass, after truncation, of all tokens whose text matches."""
    loaded = request.getfixturevalue(name)
    top_p, samples = (0.95, 150) if name == "tiny" else (1.0, 25)
    done = sweep(loaded, pairs, settings_for(settings, top_p=top_p, samples=samples))
    truths = []
    vocabulary = loaded.model.config.vocab_size
    shown = loaded.tokenizer.batch_decode(
        [[n] for n in range(vocabulary)], skip_special_tokens=True
    )
    matching = torch.tensor([re.search(event, text) is not None for text in shown])
    limit = {"max_new_tokens": 1, "max_positions": loaded.max_positions}
    for pair in encode_pairs(pairs, loaded.tokenizer, **limit):
        ids, kept = nucleus(next_logits(loaded.model, pair.ids_a)[0], top_p)
        truths.append(float((kept / kept.sum())[0][matching[ids[0]]].sum()))
    truth = sum(truths) / len(truths)
    rates_model = pytest.MonkeyPatch()
    rates_model.setattr(rates, "_loaded", lambda run, where: loaded)
    found = rates.estimate_rate(done, rates.compiled(event)).rate
    rates_model.undo()
    assert found.verdict == "estimated" and found.ess_hits > 5
    assert found.lower <= truth <= found.upper
    assert found.mean_weight == pytest.approx(1, abs=0.15)


def test_the_command_prints_one_object_last(tiny_folder, tiny, settings, pairs, capsys):
    run = settings_for(settings, samples=20)
    sweep(tiny, pairs, run)
    flags = ["--data-dir", str(run.data_dir), "--event", EVENT, "--json"]
    assert estimate_rate.main([*flags, "--model", str(tiny_folder)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"estimate", "lower", "upper", "ess", "ess_hits", "verdict"} <= set(told)
    assert 0 <= told["lower"] <= told["estimate"] <= told["upper"] <= 1


@pytest.mark.parametrize(
    ("event", "changed", "told"),
    [
        ("(", {}, "EVENT = '\\('.* not a regular expression"),
        ("a", {"temperature": 0.0}, "TEMPERATURE = 0: a greedy answer has no rate"),
        (r"^\w?$", {"max_new_tokens": 9}, "a longer text can undo the match"),
    ],
)
def test_what_cannot_be_estimated_is_told_in_one_line(tiny, settings, pairs, event, changed, told):
    with pytest.raises(BadInput, match=told):
        done = sweep(tiny, pairs, settings_for(settings, samples=8, **changed))
        rates.estimate_rate(done, rates.compiled(event))


def test_a_rule_of_ones_own_and_another_model_are_refused(tiny, settings, pairs, tiny_folder):
    run = settings_for(settings, samples=8)

    def mine(logits_a, logits_b, alpha):
        return logits_a + 2 * alpha * (logits_a - logits_b)

    with pytest.raises(BadInput, match="it used a rule of its own"):
        rates.estimate_rate(sweep(tiny, pairs, run, rule=mine), rates.compiled("a"))
    done = sweep(tiny, pairs, run)
    done.run["model"] = done.run["model"] | {"parameters": 1}
    with pytest.raises(BadInput, match=r"not the run's model, its parameters differs"):
        rates.estimate_rate(done, rates.compiled("[a-z]"), model=str(tiny_folder))


def test_without_a_hit_no_model_is_needed(tiny, settings, pairs):
    done = sweep(tiny, pairs, settings_for(settings, samples=10))
    found = rates.estimate_rate(done, rates.compiled("no such words as these")).rate
    assert found.estimate == 0 and found.verdict.startswith("not estimable: no hit")
