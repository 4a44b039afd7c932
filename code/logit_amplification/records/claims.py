"""Divide a run among several processes, which claim pieces of work by creating files.

The cells of a plan are cut into *pieces*: some cells of one pair, so that its contexts are read
only once. A process claims a piece by creating its file (`<piece>.<turn>`) in a folder that all
processes share, and creates `<piece>.done` when it has finished. Each process keeps changing a file
of its own, `<writer>.beat`, to show that it is alive. When that file stops changing, the others
take over the pieces that its process had claimed but not finished: one of them creates the file of
the piece's next turn. The clocks of two machines are never compared, and nothing is deleted while
anybody works, so a network file system is enough. If a process was only slow, its piece is made
twice: the same cells with the same tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput

BEAT_SECONDS = 2.0
# Twice as long as Linux may trust what it has cached of a file on NFS (acregmax).
LAPSE_SECONDS = 120.0
LOOK_SECONDS = 1.0  # the shortest pause between two listings of the folder
LOOKING_SHARE = 20  # the pause is at least this many times as long as the last listing took


class Made(NamedTuple):
    """How many generations have been made, and how many tokens they have."""

    generations: int
    tokens: int


class Alone:
    """The share of a single process, which is everything. It has the interface of `Claims`."""

    def __init__(self, items: Sequence[Hashable]):
        self.all = items

    def items(self, look: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Yield all items."""
        return iter(self.all)

    def finished(self, item: Hashable, tokens: int) -> None:
        """Do nothing, since there is no other process to tell."""

    def alive(self) -> AbstractContextManager[None]:
        """Return a context that does nothing, since there is no other process to tell."""
        return nullcontext()

    def made_by_others(self) -> Made:
        """Return zero, since there are no other processes."""
        return Made(0, 0)


class Claims:
    """The pieces of one sweep, as seen by one of the processes that share it.

    folder: an existing folder, used by this sweep alone. writer: this process's name, unique in the
    sweep. pieces: the same in all processes; their items are hashable, and no item is in two.
    start: the index of the first piece to try, so that processes do not all compete for the same
    pieces. clock: returns seconds since an arbitrary start.
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        pieces: Sequence[Sequence[Hashable]],
        *,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.writer, self.pieces, self.clock = Path(folder), writer, pieces, clock
        numbers = range(len(pieces))
        self.untried = iter([*numbers[start:], *numbers[:start]])
        self.unfinished = dict.fromkeys(numbers, 0)  # by piece: its latest known turn
        self.taken: set[int] = set()  # pieces known to be claimed by any process
        self.in_hand: dict[Hashable, int] = {}  # items being made, with their piece
        self.left: dict[int, int] = {}  # by piece in hand: items still to finish
        self.signs: dict[str, tuple[str, float]] = {}  # last beat seen, and since when
        self.made = self.others = Made(0, 0)
        self.beats = 0
        self.next_look = self.next_count = -float("inf")

    def items(self, look: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Yield the items that this process is to make, until all pieces are finished by anyone.

        Yields None when there is nothing to claim now but items yielded earlier are unfinished.
        look: called repeatedly while waiting for other processes; an exception that it raises ends
        the wait. Raises BadInput when the folder cannot be written.
        """
        while True:
            piece = self.claim()
            if piece is not None:
                self.begin(piece)
                yield from self.pieces[piece]
            elif not self.unfinished and not self.in_hand:
                return
            elif self.in_hand:
                yield None
            else:
                look()
                time.sleep(min(0.1, LOOK_SECONDS))

    def begin(self, piece: int) -> None:
        """Register a claimed piece: all of its items are to be made by this process."""
        self.in_hand |= dict.fromkeys(self.pieces[piece], piece)
        self.left[piece] = len(self.pieces[piece])

    def finished(self, item: Hashable, tokens: int) -> None:
        """Record that an item has been made and is safe on disk; it has `tokens` tokens.

        Raises BadInput when the folder cannot be written.
        """
        self.made = Made(self.made.generations + 1, self.made.tokens + tokens)
        piece = self.in_hand.pop(item)
        self.left[piece] -= 1
        if not self.left[piece]:
            # If this process was taken for dead, another may have finished the piece already.
            with suppress(FileExistsError, FileNotFoundError):
                self._create(f"{piece}.done")
            self.unfinished.pop(piece, None)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Within this context a thread reports that this process is alive and what it has made."""
        ended = threading.Event()
        self._beat()

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                self._beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._beat()

    def made_by_others(self) -> Made:
        """Return what the other processes report to have made so far."""
        told = [_read_json(path) for path in self.folder.glob("*.beat") if path.stem != self.writer]
        return Made(*(sum(one.get(name, 0) for one in told) for name in Made._fields))

    # ------------------------------------------------------------------------------------ claiming

    def claim(self) -> int | None:
        """Claim a piece that is free, or one whose process has died, and return its index.

        None if there is no such piece now. Raises BadInput when the folder cannot be written.
        """
        for piece in self.untried:
            if piece in self.taken:
                continue
            if self._is_claimed_now(piece, 0):
                return piece
            self._look()  # its neighbours are probably taken too, so list all at once
        if not self._look():
            return None
        return next(filter(self._is_taken_over, list(self.unfinished)), None)

    def _look(self) -> bool:
        """Update which pieces are taken and finished, unless it is too soon (then return False)."""
        if self.clock() < self.next_look:
            return False
        began = self.clock()
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:  # deleted by the first process, so everything is finished
            self.unfinished.clear()
            return True
        for name in names:
            piece, _, kind = name.partition(".")
            if kind == "done":
                self.unfinished.pop(int(piece), None)
                self.taken.add(int(piece))
            elif kind.isdigit():
                self.taken.add(int(piece))
                if int(kind) > self.unfinished.get(int(piece), int(kind)):
                    self.unfinished[int(piece)] = int(kind)
        # With a hundred thousand files on a slow disk this takes seconds, so it is done less often.
        took = self.clock() - began
        self.next_look = self.clock() + max(LOOK_SECONDS, LOOKING_SHARE * took)
        return True

    def _is_taken_over(self, piece: int) -> bool:
        if self.left.get(piece):
            return False
        turn = self.unfinished[piece]
        return self._is_silent(f"{piece}.{turn}") and self._is_claimed_now(piece, turn + 1)

    def _is_silent(self, claim: str) -> bool:
        """Whether a claim's process has shown no sign of life for `LAPSE_SECONDS`."""
        writer = _read(self.folder / claim)
        # The file is empty if its process died between creating it and writing its name.
        sign = _read(self.folder / f"{writer}.beat") if writer else ""
        whose = writer or claim
        if self.signs.get(whose, (None,))[0] != sign:
            self.signs[whose] = sign, self.clock()
        return self.clock() - self.signs[whose][1] >= LAPSE_SECONDS

    def _is_claimed_now(self, piece: int, turn: int) -> bool:
        try:
            self._create(f"{piece}.{turn}")
        except FileExistsError:
            return False
        except FileNotFoundError:  # everything is finished: see `_look`
            return False
        self.unfinished[piece] = turn
        return True

    def _create(self, name: str) -> None:
        """Create a file that contains this writer's name.

        Raises FileExistsError if the file exists, FileNotFoundError if the folder does not, and
        BadInput if the disk refuses it.
        """
        try:
            file = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            try:
                os.write(file, self.writer.encode())
            finally:
                os.close(file)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError as error:
            raise BadInput(
                f"cannot claim generations in {self.folder.name} of run {self.folder.parent.name}: "
                f"{error.strerror}; what was finished before is kept"
            ) from None

    def _beat(self) -> None:
        self.beats += 1
        told = {"beat": self.beats, **self.made._asdict()}
        with suppress(OSError):  # writing the journal will fail too, and reports the error
            scratch = self.folder / f"{self.writer}.beat.new"
            scratch.write_text(json.dumps(told))
            os.replace(scratch, self.folder / f"{self.writer}.beat")


def claims_folder(run: Path, name: str) -> Path:
    """Return the folder for the claims of a sweep, below its run's folder."""
    return run / f"claims-{name}"


def delete_claims(run: Path) -> None:
    """Delete the claims of all sweeps of a run; the caller must know that none is running."""
    for folder in run.glob("claims-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_read(path) or "{}")
    except ValueError:  # a faulty disk; only a count is lost
        return {}
