"""Claims of pieces: nothing twice while all live, nothing left when one dies."""

from __future__ import annotations

import threading
from itertools import chain

import pytest

from logit_amplification.errors import BadInput, Terminated
from logit_amplification.records import claims
from logit_amplification.records.claims import Claims, Made, delete_claims

PIECES = [[f"{piece}-{item}" for item in range(1 + piece % 3)] for piece in range(20)]
ITEMS = {item for piece in PIECES for item in piece}


class Clock:
    """Seconds that pass when the code under test sleeps, and stands in for its module `time`.

    `time.sleep` itself is left alone: it belongs to every thread of this process, and a thread that
    an earlier test left behind would make this clock run.
    """

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(claims, "time", self)

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def take_all(share):
    """Make everything that a process gets, as an engine with one slot would."""
    made = []
    for item in share.items():
        made.append(item)
        share.finished(item, tokens=2)
    return made


def test_several_slots_of_one_process_are_told_when_there_is_nothing_now(tmp_path, clock):
    """While it still makes something it is told None, and does not wait."""
    ours = Claims(tmp_path, "0", [["a", "b"], ["c"]], clock=clock)
    theirs = Claims(tmp_path, "1", [["a", "b"], ["c"]], start=1, clock=clock)
    other = theirs.items()
    assert next(other) == "c"
    items = ours.items()
    assert [next(items), next(items), next(items), next(items)] == ["a", "b", None, None]
    ours.finished("b", 1)
    assert next(items) is None
    ours.finished("a", 1)
    theirs.finished("c", 1)
    assert next(items, "end") == next(other, "end") == "end"


def in_threads(shares):
    """Let processes share; return what each has made."""
    made = {share.writer: [] for share in shares}

    def work(share):
        with share.alive():
            made[share.writer] += take_all(share)

    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def test_what_a_dead_process_held_is_taken_over_by_one_alone(tmp_path, monkeypatch):
    for name, seconds in {"BEAT": 0.02, "LAPSE": 1.0, "LOOK": 0.02}.items():
        monkeypatch.setattr(claims, f"{name}_SECONDS", seconds)
    dead = Claims(tmp_path, "9", PIECES)
    with dead.alive():
        items = dead.items()
        held = {next(items) for _ in range(5)}
    made = in_threads([Claims(tmp_path, str(n), PIECES, start=7 * n) for n in range(3)])
    assert sorted(chain(*made.values())) == sorted(ITEMS) and held < ITEMS
    assert (tmp_path / "0.1").exists() and not (tmp_path / "0.2").exists()


def test_a_claim_without_a_name_lapses_too(tmp_path, clock):
    """Its process died between creating the file and writing into it."""
    (tmp_path / "0.0").touch()
    share = Claims(tmp_path, "1", [["a"], ["b"]], clock=clock)
    with share.alive():
        assert sorted(take_all(share)) == ["a", "b"]
    assert clock.now >= claims.LAPSE_SECONDS


def test_a_living_process_is_waited_for_however_long_it_takes(tmp_path, clock):
    slow = Claims(tmp_path, "1", [["a"]], clock=clock)
    next(slow.items())
    waited = 0

    def look():
        nonlocal waited
        waited += 1
        slow._beat()
        if clock.now > 5 * claims.LAPSE_SECONDS and slow.in_hand:
            slow.finished("a", 1)

    share = Claims(tmp_path, "2", [["a"]], clock=clock)
    assert list(share.items(look)) == []
    assert waited > 100


def test_one_that_was_only_slow_may_finish_what_another_has_taken_over(tmp_path, clock):
    slow = Claims(tmp_path, "1", [["a", "b"]], clock=clock)
    items = slow.items()
    next(items), next(items)
    other = Claims(tmp_path, "2", [["a", "b"]], clock=clock)
    assert take_all(other) == ["a", "b"]
    slow.finished("a", 1)
    slow.finished("b", 1)
    assert next(items, "end") == "end"


def test_deleted_claims_end_the_work_quietly(tmp_path, clock):
    """The first process deletes them when all is finished; others may still be looking."""
    folder = tmp_path / "claims-x"
    folder.mkdir()
    first, late = (Claims(folder, str(n), [["a"], ["b"]], clock=clock) for n in range(2))
    looking = Claims(folder, "3", [["a"], ["b"]], clock=clock)
    assert next(first.items()) == "a" and next(looking.items()) == "b"
    first.finished("a", 1)
    waiting = late.items(lambda: delete_claims(tmp_path))
    assert next(waiting, "end") == "end" and clock.now < 5
    looking.finished("b", 1)
    assert not folder.exists()


def test_what_ends_a_wait_is_raised(tmp_path, clock):
    next(Claims(tmp_path, "1", [["a"]], clock=clock).items())

    def look():
        raise Terminated("x")

    with pytest.raises(Terminated):
        list(Claims(tmp_path, "2", [["a"]], clock=clock).items(look))


def test_others_are_counted_by_their_own_account(tmp_path, clock):
    one, two = (Claims(tmp_path, str(n), PIECES, clock=clock) for n in range(2))
    with one.alive():
        made = take_all(one)
    assert two.made_by_others() == Made(len(made), 2 * len(made))
    (tmp_path / "0.beat").write_text("{")  # half of it
    clock.now += 100
    assert two.made_by_others() == Made(0, 0)


def test_a_folder_that_takes_no_file_is_told(tmp_path, clock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims.os, "open", full)
    with pytest.raises(BadInput, match=r"cannot claim generations .*No space left"):
        next(Claims(tmp_path, "1", [["a"]], clock=clock).items())


def test_processes_that_race_for_the_same_pieces_make_each_once(tmp_path):
    pieces = [[number] for number in range(300)]
    made = in_threads([Claims(tmp_path, str(number), pieces) for number in range(8)])
    assert sorted(chain(*made.values())) == list(range(300))
