"""Kinds of steps: packed and compiled ones are held to the eager one, and rows are only left out
where that changes no bit.
"""

from __future__ import annotations

import copy

import pytest
import torch

from decoding import TINY_CONTEXTS, demo_contexts, run, tokens_of
from logit_amplification.engine.batch import step
from logit_amplification.engine.batch.cache import prefill
from logit_amplification.engine.batch.self_check import divergence
from logit_amplification.engine.batch.slots import Slots
from logit_amplification.engine.cpu import compiled, packed
from logit_amplification.engine.interface import Cell
from logit_amplification.errors import BadInput
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.sweeps.capacity import STEPS_WORTH_COMPILING, choose_step

CELLS = [Cell(name, alpha, s) for name in TINY_CONTEXTS for alpha in (0.0, 2.0) for s in (0, 1)]
SAMPLER = make_sampler(0.9, 0, 0.95)
packable = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs oneDNN: this torch is built without it"
)
needs_compiler = pytest.mark.skipif(
    not compiled.has_compiler(), reason="needs a C++ compiler, as g++: none is here"
)
# What torch's compiler imports of torch itself is deprecated.
pytestmark = [packable, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]


@pytest.fixture
def filled(tiny):
    """Slots with a context each, of a kind of step."""

    def fill(kind, slots=8, model=tiny.model):
        made = Slots([model, model], slots, 64, kind=kind)
        for slot, (a, b) in enumerate(TINY_CONTEXTS.values()):
            prefixes = {ids: prefill(model, ids) for ids in (a, b)}
            made.fill(slot, [prefixes[a], prefixes[b]])
        return made

    return fill


def go_on(slots, tokens=(5, 7, 11, 13), count=6):
    """Feed the same tokens to every slot, and return the logits behind each."""
    seen = []
    with torch.inference_mode():
        for number in range(count):
            fed = torch.zeros(slots.slots, dtype=torch.long)
            fed[: len(tokens)] = torch.tensor(tokens) + number
            slots.forward(fed)
            seen.append(torch.stack(slots.logits(slice(len(tokens)))))
    return torch.stack(seen)


# ---------------------------------------------------------------------------------- kinds of steps


@pytest.mark.parametrize("kind", ["packed", pytest.param("compiled", marks=needs_compiler)])
def test_a_step_differs_from_the_eager_one_by_rounding(tiny, filled, kind):
    ours, eager = (go_on(filled(one)).log_softmax(-1) for one in (kind, "eager"))
    kl = (eager.exp() * (eager - ours)).sum(-1)
    assert kl.abs().max() < 1e-6
    layers = step.model_of_step(tiny.model, kind).modules()
    assert sum(isinstance(layer, packed.PackedLinear) for layer in layers) == 15
    assert divergence(tiny.model, kind)[0] < 1e-6


@needs_compiler
def test_a_compiled_step_makes_the_same_cells_whatever_is_beside_them(tiny):
    together = run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER, step="compiled")
    alone = run(tiny, CELLS[-1:], TINY_CONTEXTS, sampler=SAMPLER, step="compiled")
    assert alone[CELLS[-1]].per_token == together[CELLS[-1]].per_token
    eager = run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER, step="eager")
    assert tokens_of(together) == tokens_of(eager)
    assert compiled._layers == ()  # no memory is held


def test_the_model_itself_stays_as_it_is(tiny):
    before = copy.deepcopy(tiny.model.state_dict())
    kinds = [type(module) for module in tiny.model.modules()]
    run(tiny, CELLS[:1], TINY_CONTEXTS, step="packed")
    assert [type(module) for module in tiny.model.modules()] == kinds
    assert all(torch.equal(before[name], now) for name, now in tiny.model.state_dict().items())
    of_step = step.model_of_step(tiny.model, "packed")
    assert of_step is not tiny.model and of_step is step.model_of_step(tiny.model, "packed")
    ours = {id(one) for one in of_step.parameters()}
    assert ours == {id(one) for one in tiny.model.parameters()}  # no second copy of them


def test_weights_that_are_changed_in_place_are_packed_again(tiny, filled):
    model = copy.deepcopy(tiny.model)
    before = go_on(filled("packed", model=model))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3)
    after = go_on(filled("packed", model=model))
    assert (before - after).abs().max() > 0.1
    assert (after - go_on(filled("eager", model=model))).abs().max() < 1e-3


def test_auto_is_the_eager_step_where_weights_cannot_be_packed(tiny, monkeypatch):
    assert step.kind_of_step("auto", [tiny.model]) == "packed"
    monkeypatch.setattr(packed, "SHARE_OF_MEMORY", 0.0)  # a machine that is too small
    assert step.kind_of_step("auto", [tiny.model]) == "eager"
    with pytest.raises(BadInput, match=r"^STEP = packed: .*; allowed here: auto, eager$"):
        step.kind_of_step("packed", [tiny.model])


def test_without_a_compiler_no_step_is_compiled(tiny, monkeypatch):
    monkeypatch.setattr(step, "has_compiler", lambda: True)
    assert step.kind_of_step("compiled", [tiny.model]) == "compiled"
    monkeypatch.setattr(step, "has_compiler", lambda: False)
    with pytest.raises(BadInput, match=r"^STEP = compiled: it needs a C\+\+ compiler, as g\+\+;"):
        step.kind_of_step("compiled", [tiny.model])


def test_auto_compiles_for_a_long_plan_and_stays_with_what_a_run_began(
    tiny, settings, monkeypatch, capsys
):
    monkeypatch.setattr("logit_amplification.sweeps.capacity.has_compiler", lambda: True)
    auto = settings.model_copy(update={"slots": 10, "max_new_tokens": 10})

    def chosen(steps, *begun):
        return choose_step(tiny, auto, steps, lambda kind: kind in begun)

    assert chosen(STEPS_WORTH_COMPILING - 1) == "packed"
    assert chosen(STEPS_WORTH_COMPILING) == "compiled"
    assert f"because this sweep has about {STEPS_WORTH_COMPILING}" in capsys.readouterr().out
    assert chosen(STEPS_WORTH_COMPILING, "packed") == "packed"
    assert chosen(1, "compiled") == "compiled"


def test_auto_says_that_there_is_no_compiler(tiny, settings, monkeypatch, capsys):
    monkeypatch.setattr("logit_amplification.sweeps.capacity.has_compiler", lambda: False)
    assert choose_step(tiny, settings, 10**6, lambda kind: False) == "packed"
    assert "compiled steps need a C++ compiler" in capsys.readouterr().out


# ------------------------------------------------------------------------------------- fewer rows


def test_a_null_pair_is_read_once(filled):
    slots = filled("packed")
    rows = slots.batches[0]
    assert sum(length > 0 for length in rows.lengths) == 7  # of four pairs, one of them null
    seen = go_on(slots)
    assert torch.equal(seen[:, 0, 3], seen[:, 1, 3])  # "null" stands in the last of the slots
    assert not torch.equal(seen[:, 0, 0], seen[:, 1, 0])


def test_rows_at_the_end_are_left_out_and_no_bit_changes(filled, monkeypatch):
    few = filled("packed")
    rows = few.batches[0]
    assert rows.fewer == [4, 8, 12] and len(rows.lengths) == 16
    seen = go_on(few)
    assert rows.fed == 8 or rows.same_bits[8] is False
    monkeypatch.setattr(step, "fewer_rows", lambda rows: [])
    whole = filled("packed")
    assert torch.equal(go_on(whole), seen) and whole.batches[0].fed == 16


def test_gaps_are_closed_when_a_cell_ends(filled):
    slots, untouched = filled("packed"), filled("packed")
    for one in (slots, untouched):
        go_on(one, count=2)
    slots.clear(0)
    slots.clear(1)
    rows = slots.batches[0]
    assert max(row for row, length in enumerate(rows.lengths) if length) == 6
    after, expected = (go_on(one)[:, :, 2:] for one in (slots, untouched))
    assert torch.equal(after, expected)
    if rows.same_bits.get(4, True):
        assert rows.fed == 4 and rows.lengths[4:] == [0] * 12


def test_rows_that_would_round_otherwise_are_all_fed(filled, monkeypatch):
    """A processor whose products depend on the number of rows: told by what comes out."""
    feed = step.Rows.feed
    whole = go_on(filled("packed"))
    monkeypatch.setattr(
        step.Rows, "feed", lambda self: feed(self) + (0 if self.fed == 16 else 1e-3)
    )
    slots = filled("packed")
    assert torch.equal(go_on(slots), whole)
    rows = slots.batches[0]
    assert rows.fed == 16 and rows.same_bits == {8: False, 12: False}


def test_another_number_of_slots_makes_the_same_cells_of_the_demo(demo):
    """Packed products in float32, on processors where a row's bits are its own."""
    contexts = demo_contexts(demo, "persona-pirate", "edge-one-character")
    cells = [Cell(name, alpha, 0) for name in contexts for alpha in (0.0, 1.0, 2.0)]
    options = {"sampler": make_sampler(0.7, 0, 0.9), "length": 8, "step": "packed"}
    made = [run(demo, cells, contexts, slots=slots, **options) for slots in (2, 6, 12)]
    assert tokens_of(made[0]) == tokens_of(made[1]) == tokens_of(made[2])
