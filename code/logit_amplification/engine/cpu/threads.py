"""How many processor threads a step takes while other programs keep cores busy.

torch's threads wait for one another at the end of every product. Where another program has one of
their cores, all wait for the one that shares it, many times a step: with one busy core of two a
step took four times as long. One thread less is then far faster. The number of threads changes no
bit of a step (docs/LOG.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

LOOK_SECONDS = 0.5  # between two looks at what others use
BUSY = 0.3  # cores that others use from which on a thread less is tried
TRIED = 2  # steps that a number of threads is tried for


class Threads:
    """Chooses torch's number of threads from step to step, between 1 and what it was at first."""

    def __init__(self, clock=time.perf_counter, others=None):
        self.most = self.now = torch.get_num_threads()
        self.clock, self.others = clock, others or _OthersCores(clock)
        self.seconds: list[float] = []  # of the last steps with this number of threads
        self.before: tuple[int, float] | None = None  # what is being held against the trial
        self.wait = 0.0  # no trial before this time
        self.patience = LOOK_SECONDS
        self.fewest = self.most

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Make a step with the number of threads chosen, and see how long it takes.

        Outside of it there are as many threads as at first: contexts are read with all of them,
        for in short ones (5 to 11 tokens, float32) their number would change bits.
        """
        torch.set_num_threads(self.now)
        started = self.clock()
        try:
            yield
        finally:
            torch.set_num_threads(self.most)
        self._note(self.clock() - started)

    def _note(self, seconds: float) -> None:
        """Choose the number of threads of the next step, after one that took so long."""
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
        """Keep what is tried if it is faster, and look again later if it is not."""
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
    """The processor cores that other programs have used since the last look."""

    def __init__(self, clock):
        self.clock, self.process = clock, psutil.Process()
        self.last = self._used()

    def __call__(self) -> float:
        before, self.last = self.last, self._used()
        (others, at), (others_before, at_before) = self.last, before
        return max(0.0, (others - others_before) / max(1e-9, at - at_before))

    def _used(self) -> tuple[float, float]:
        """Seconds of processor time that others have used so far, and the time."""
        machine, own = psutil.cpu_times(), self.process.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # On Linux the time of guests is counted within `user` as well.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        return sum(machine) - idle - guests - own.user - own.system, self.clock()
