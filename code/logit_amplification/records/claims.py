"""Who makes what, where several processes share a run: files that only one of them can create.

The cells of a plan fall into *pieces*, some cells of one pair, so that its contexts are read once.
A process claims a piece by creating its file in a folder that all of them see, and marks it when it
is done. Each process shows that it lives by a file that changes (`<writer>.beat`). Where one stops
changing, what its process held and had not finished is taken over: another process creates the
file of the piece's next turn. No clocks of two machines are compared, and nothing is deleted while
anybody works, so a network file system will do. A process that was only slow makes a piece twice:
the same cells, the same tokens.
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
# Twice as long as Linux may keep what it has read of a file on NFS (acregmax).
LAPSE_SECONDS = 120.0
LOOK_SECONDS = 1.0  # between two looks at what the others have left, at least
LOOKING_SHARE = 20  # and this many times as long as the last one took


class Made(NamedTuple):
    """How many generations a process has made, and how many tokens they have."""

    generations: int
    tokens: int


class Alone:
    """What one process is to make that shares with none: all of it."""

    def __init__(self, items: Sequence[Hashable]):
        self.all = items

    def items(self, look: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Yield all there is to make."""
        return iter(self.all)

    def finished(self, item: Hashable, tokens: int) -> None:
        """Nobody else needs to know."""

    def alive(self) -> AbstractContextManager[None]:
        """Nobody else needs to know."""
        return nullcontext()

    def made_by_others(self) -> Made:
        """Nothing."""
        return Made(0, 0)


class Claims:
    """The pieces of one sweep, as one of the processes that share it sees them.

    folder: of this sweep alone, and there. pieces: the same on all processes; their items are
    hashable and none stands in two. start: the piece to begin with, so that processes do not all
    try the same ones.
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
        self.unfinished = dict.fromkeys(numbers, 0)  # by piece: the last turn that is known
        self.taken: set[int] = set()  # as far as is known: by others, or by this process
        self.in_hand: dict[Hashable, int] = {}  # what is being made: its piece
        self.left: dict[int, int] = {}  # how many items a piece in hand still lacks
        self.signs: dict[str, tuple[str, float]] = {}  # of life: the last, and since when
        self.made = self.others = Made(0, 0)
        self.beats = 0
        self.next_look = self.next_count = -float("inf")

    def items(self, look: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Yield what this process is to make, until every piece is finished, by whomsoever.

        None: there is nothing now, and this process is still making something. look: called
        while it waits for others; what it raises ends the wait.
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
        """Take a piece that was claimed in hand: all of its items are to be made here."""
        self.in_hand |= dict.fromkeys(self.pieces[piece], piece)
        self.left[piece] = len(self.pieces[piece])

    def finished(self, item: Hashable, tokens: int) -> None:
        """Note that an item is made and safe on the disk."""
        self.made = Made(self.made.generations + 1, self.made.tokens + tokens)
        piece = self.in_hand.pop(item)
        self.left[piece] -= 1
        if not self.left[piece]:
            # Taken for dead, this process is perhaps not the only one that has finished it.
            with suppress(FileExistsError, FileNotFoundError):
                self._create(f"{piece}.done")
            self.unfinished.pop(piece, None)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Show that this process lives, from a thread of its own, and what it has made."""
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
        """Return what the other processes have made so far, by their own account."""
        told = [_read_json(path) for path in self.folder.glob("*.beat") if path.stem != self.writer]
        return Made(*(sum(one.get(name, 0) for one in told) for name in Made._fields))

    # ------------------------------------------------------------------------------------ claiming

    def claim(self) -> int | None:
        """Claim a piece that nobody has, or one that its process has left; None: not now."""
        for piece in self.untried:
            if piece in self.taken:
                continue
            if self._is_claimed_now(piece, 0):
                return piece
            self._look()  # where one is taken its neighbours are too: a list of all is cheaper
        if not self._look():
            return None
        return next(filter(self._is_taken_over, list(self.unfinished)), None)

    def _look(self) -> bool:
        """Learn which pieces are taken and which are finished, now and then; return whether now."""
        if self.clock() < self.next_look:
            return False
        began = self.clock()
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:  # the first process has deleted it: all is finished
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
        # Of a hundred thousand files on a slow disk a look takes seconds: then rarely.
        took = self.clock() - began
        self.next_look = self.clock() + max(LOOK_SECONDS, LOOKING_SHARE * took)
        return True

    def _is_taken_over(self, piece: int) -> bool:
        if self.left.get(piece):
            return False
        turn = self.unfinished[piece]
        return self._is_silent(f"{piece}.{turn}") and self._is_claimed_now(piece, turn + 1)

    def _is_silent(self, claim: str) -> bool:
        """Whether the process that has a claim has given no sign of life for long enough."""
        writer = _read(self.folder / claim)
        # A process may have died between creating its claim and writing its name into it.
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
        except FileNotFoundError:  # all is finished: see `_look`
            return False
        self.unfinished[piece] = turn
        return True

    def _create(self, name: str) -> None:
        """Create a file with this writer's name in it.

        Raises FileExistsError if it is there, FileNotFoundError if the folder is not, BadInput if
        the disk takes none.
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
        with suppress(OSError):  # the journal, which is written too, tells what is wrong
            scratch = self.folder / f"{self.writer}.beat.new"
            scratch.write_text(json.dumps(told))
            os.replace(scratch, self.folder / f"{self.writer}.beat")


def claims_folder(run: Path, name: str) -> Path:
    """Where the claims of a sweep are, below its run."""
    return run / f"claims-{name}"


def delete_claims(run: Path) -> None:
    """Delete the claims of all sweeps of a run; the caller knows that none is under way."""
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
    except ValueError:  # a sick disk: it is only a count
        return {}
