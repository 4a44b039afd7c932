"""Requests one by one, from any thread: who waits for whom, and what a generation depends on."""

import threading

import pytest

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.interface import Cell, Contrast, Request, Stream
from logit_amplification.integrations import serving
from logit_amplification.integrations.serving import SHORTEST, Server
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.sampling import make_sampler

A, B = tuple(range(10, 30)), tuple(range(40, 52))


def contrast(offset=0):
    return Contrast(Stream(tuple(token + offset for token in A)), Stream(B))


def asking(length, seed=0, **more):
    return Request(make_sampler(1.0), seed, length, **more)


@pytest.fixture
def server(tiny):
    made = Server(BatchedEngine(tiny.model, 3))
    yield made
    made.close()


class Gate:
    """A rule that waits at a step until it is let go."""

    def __init__(self):
        self.waits, self.go = threading.Event(), threading.Event()

    def __call__(self, logits_a, logits_b, alpha):
        self.waits.set()
        assert self.go.wait(30)
        return amplify(logits_a, logits_b, alpha)


def test_a_request_joins_those_that_are_being_decoded(tiny):
    gate = Gate()
    server = Server(BatchedEngine(tiny.model, 3), rule=gate)
    long = server.submit(contrast(), asking(400), alpha=1.0)
    assert gate.waits.wait(30)  # it is being decoded
    short = server.submit(contrast(1), asking(3), alpha=1.0)
    gate.go.set()
    assert len(short.result(60).token_ids) == 3
    assert not long.done()  # nobody waited for it to end
    assert len(long.result(60).token_ids) == 400
    server.close()


def test_more_requests_than_slots_are_all_made_as_a_sweep_makes_them(tiny, server):
    """Whatever was decoded beside them: the same tokens as alone."""
    lengths = [5, 30, 2, 17, 9, 24, 3, 11]
    futures = [
        server.submit(contrast(n), asking(length, seed=n), alpha=n / 2, sample=n, origin="x")
        for n, length in enumerate(lengths)
    ]
    for n, (length, future) in enumerate(zip(lengths, futures, strict=True)):
        cell = Cell("pair", n / 2, n, origin="x")
        engine = BatchedEngine(tiny.model, 1)
        (alone,) = engine.generate([cell], {"pair": contrast(n)}, asking(length, seed=n))
        assert future.result(60).token_ids == alone.token_ids


def test_one_that_is_longer_gets_longer_slots(server):
    first = server.submit(contrast(), asking(40), alpha=1.0)
    longer = server.submit(contrast(), asking(SHORTEST), alpha=1.0)
    after = server.submit(contrast(), asking(5), alpha=1.0)
    assert [len(one.result(60).token_ids) for one in (first, longer, after)] == [40, SHORTEST, 5]
    assert server.length == 2 * SHORTEST


def test_one_that_is_cancelled_while_it_waits_is_not_made(tiny):
    gate = Gate()
    server = Server(BatchedEngine(tiny.model, 1), rule=gate)
    first = server.submit(contrast(), asking(5), alpha=1.0)
    assert gate.waits.wait(30)
    second, third = (server.submit(contrast(), asking(5), alpha=1.0) for _ in range(2))
    assert second.cancel()
    gate.go.set()
    assert first.result(60) and third.result(60)
    assert second.cancelled()
    server.close()


def test_it_ends_an_answer_where_its_request_says(server):
    whole = server.submit(contrast(), asking(30), alpha=1.0).result(60).token_ids
    third = whole[2]
    stops = server.submit(contrast(), asking(30, stops=lambda t: t[-1] == third), alpha=1.0)
    made = stops.result(60)
    assert made.finish_reason == "stop" and made.token_ids == whole[: whole.index(third) + 1]


def test_an_error_goes_to_those_that_are_being_made_and_the_rest_is_made(tiny, server):
    beyond = Contrast(Stream((10**6,)), Stream(B))
    with pytest.raises(IndexError):
        server.submit(beyond, asking(5), alpha=1.0).result(60)
    assert len(server.submit(contrast(), asking(5), alpha=1.0).result(60).token_ids) == 5


def test_one_that_is_too_long_for_memory_fails_alone(server, monkeypatch):
    """The slots cannot be made: the others are."""

    def refuse(rows, length):
        if length > SHORTEST:
            raise MemoryError
        return {"all": 1}

    monkeypatch.setattr(serving, "slot_bytes", refuse)
    with pytest.raises(MemoryError):
        server.submit(contrast(), asking(2 * SHORTEST), alpha=1.0).result(60)
    assert server.submit(contrast(), asking(5), alpha=1.0).result(60)


def test_after_its_end_it_takes_nothing_and_what_was_asked_is_there(tiny):
    server = Server(BatchedEngine(tiny.model, 2))
    futures = [server.submit(contrast(n), asking(20), alpha=1.0) for n in range(5)]
    server.close()
    assert all(len(one.result(0).token_ids) == 20 for one in futures)
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(contrast(), asking(5), alpha=1.0)


def test_when_nothing_comes_its_thread_ends_and_the_next_request_starts_another(
    server, monkeypatch
):
    """With the thread go the slots, and whoever holds the server alone can be forgotten."""
    monkeypatch.setattr(serving, "IDLE_SECONDS", 0.05)
    first = server.submit(contrast(), asking(5), alpha=1.0)
    thread = server.thread
    assert first.result(60)
    thread.join(10)
    assert not thread.is_alive() and server.thread is None
    again = server.submit(contrast(), asking(5), alpha=1.0)
    assert again.result(60).token_ids == first.result().token_ids
