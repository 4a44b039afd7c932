"""The number of threads follows what other programs take, and changes no bit."""

from __future__ import annotations

import pytest
import torch

from decoding import TINY_CONTEXTS, run
from logit_amplification.engine.cpu import threads
from logit_amplification.engine.cpu.threads import Threads
from logit_amplification.engine.interface import Cell
from made_up_time import Clock


@pytest.fixture(autouse=True)
def _four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def steps(chosen, clock, seconds, count=40):
    """Make steps that take seconds(threads); return how many threads each had."""
    used = []
    for _ in range(count):
        with chosen.at_work():
            used.append(torch.get_num_threads())
            clock.pass_by(seconds(used[-1]))
        assert torch.get_num_threads() == 4  # contexts are read with all of them
    return used


def test_on_a_quiet_machine_nothing_is_ever_tried():
    clock = Clock()
    used = steps(Threads(clock, lambda: 0.1), clock, lambda threads: 0.3)
    assert set(used) == {4}


def test_a_busy_neighbour_costs_one_thread_and_gives_it_back_when_it_goes():
    clock, busy = Clock(), [1.0]
    chosen = Threads(clock, lambda: busy[0])
    used = steps(chosen, clock, lambda threads: 1.2 if threads == 4 else 0.4)
    assert used[:3] == [4, 4, 3] and set(used[2:]) == {3}
    assert chosen.fewest == 3
    busy[0] = 0.0
    assert steps(chosen, clock, lambda threads: 1.2 / threads)[-30:] == [4] * 30


def test_fewer_threads_that_are_no_faster_are_given_up_and_tried_ever_more_rarely():
    """A container sees what others use of cores that are not its own."""
    clock = Clock()
    used = steps(Threads(clock, lambda: 30.0), clock, lambda threads: 1.2 / threads, 200)
    assert used.count(1) <= 10 and used[-20:] == [4] * 20


def test_what_others_use_is_measured():
    clock = Clock()
    others = threads._OthersCores(clock)
    clock.pass_by(1.0)
    assert 0 <= others() < 64


@pytest.mark.parametrize("number", [1, 2])
def test_the_number_of_threads_changes_no_bit(tiny, number, monkeypatch):
    cells = [Cell(name, alpha, 0) for name in TINY_CONTEXTS for alpha in (0.0, 2.0)]
    expected = run(tiny, cells, TINY_CONTEXTS)
    monkeypatch.setattr(Threads, "_note", lambda self, seconds: setattr(self, "now", number))
    made = run(tiny, cells, TINY_CONTEXTS)
    for cell in cells:
        assert made[cell].token_ids == expected[cell].token_ids
        assert made[cell].per_token == expected[cell].per_token
