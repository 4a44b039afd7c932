"""Serve generations that are requested one by one, from any thread, in one shared batch.

A request that arrives while others are being decoded takes the next free slot: nobody waits for a
batch to fill or to end. Only a request that is longer than the slots waits for longer ones, and
those behind it wait with it. A generation does not depend on what is decoded beside it.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from ..engine.batch.batched import BatchedEngine, rows_of_a_slot
from ..engine.batch.slots import slot_bytes
from ..engine.interface import Cell, Contrast, Generation, Request, Stream
from ..logits.amplification import Rule, amplify
from ..logits.sampling import make_sampler
from ..machine import devices, sizes

SHORTEST = 512  # positions per slot at first; they double when a request needs more
IDLE_SECONDS = 5.0  # without a request, after which the slots' memory is released
PLACE = ""  # pair id of a placeholder that determines the rows of a slot


@dataclass
class Asked:
    """A cell that is waiting or being made, and the future for its generation."""

    cell: Cell
    contrast: Contrast
    request: Request
    future: Future[Generation]

    @property
    def length(self) -> int:
        """The number of positions that its longest stream may need."""
        longest = max(len(stream.ids) for stream in self.contrast.streams)
        return longest + self.request.max_new_tokens


class Server:
    """Passes requests to an engine that works in a thread of its own.

    All contrasts are read with the same sources of weights. The number of slots of the engine is
    the maximum; fewer are used if memory is short. rule: the one for every request.
    """

    def __init__(self, engine: BatchedEngine, *, rule: Rule = amplify):
        self.engine, self.rule, self.most = engine, rule, engine.slots
        self.changed = threading.Condition()
        self.waiting: deque[Asked] = deque()
        self.working: dict[str, Asked] = {}  # by pair id, which is a running number here
        self.contexts: dict[str, Contrast] = {}
        self.requests: dict[str, Request] = {}
        self.names = map(str, itertools.count(1))
        self.length = SHORTEST
        self.closed = False
        self.thread: threading.Thread | None = None

    def submit(
        self,
        contrast: Contrast,
        request: Request,
        *,
        alpha: float,
        arm: str = "full",
        sample: int = 0,
        origin: str = "",
    ) -> Future[Generation]:
        """Request one generation; its random numbers depend only on the seed, origin and sample.

        The future raises what the engine raises. A request that is cancelled while it waits is not
        made. Raises RuntimeError if the server is closed.
        """
        future: Future[Generation] = Future()
        with self.changed:
            if self.closed:
                raise RuntimeError("the server is closed")
            cell = Cell(next(self.names), alpha, sample, arm, origin or "request")
            self.waiting.append(Asked(cell, contrast, request, future))
            if self.thread is None:
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()  # it first waits for this lock
                self.thread = thread
            self.changed.notify()
        return future

    def close(self) -> None:
        """Finish what was requested, and accept nothing more."""
        with self.changed:
            self.closed = True
            self.changed.notify()
            thread = self.thread
        if thread:
            thread.join()

    def _work(self) -> None:
        """Run batch after batch: one ends for longer slots, after an error, and when idle."""
        while self._goes_on():
            try:
                self._make_room()
                made = self.engine.generate(self._arriving(), self.contexts, self._shared())
                for generation in made:
                    self._leave(generation.cell.pair_id).set_result(generation)
            except BaseException as error:  # any error belongs to those who asked
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Pass an error to the requests being made or, without any, to the first that waits."""
        with self.changed:
            self.length = SHORTEST  # longer slots may not fit in memory
            failed = list(self.working)
            if not failed and self.waiting:
                asked = self.waiting.popleft()
                if asked.future.set_running_or_notify_cancel():
                    asked.future.set_exception(error)
        for name in failed:
            self._leave(name).set_exception(error)

    def _goes_on(self) -> bool:
        """Whether any request waits; if not, the thread ends until the next request starts one."""
        with self.changed:
            if not self.waiting:
                self.thread = None
            return bool(self.waiting)

    def _make_room(self) -> None:
        """Make slots that are long enough for the first request that waits, as many as fit."""
        first = self.waiting[0]
        while self.length < first.length:
            self.length *= 2
        # The streams of the placeholder all differ, so that every slot has a row for each.
        streams = enumerate(first.contrast.streams)
        self.contexts[PLACE] = Contrast(*(Stream((n,), one.source) for n, one in streams))
        rows = rows_of_a_slot(self.engine.sources, [self.contexts[PLACE]])
        each = sum(slot_bytes(rows, self.length).values())
        device = rows[0].device
        fitting = sizes.choose_slots(device.type, each, devices.free_memory(device))
        self.engine.slots = max(1, min(self.most, fitting))

    def _shared(self) -> Request:
        """Return the request for all: rule and maximum length. Each has the rest for itself."""
        most = self.length - 1  # after the placeholder's one token
        return Request(make_sampler(0), 0, most, rule=self.rule, of_pair=self.requests)

    def _arriving(self) -> Iterator[Cell | None]:
        """Yield cells as they arrive; end when the next needs longer slots, or none has arrived."""
        while True:
            with self.changed:
                if not self.working:
                    self.changed.wait_for(lambda: self.waiting or self.closed, IDLE_SECONDS)
                while self.waiting and self.waiting[0].future.cancelled():
                    self.waiting.popleft()
                if self.waiting and self.waiting[0].length > self.length:
                    return
                if not self.waiting and not self.working:
                    return
                cell = self._take()
            yield cell

    def _take(self) -> Cell | None:
        """Return the cell that has waited longest and is still wanted, or None for now."""
        while self.waiting and self.waiting[0].length <= self.length:
            asked = self.waiting.popleft()
            if asked.future.set_running_or_notify_cancel():
                name = asked.cell.pair_id
                self.working[name] = asked
                self.contexts[name], self.requests[name] = asked.contrast, asked.request
                return asked.cell
        return None

    def _leave(self, name: str) -> Future[Generation]:
        """Forget what is finished; return the future of its generation."""
        with self.changed:
            del self.contexts[name], self.requests[name]
            return self.working.pop(name).future
