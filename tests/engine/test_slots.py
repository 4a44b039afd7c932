"""The batch of slots: what it costs, that its memory moves without a trace, and running short."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from decoding import GREEDY, TINY_CONTEXTS, demo_contexts, generate, run, tokens_of
from logit_amplification.engine.batch import batched, cache, slots, step
from logit_amplification.engine.interface import Cell, Generation
from logit_amplification.errors import BadInput
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.machine import sizes
from logit_amplification.models.loading import load_model
from logit_amplification.settings import load_settings

SAMPLER = make_sampler(0.9, 0, 0.95)
CELLS = [Cell(name, alpha, s) for name in TINY_CONTEXTS for alpha in (0.0, 2.0) for s in (0, 1)]
LONG = {"long": (tuple(range(3, 103)), tuple(range(150, 20, -1)))}


@pytest.fixture(scope="module")
def tiny_run(tiny):
    """The cells as they come out of the CPU's ordinary path."""
    return run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER)


def same(ours, theirs):
    """Token for token and measure for measure."""
    return set(ours) == set(theirs) and all(
        (ours[cell].token_ids, ours[cell].per_token, ours[cell].finish_reason)
        == (theirs[cell].token_ids, theirs[cell].per_token, theirs[cell].finish_reason)
        for cell in ours
    )


# ------------------------------------------------------------------- neighbours and moving memory


@pytest.fixture(scope="module")
def demo_in_its_own_dtype():
    return load_model(load_settings(model="demo", device="cpu"))


def test_a_cell_of_the_demo_comes_out_the_same_whatever_is_beside_it(demo_in_its_own_dtype):
    """A subset of what `code/benchmark.py neighbours` does with every cell of the default sweep."""
    loaded = demo_in_its_own_dtype
    contexts = demo_contexts(loaded, "edge-very-long", "persona-pirate", "edge-one-character")
    cells = [Cell(name, alpha, 0) for name in contexts for alpha in (0.0, 1.0, 2.0)]
    options = {"sampler": make_sampler(0.7, 0, 0.9), "length": 10, "slots": 6}
    together = run(loaded, cells, contexts, **options)
    assert same(run(loaded, cells[::-1], contexts, **options), together)
    one_alpha = [cell for cell in cells if cell.alpha == 1.0]
    halves = run(loaded, cells[:5], contexts, **options) | run(
        loaded, cells[5:], contexts, **options
    )
    assert same(halves, together)
    for some in (one_alpha, cells[:1], cells[-1:]):
        assert same(run(loaded, some, contexts, **options), {c: together[c] for c in some})


def test_a_longer_pair_beside_it_changes_no_cell(tiny, tiny_run):
    """Its rows need more memory, and all rows get it."""
    contexts = TINY_CONTEXTS | LONG
    cells = [Cell("long", 1.0, 0), *CELLS, Cell("long", 0.0, 0)]
    made = run(tiny, cells, contexts, sampler=SAMPLER)
    assert same({cell: made[cell] for cell in CELLS}, tiny_run)


def test_memory_follows_the_longest_row_in_use(tiny, monkeypatch):
    seen = []
    forward = step.Rows.forward
    monkeypatch.setattr(
        step.Rows, "forward", lambda self, t: (forward(self, t), seen.append(self.window))[0]
    )
    cells = [Cell("one", 0.0, 0), Cell("long", 0.0, 0), Cell("two", 0.0, 0), Cell("two", 1.0, 0)]
    run(tiny, cells, TINY_CONTEXTS | LONG, slots=1, stop_ids=frozenset())
    assert seen == [32] * 15 + [160] * 15 + [32] * 30


def test_memory_that_stays_gives_the_same_cells(tiny, tiny_run, monkeypatch):
    """What a GPU does: all rows as long as the longest from the start, and rows taken at once."""
    monkeypatch.setattr(step, "MOVING", set())
    monkeypatch.setattr(batched, "ROWS_AT_ONCE", {})
    made = run(tiny, CELLS, TINY_CONTEXTS | LONG, sampler=SAMPLER)
    assert same(made, tiny_run)


def test_two_forwards_give_the_same_tokens(tiny, tiny_run):
    apart = run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER, forwards=2)
    assert tokens_of(apart) == tokens_of(tiny_run)


# -------------------------------------------------------------------------------- captured steps


def test_a_captured_step_reads_and_writes_the_same_memory_every_time(tiny, tiny_run, monkeypatch):
    """The CUDA path on a CPU: the step is run several times in warm-up, then replayed."""
    addresses = []

    class FakeGraph:
        def __init__(self, step):
            self.step = step
            for _ in range(4):
                step()

        def replay(self):
            rows = self.step.__self__
            memory = [rows.tokens, rows.positions, rows.logits]
            memory += [part for layer in rows.layers for part in (layer.keys, layer.values)]
            addresses.append(tuple(part.data_ptr() for part in memory))
            with cache.attending(rows.model, rows.attention):  # a graph has the attention in it
                self.step()

    monkeypatch.setattr(step, "MOVING", set())
    monkeypatch.setattr(step, "CAPTURED", {"cpu"})
    monkeypatch.setattr(step, "capture", FakeGraph)
    made = run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER)
    assert same(made, tiny_run)
    assert len(addresses) > 50 and len(set(addresses)) == 1


def stub_cuda(monkeypatch, error):
    """Put stand-ins in the place of what `capture` uses; capturing fails with `error`, if any."""
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, Stub())
    monkeypatch.setattr(torch.cuda, "graph", Stub(error))


class Stub:
    """Whatever is asked of it, it is there."""

    def __init__(self, error=None):
        self.error = error

    def __call__(self, *_):
        return self

    def wait_stream(self, _):
        pass

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None and self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "captured"), [(None, True), (RuntimeError("not permitted"), False)]
)
def test_a_step_that_cannot_be_captured_runs_as_it_is(tiny, tiny_run, monkeypatch, error, captured):
    stub_cuda(monkeypatch, error)
    assert bool(step.capture(lambda: None)) == captured
    if not captured:
        monkeypatch.setattr(step, "CAPTURED", {"cpu"})
        assert same(run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER), tiny_run)


def test_a_capture_that_runs_out_of_memory_says_so(monkeypatch):
    stub_cuda(monkeypatch, torch.cuda.OutOfMemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        step.capture(lambda: None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: none is here")
def test_on_a_gpu_the_graph_makes_the_tokens_of_the_cpu(tiny_folder, tiny_run):
    loaded = load_model(
        load_settings(model=str(tiny_folder), quantization="none", dtype="float32", device="cuda")
    )
    made = run(loaded, CELLS, TINY_CONTEXTS, sampler=SAMPLER)
    assert tokens_of(made) == tokens_of(tiny_run)


# ------------------------------------------------------------------------------------------ memory


def test_a_slots_bytes_are_those_of_its_memory(tiny):
    length = 100
    rows = step.Rows(tiny.model, torch.zeros(2, tiny.model.config.vocab_size), length)
    held = sum(part.nbytes for layer in rows.layers for part in (layer.keys, layer.values))
    assert slots.slot_bytes([tiny.model] * 2, length)["keys_and_values"] == held


def test_slots_shrink_with_the_memory_that_is_free(tiny):
    slot = sum(slots.slot_bytes([tiny.model] * 2, 100).values())
    assert sizes.choose_slots("cpu", slot, 2 * 7 * slot) == 7
    assert sizes.choose_slots("cpu", slot, slot) == 0
    assert sizes.choose_slots("cpu", slot, 1 << 60) == sizes.MOST_AUTO_SLOTS["cpu"]


def out_of_memory_above(monkeypatch, rows, after=0):
    """The model's forward fails like a full GPU when more than `rows` rows come, from a step on."""
    calls = []
    forward = step.Rows.forward

    def limited(self, tokens):
        calls.append(len(tokens))
        if len(tokens) > rows and len(calls) > after:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        forward(self, tokens)

    monkeypatch.setattr(step.Rows, "forward", limited)
    return calls


def test_out_of_memory_halves_the_slots_and_makes_every_cell_once(tiny, tiny_run, monkeypatch):
    calls = out_of_memory_above(monkeypatch, 4, after=20)
    told = []
    made = list(
        generate(
            tiny.model,
            CELLS,
            TINY_CONTEXTS,
            sampler=SAMPLER,
            seed=0,
            max_new_tokens=16,
            stop_ids=tiny.stop_ids,
            slots=8,
            on_out_of_memory=told.append,
        )
    )
    assert told == [4, 2] and set(calls) == {16, 8, 4}
    assert sorted(map(repr, (g.cell for g in made))) == sorted(map(repr, CELLS))
    assert {g.slots for g in made} == {8, 2}  # what was finished before is kept
    assert {g.cell: g.token_ids for g in made} == tokens_of(tiny_run)


def test_out_of_memory_while_a_slot_is_filled_loses_no_cell(tiny, tiny_run, monkeypatch):
    fill, count = step.Rows.fill, []

    def failing(self, *args):
        count.append(1)
        if len(count) == 12:
            raise torch.cuda.OutOfMemoryError
        return fill(self, *args)

    monkeypatch.setattr(step.Rows, "fill", failing)
    assert tokens_of(run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER, slots=8)) == tokens_of(
        tiny_run
    )


def test_out_of_memory_with_one_slot_is_one_clear_line(tiny, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(BadInput, match="SLOTS = 1: out of memory on cpu; what may help"):
        run(tiny, CELLS, TINY_CONTEXTS)
    assert tiny.model.config._attn_implementation != "slots"


def test_ten_thousand_cells_leave_nothing_behind(tiny):
    """Alive at any moment: the generations in the slots, the contexts still needed, few tensors."""
    cells = [Cell(name, a / 100, s) for name in TINY_CONTEXTS for a in range(50) for s in range(50)]
    made = generate(
        tiny.model, cells, TINY_CONTEXTS, sampler=GREEDY, seed=0, max_new_tokens=2, slots=32
    )
    before, contexts, *_ = alive()  # of other tests
    counts = []
    for number, generation in enumerate(made, start=1):
        assert len(generation.per_token) == len(generation.token_ids) <= 2
        if number % 2000 == 100:
            counts.append(alive())
    assert number == len(cells) == 10_000
    first = counts[0]
    for generations, prefixes, tensors, elements in counts:
        assert generations - before <= 2 * 32 and prefixes - contexts <= 2 * 32
        assert tensors <= first[2] + 60 and elements <= 1.2 * first[3]  # contexts are kept
    assert alive()[:2] == (before + 1, contexts)  # the last one, which this test holds


def alive():
    """How many generations, prefixes and tensors there are, and the tensors' elements."""
    gc.collect()
    things = gc.get_objects()
    tensors = [thing for thing in things if issubclass(type(thing), torch.Tensor)]
    return (
        sum(type(thing) is Generation for thing in things),
        sum(type(thing) is cache.Prefix for thing in things),
        len(tensors),
        sum(tensor.numel() for tensor in tensors),
    )


def test_the_memory_of_a_batch_is_free_when_it_ends(tiny):
    """At once: a reference cycle would wait for the garbage collector, gigabytes at a time."""

    def layers():
        return sum(type(thing) is cache.SlotLayer for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = layers()
        run(tiny, CELLS, TINY_CONTEXTS, sampler=SAMPLER)
        unfinished = generate(
            tiny.model, CELLS, TINY_CONTEXTS, sampler=GREEDY, seed=0, max_new_tokens=4
        )
        next(unfinished)
        unfinished.close()
        assert layers() == before
    finally:
        gc.enable()


def test_measures_of_a_row_do_not_depend_on_the_arms_beside_it(tiny):
    """An arm that forbids tokens sits in the same batch; the full row's numbers stay."""
    full = [Cell("one", 1.5, 0, "full")]
    mixed = [replace(full[0], arm=arm) for arm in ("plausible", "full", "api_floor")]
    alone, beside = (run(tiny, cells, TINY_CONTEXTS, sampler=SAMPLER) for cells in (full, mixed))
    assert same(alone, {full[0]: beside[full[0]]})
