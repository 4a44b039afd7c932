"""Choose how many CPU threads a step uses while other programs keep cores busy.

torch's threads wait for each other at the end of every product. Where another program occupies one
of their cores, all of them wait for the thread that shares it, many times per step: with one of two
cores busy, a step took four times as long. One thread less is then far faster. The number of
threads changes no bit of a step (docs/LOG.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

LOOK_SECONDS = 0.5  # between two looks at what other programs use
BUSY = 0.3  # cores used by other programs, from which on fewer threads are tried
TRIED = 2  # steps for which a number of threads is tried


class Threads:
    """Chooses torch's number of threads for each step, between 1 and the initial number."""

    def __init__(self, clock=time.perf_counter, others=None):
        self.most = self.now = torch.get_num_threads()
        self.clock, self.others = clock, others or _OthersCores(clock)
        self.seconds: list[float] = []  # of the last steps with this number of threads
        self.before: tuple[int, float] | None = None  # during a trial: threads and seconds to beat
        self.wait = 0.0  # no trial before this time
        self.patience = LOOK_SECONDS
        self.fewest = self.most

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run one step with the chosen number of threads, and measure how long it takes.

        Outside the block the initial number applies: contexts are read with all threads, because in
        short ones (5 to 11 tokens, float32) the number of threads would change bits.
        """
        torch.set_num_threads(self.now)
        started = self.clock()
        try:
            yield
        finally:
            torch.set_num_threads(self.most)
        self._note(self.clock() - started)

    def _note(self, seconds: float) -> None:
        """Choose the number of threads for the next step, after one that took `seconds`."""
        self.fewest = min(self.fewest, self.now)
        self.seconds = [*self.seconds[-TRIED + 1 :], seconds]
        if len(self.seconds) < TRIED:
            return
        took = min(self.seconds)
        if self.before:
            self._judge(took)
        elif self.clock() >= self.wait:
            self._look(took)

    def _look(self, took: float) -> None:
        self.wait = self.clock() + self.patience
        busy = self.others()
        wanted = max(1, self.most - max(1, round(busy))) if busy >= BUSY else self.most
        if wanted != self.now:
            self.before = self.now, took
            self._set(wanted)

    def _judge(self, took: float) -> None:
        """Keep the number that was tried if it is faster; else go back, and look again later."""
        (threads, took_before), self.before = self.before, None
        if took < took_before:
            self.patience = LOOK_SECONDS
        else:
            self._set(threads)
            self.patience = min(60.0, 4 * self.patience)
        self.wait = self.clock() + self.patience

    def _set(self, threads: int) -> None:
        self.now, self.seconds = threads, []


class _OthersCores:
    """How many CPU cores other programs have used on average since the last call."""

    def __init__(self, clock):
        self.clock, self.process = clock, psutil.Process()
        self.last = self._used()

    def __call__(self) -> float:
        before, self.last = self.last, self._used()
        (others, at), (others_before, at_before) = self.last, before
        return max(0.0, (others - others_before) / max(1e-9, at - at_before))

    def _used(self) -> tuple[float, float]:
        """Return the CPU seconds that other programs have used so far, and the current time."""
        machine, own = psutil.cpu_times(), self.process.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # On Linux, guest time is counted within `user` as well.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        return sum(machine) - idle - guests - own.user - own.system, self.clock()
