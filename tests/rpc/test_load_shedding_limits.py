"""LoadShedder: how many calls it accepts, without a server."""

import logging

import pytest

from server.rpc.load_shedding import LoadShedder
from tests.support.clock import Clock


def start_calls(shedder: LoadShedder, number: int) -> int:
    """Start that many calls, and return how many are accepted."""
    before = shedder.in_flight
    for _ in range(number):
        if shedder.is_full:
            shedder.reject()
        else:
            shedder.enter()
    return shedder.in_flight - before


def end_calls(shedder: LoadShedder, number: int) -> None:
    for _ in range(number):
        shedder.leave()


def test_a_burst_fills_the_queue() -> None:
    shedder = LoadShedder(concurrency=10, queue=200)
    assert start_calls(shedder, 300) == 210
    assert (shedder.in_flight, shedder.rejected) == (210, 90)


def test_a_constant_number_of_calls_is_never_rejected() -> None:
    """A hundred in flight exceed the short queue, but there was no overload."""
    shedder = LoadShedder(concurrency=10, queue=200)
    start_calls(shedder, 100)
    for _ in range(1_000):
        end_calls(shedder, 1)
        assert start_calls(shedder, 1) == 1


def test_after_overload_the_queue_is_kept_short() -> None:
    shedder = LoadShedder(concurrency=10, queue=200)
    start_calls(shedder, 300)
    for _ in range(190):
        end_calls(shedder, 1)
        start_calls(shedder, 4)
    for _ in range(1_000):
        end_calls(shedder, 1)
        start_calls(shedder, 4)
        assert shedder.in_flight == 20


def test_after_a_second_without_a_queue_a_burst_is_accepted_again() -> None:
    clock = Clock()
    shedder = LoadShedder(concurrency=10, queue=200, clock=clock)
    start_calls(shedder, 300)
    end_calls(shedder, 210)
    assert start_calls(shedder, 100) == 20
    clock.now = 0.9
    assert start_calls(shedder, 1) == 0
    clock.now = 1.8
    end_calls(shedder, 20)
    assert start_calls(shedder, 100) == 20
    clock.now = 2.9
    end_calls(shedder, 9)
    assert start_calls(shedder, 100) == 9  # calls are still queued
    clock.now = 3.9
    end_calls(shedder, 10)
    assert start_calls(shedder, 300) == 200


def test_the_length_of_the_short_queue_follows_the_call_rate() -> None:
    clock = Clock()
    shedder = LoadShedder(concurrency=10, queue=500, clock=clock)
    for _ in range(3_000):
        start_calls(shedder, 1)
        end_calls(shedder, 1)
    clock.now = 1.0
    shedder.poll()
    assert start_calls(shedder, 600) == 510
    end_calls(shedder, 510)
    assert start_calls(shedder, 600) == 150  # as many as end in 50 ms
    end_calls(shedder, 90)
    clock.now = 1.5
    shedder.poll()
    end_calls(shedder, 5)
    assert start_calls(shedder, 600) == 5  # in flight: 60, as 600 in half a second are 60 in 50 ms
    clock.now = 2.5
    shedder.poll()
    end_calls(shedder, 45)
    assert start_calls(shedder, 600) == 5  # none in 50 ms: one is queued for each connection


def test_the_short_queue_does_not_exceed_queue_size() -> None:
    shedder = LoadShedder(concurrency=10, queue=5)
    assert start_calls(shedder, 20) == 15
    end_calls(shedder, 1)
    assert start_calls(shedder, 2) == 1


def test_rejections_are_logged_as_sums(caplog: pytest.LogCaptureFixture) -> None:
    shedder = LoadShedder(concurrency=1, queue=0)
    with caplog.at_level(logging.WARNING):
        start_calls(shedder, 100)
        for _ in range(3):
            shedder.poll()
        start_calls(shedder, 1)
        shedder.poll()
    assert [each.getMessage() for each in caplog.records] == [
        "overload: calls rejected: 99",
        "overload: calls rejected: 1",
    ]
