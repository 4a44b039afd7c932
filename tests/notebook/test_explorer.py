"""The explorer: what it shows is what the rule gives, and looking costs no forward."""

import asyncio
import html
import math
import re
from collections import Counter

import pytest
import torch
from conftest import PROMPTS

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Cell, Contrast, Request
from logit_amplification.engine.reference import sample_amplified
from logit_amplification.errors import BadInput
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.next_token import ALPHAS, LISTED, NextToken
from logit_amplification.logits.sampling import make_sampler, uniforms
from logit_amplification.notebook import explorer
from logit_amplification.notebook.exploration import MOST_TEXTS, Exploration, first_difference
from logit_amplification.notebook.explorer import Explorer, explore, parse_alphas
from logit_amplification.notebook.next_token_view import next_token_html, side_by_side
from logit_amplification.prompts.files import read_pairs
from logit_amplification.sweeps.generate import generate as make

VOCABULARY = 300


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(3)
    return [3 * torch.randn(VOCABULARY, generator=generator) for _ in range(2)]


# ------------------------------------------------------------------------------ the next token


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.35, 2.0, 8.0])
def test_an_alphas_numbers_are_those_of_the_amplified_distribution(logits, alpha):
    choice = NextToken(*logits, temperature=0.7, top_p=0.9, chosen=17)
    shown = choice.at(alpha)
    a, b = (row.double() for row in logits)
    amplified = a + alpha * (a - b)
    p = amplified.softmax(-1)
    assert shown.probabilities == pytest.approx(p[choice.tokens].tolist(), abs=1e-6)
    assert shown.others == pytest.approx(1 - float(p[choice.tokens].sum()), abs=1e-6)
    assert shown.entropy == pytest.approx(-float((p * p.log()).sum()), abs=1e-4)
    divergence = float((p * (p.log() - a.log_softmax(-1))).sum())
    assert shown.kl_a == pytest.approx(divergence, abs=1e-4)
    cooled = (amplified / 0.7).softmax(-1).sort(descending=True)
    size = int((cooled.values.cumsum(0) - cooled.values < 0.9).sum())
    assert shown.nucleus == size
    drawable = set(cooled.indices[:size].tolist())
    assert shown.drawable == [token in drawable for token in choice.tokens]
    assert shown.rank == int((amplified > amplified[17]).sum()) + 1


def test_alpha_0_is_a_and_alpha_minus_1_is_b(logits):
    choice = NextToken(*logits)
    assert choice.at(0.0) == choice.under_a
    assert choice.at(-1.0).probabilities == pytest.approx(choice.under_b.probabilities, abs=1e-5)
    assert choice.kl_a_b == pytest.approx(
        float(
            (logits[0].softmax(-1) * (logits[0].log_softmax(-1) - logits[1].log_softmax(-1))).sum()
        ),
        abs=1e-4,
    )


def test_the_listed_tokens_are_the_likely_ones_in_the_order_of_preference(logits):
    choice = NextToken(*logits, chosen=250)
    assert len(choice.tokens) == LISTED and 250 in choice.tokens
    for alpha in (-1, 0, 1, 4):
        assert int(amplify(*logits, alpha).argmax()) in choice.tokens
    assert choice.preference == sorted(choice.preference, reverse=True)
    token = choice.tokens[0]
    log_a, log_b = (row.log_softmax(-1)[token] for row in logits)
    assert choice.preference[0] == pytest.approx(float(log_a - log_b), abs=1e-5)


def test_the_band_has_the_likeliest_token_of_every_stop_of_the_slider(logits):
    runs = NextToken(*logits).likeliest
    assert runs[0][0] == ALPHAS[0] == -1 and runs[-1][1] == ALPHAS[-1] == 8 and len(runs) > 2
    for alpha in ALPHAS:
        (token,) = [token for low, high, token in runs if low <= alpha <= high]
        assert token == int(amplify(*logits, alpha).argmax())


def test_a_rule_of_the_users_own_is_shown(logits):
    choice = NextToken(*logits, rule=lambda a, b, alpha: b)
    assert choice.at(3.0).probabilities == choice.under_b.probabilities


def test_greedy_draws_one_token(logits):
    choice = NextToken(*logits, temperature=0)
    assert choice.at(2.0).nucleus == 1 and sum(choice.at(2.0).drawable) == 1


def test_the_picture_tells_the_numbers_and_escapes_the_text(logits):
    choice = NextToken(*logits, top_p=0.9, chosen=17)
    page = next_token_html(choice, 1.5, lambda token: f"<script>{token}</script>\n x")
    assert "<script>" not in page and "&lt;script&gt;17&lt;/script&gt;⏎␣x" in page
    now = choice.at(1.5)
    assert f"<b>{now.kl_a:.3f}</b> nats" in page and f"amplified {now.nucleus}." in page
    assert f"rank {choice.under_a.rank}" in page
    assert page.count('<tr class="chosen"') == 1
    still = side_by_side(choice, (0.0, 2.0), str)
    assert "alpha 0" in still and "alpha 2" in still and "<script" not in still


def test_equal_contexts_have_one_distribution_at_every_alpha(logits):
    choice = NextToken(logits[0], logits[0])
    assert choice.at(8.0) == choice.under_a and choice.kl_a_b == 0
    assert len(choice.likeliest) == 1
    assert "the same" in next_token_html(choice, 8.0, str)


# ---------------------------------------------------------------------------------- the texts


def test_the_first_difference():
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference([1, 2], [1, 2, 4]) is None
    assert first_difference([], []) is None


@pytest.fixture
def two_pairs(tmp_path):
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    return read_pairs(tmp_path / "prompts.csv")


@pytest.fixture
def state(tiny, settings, two_pairs):
    exploration = Exploration(tiny, settings, amplify)
    exploration.read(two_pairs[1])
    return exploration


def generate(state, alphas, step_done=lambda: None):
    asyncio.run(state.generate(alphas, step_done))


def test_texts_are_those_of_the_sweep_and_keep_their_logits(state, tiny, settings):
    """Held to the sampling loop: tokens, and both contexts' logits at every token."""
    generate(state, [2.0, 0.0])
    assert [text.alpha for text in state.texts] == [0.0, 2.0]
    for text in state.texts:
        steps = sample_amplified(
            tiny.model,
            state.encoded.ids_a,
            state.encoded.ids_b,
            text.alpha,
            sampler=make_sampler(settings.temperature, settings.top_k, settings.top_p),
            uniforms=uniforms(settings.seed, "tone", 0, settings.max_new_tokens),
            stop_ids=tiny.stop_ids,
        )
        for place, step in enumerate(steps):
            assert text.generation.token_ids[place] == step.token
            for kept, wanted in zip(
                text.logits[place], (step.logits_a, step.logits_b), strict=True
            ):
                torch.testing.assert_close(kept, wanted[0].cpu(), atol=1e-4, rtol=1e-4)
        assert len(text.logits) == len(text.generation.token_ids) > 2


def test_looking_and_dragging_run_no_forward(state, tiny, monkeypatch):
    generate(state, [1.0])
    calls = Counter()
    monkeypatch.setattr(tiny.model, "forward", lambda *a, **k: calls.update(["forward"]))
    state.look(state.texts[0], 3)
    assert state.choice.chosen == state.texts[0].generation.token_ids[3]
    for alpha in ALPHAS:
        state.choice.at(alpha)
    state.look()
    assert state.choice.chosen is None and not calls


def test_between_two_tokens_the_model_is_its_own_and_a_text_can_be_stopped(state, tiny):
    before = tiny.model.config._attn_implementation
    seen = []

    def step_done():
        seen.append(tiny.model.config._attn_implementation)
        if len(seen) == 2:
            state.stop()

    generate(state, [1.0], step_done)
    assert seen == [before] * 2
    (text,) = state.texts
    assert len(text.generation.token_ids) == 2 and text.generation.finish_reason is None


def test_an_alpha_is_generated_once_and_texts_are_limited(state):
    generate(state, [1.0])
    (first,) = state.texts
    generate(state, [1.0, 1.0])
    assert state.texts == [first]
    with pytest.raises(BadInput, match=f"allowed: {MOST_TEXTS}"):
        generate(state, [float(alpha) for alpha in range(2, 2 + MOST_TEXTS)])
    assert state.texts == [first]
    state.clear()
    assert state.texts == [] and state.reference is None


def test_texts_are_compared_with_the_alpha_nearest_to_0(state):
    generate(state, [-1.0, 0.5, 3.0])
    assert state.reference.alpha == 0.5


# -------------------------------------------------------------------------------- the widgets


@pytest.fixture
def shown(tiny, two_pairs, settings):
    """Without the texts of the start, so that each test has only its own."""
    opened = explore(tiny, two_pairs, settings, alphas=())
    opened.alpha.value = 0.0
    return opened


def test_it_opens_at_alpha_2_with_texts(tiny, two_pairs, settings):
    opened = explore(tiny, two_pairs, settings)
    assert opened.alpha.value == 2.0 and "alpha 2.00" in opened.bars.value
    assert [column.text.alpha for column in opened.columns] == [0.0, 1.0, 2.0]
    for column in opened.columns:
        assert column.text.generation.finish_reason in ("eos", "length")
        assert len(column.tokens.children) == len(column.text.generation.token_ids)
    assert "first token" in opened.place.value
    assert "<b>alpha 2</b>" in opened.still


def test_on_a_slow_machine_the_texts_of_the_start_are_cut(tiny, two_pairs, settings, monkeypatch):
    monkeypatch.setattr(explorer, "OPENING_SECONDS", -1)
    opened = explore(tiny, two_pairs, settings)
    assert [len(column.tokens.children) for column in opened.columns] == [1, 1, 1]
    assert all("stopped; Generate makes it whole" in c.head.value for c in opened.columns)
    opened.buttons["all"].click()
    assert all(re.search("ended|cut at", column.head.value) for column in opened.columns)


def test_what_was_typed_is_read_before_it_is_generated(shown):
    shown.fields["A", "system"].value = "Be as rude as you can."
    shown.buttons["here"].click()
    typed = shown.state.encoded.pair
    assert typed.id == "typed" and typed.a[0]["content"] == "Be as rude as you can."
    assert len(shown.columns) == 1


def test_the_line_of_python_makes_the_same_text(tiny, two_pairs, settings):
    """Run as it stands, with the model that is loaded already in the place of loading it."""
    opened = explore(tiny, two_pairs, settings)
    for pair in two_pairs[:2]:
        opened.pair.value = pair.id
        opened.alpha.value = 2.0
        opened.buttons["here"].click()
        line = opened.state.as_python(2.0)
        assert html.escape(line) in opened.line.value and "clipboard" in opened.line.value
        assert "\n" not in line and "rule=" not in line
        (answer,) = eval(line, {"generate": make, "load_model": lambda *a, **k: tiny})
        (text,) = [text for text in opened.state.texts if text.alpha == 2.0]
        assert answer.token_ids == text.generation.token_ids


def test_a_rule_of_ones_own_is_named_in_the_line(tiny, two_pairs, settings):
    def halved(a, b, alpha):
        return a + alpha / 2 * (a - b)

    opened = explore(tiny, two_pairs, settings, rule=halved, alphas=())
    assert opened.state.as_python(1.0).endswith(", rule=halved)")


def test_the_slider_redraws(shown):
    assert shown.alpha.min == -1 and shown.alpha.max == 8
    before = shown.bars.value
    shown.alpha.value = 2.5
    assert shown.bars.value != before and "alpha 2.50" in shown.bars.value


def test_every_input_is_labelled(shown):
    inputs = [shown.pair, shown.alpha, shown.others, *shown.fields.values()]
    assert all(widget.description for widget in [*inputs, *shown.buttons.values()])


def test_texts_grow_token_by_token_and_the_first_difference_is_marked(shown, monkeypatch):
    lengths = []
    show = Explorer._show_texts

    def watched(self):
        show(self)
        lengths.append([len(column.tokens.children) for column in self.columns])

    monkeypatch.setattr(Explorer, "_show_texts", watched)
    shown.others.value = "0 4"
    shown.buttons["all"].click()
    assert lengths[:3] == [[1, 1], [2, 2], [3, 3]]
    reference, other = shown.columns
    texts = [column.text.generation.token_ids for column in shown.columns]
    place = first_difference(*texts)
    marked = [n for n, b in enumerate(other.tokens.children) if "lda-parts" in b._dom_classes]
    assert place is not None and marked == [place]
    assert f"first differs from alpha 0 at token {place + 1}" in other.head.value
    assert not any("lda-parts" in b._dom_classes for b in reference.tokens.children)


def test_a_click_on_a_token_shows_its_place(shown):
    shown.alpha.value = 1.5
    shown.buttons["here"].click()
    (column,) = shown.columns
    shown.alpha.value = 0.0
    column.tokens.children[2].click()
    assert "Token 3 of the text at alpha 1.5" in shown.place.value and shown.alpha.value == 1.5
    assert "The text goes on with" in shown.bars.value
    at_hand = [n for n, b in enumerate(column.tokens.children) if "lda-at-hand" in b._dom_classes]
    assert at_hand == [2]
    shown.buttons["first"].click()
    assert "first token" in shown.place.value and "goes on with" not in shown.bars.value


def test_another_pair_and_a_pair_of_ones_own(shown, two_pairs):
    shown.pair.value = "tone"
    assert shown.fields["A", "system"].value == "Be rude." and shown.state.encoded.pair.id == "tone"
    shown.fields["A", "system"].value = "Be as rude as you can."
    shown.fields["B", "system"].value = ""
    shown.buttons["read"].click()
    typed = shown.state.encoded.pair
    assert typed.id == "typed" and typed.a[0]["content"] == "Be as rude as you can."
    assert typed.b == ({"role": "user", "content": "What is tea?"},)
    assert shown.pair.value == explorer.EDITED and shown.fields["B", "system"].value == ""
    shown.fields["A", "system"].value = "Be rude."
    shown.fields["B", "system"].value = "Be kind."
    shown.buttons["read"].click()
    assert shown.state.encoded.pair is two_pairs[1]  # with its own random numbers again
    assert shown.pair.value == "tone" and explorer.EDITED not in shown.pair.options
    shown.fields["A", "system"].value = "Be kinder."
    shown.buttons["read"].click()
    shown.pair.value = "tone"  # the pair's own texts again
    assert shown.fields["A", "system"].value == "Be rude."
    assert shown.state.encoded.pair is two_pairs[1] and explorer.EDITED not in shown.pair.options


def test_a_prefill_and_a_raw_text_can_be_typed(shown):
    shown.fields["A", "prefill"].value = "Well"
    shown.buttons["read"].click()
    typed = shown.state.encoded.pair
    assert typed.a[-1] == {"role": "assistant", "content": "Well"}
    assert typed.b[-1]["role"] == "user"
    shown.raw["B"].value = True
    assert shown.fields["B", "prefill"].disabled and not shown.fields["A", "prefill"].disabled
    shown.fields["B", "user"].value = "Once upon"
    shown.buttons["read"].click()
    assert shown.state.encoded.pair.b == ({"role": "raw", "content": "Once upon"},)
    shown.pair.value = "tone"  # another pair brings its own
    assert not shown.raw["B"].value and shown.fields["A", "prefill"].value == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda shown: setattr(shown.fields["A", "user"], "value", "  "), "not empty"),
        (lambda shown: setattr(shown.fields["B", "user"], "value", "x" * 2000), "exceed"),
    ],
)
def test_what_cannot_be_read_is_told_in_place(shown, change, told):
    before = shown.bars.value
    change(shown)
    shown.buttons["read"].click()
    assert shown.status.value.startswith('<b role="alert">error: ') and told in shown.status.value
    assert shown.bars.value == before
    shown.buttons["first"].click()
    assert shown.status.value == ""


@pytest.mark.parametrize("text", ["1, two", "nan", "1e9", "<b>"])
def test_alphas_that_are_none_are_told(shown, text):
    shown.others.value = text
    shown.buttons["all"].click()
    assert "allowed: " in shown.status.value and "<b>&" not in shown.status.value
    assert not shown.columns and not shown.buttons["here"].disabled


def test_alphas_are_parsed():
    assert parse_alphas("0, .5 2,,-1") == [0.0, 0.5, 2.0, -1.0]


def test_a_rule_that_fails_is_told(tiny, two_pairs, settings):
    def broken(a, b, alpha):
        if isinstance(alpha, torch.Tensor):
            raise ZeroDivisionError("no such thing")
        return a

    shown = explore(tiny, two_pairs, settings, rule=broken)
    shown.buttons["here"].click()
    assert "the rule raised ZeroDivisionError" in shown.status.value
    assert not shown.buttons["here"].disabled and shown.buttons["stop"].disabled


def test_a_frontend_without_widgets_gets_a_picture(shown):
    bundle = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "The likeliest token along alpha" in bundle["text/html"]


def test_without_ipywidgets_the_picture_stands_still(tiny, two_pairs, settings, monkeypatch):
    monkeypatch.setattr(explorer, "widgets", None)
    assert "alpha 4" in explore(tiny, two_pairs, settings).data


def test_a_text_of_the_explorer_is_a_text_of_the_engine(state, settings):
    """The engine by itself, with as many slots, gives the same tokens."""
    generate(state, [0.0, 2.0])
    pair = state.encoded.pair
    made = BatchedEngine(state.model.model, 2).generate(
        [Cell(pair.id, alpha, 0) for alpha in (0.0, 2.0)],
        {pair.id: Contrast.of(state.encoded)},
        Request.of(settings, state.model.stop_ids),
    )
    tokens = {g.cell.alpha: g.token_ids for g in made}
    assert tokens == {text.alpha: text.generation.token_ids for text in state.texts}
    assert math.isfinite(state.texts[0].generation.per_token[0][0])
