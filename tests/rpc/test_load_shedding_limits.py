"""How many calls may be in flight: the counting alone."""

import logging

import pytest

from server.rpc.load_shedding import LoadShedder
from tests.support.clock import Clock


def come(shedder: LoadShedder, number: int) -> int:
    """Let that many calls come; returns how many have been let in."""
    before = shedder.in_flight
    for _ in range(number):
        if shedder.is_full:
            shedder.reject()
        else:
            shedder.enter()
    return shedder.in_flight - before


def go(shedder: LoadShedder, number: int) -> None:
    for _ in range(number):
        shedder.leave()


def test_a_burst_fills_the_queue() -> None:
    shedder = LoadShedder(concurrency=10, queue=200)
    assert come(shedder, 300) == 210
    assert (shedder.in_flight, shedder.rejected) == (210, 90)


def test_callers_who_wait_for_their_answers_may_wait_for_ever() -> None:
    """A hundred of them are more than a short queue takes, and no overload."""
    shedder = LoadShedder(concurrency=10, queue=200)
    come(shedder, 100)
    for _ in range(1_000):
        go(shedder, 1)
        assert come(shedder, 1) == 1


def test_once_full_the_queue_is_kept_short() -> None:
    shedder = LoadShedder(concurrency=10, queue=200)
    come(shedder, 300)
    for _ in range(190):
        go(shedder, 1)
        come(shedder, 4)
    for _ in range(1_000):
        go(shedder, 1)
        come(shedder, 4)
        assert shedder.in_flight == 20


def test_after_a_second_of_calm_a_burst_may_come_again() -> None:
    clock = Clock()
    shedder = LoadShedder(concurrency=10, queue=200, clock=clock)
    come(shedder, 300)
    go(shedder, 210)
    assert come(shedder, 100) == 20
    clock.now = 0.9
    assert come(shedder, 1) == 0
    clock.now = 1.8
    go(shedder, 20)
    assert come(shedder, 100) == 20
    clock.now = 2.9
    go(shedder, 9)
    assert come(shedder, 100) == 9  # calls are still waiting
    clock.now = 3.9
    go(shedder, 10)
    assert come(shedder, 300) == 200


def test_the_queue_is_kept_as_short_as_the_answers_are_fast() -> None:
    clock = Clock()
    shedder = LoadShedder(concurrency=10, queue=500, clock=clock)
    for _ in range(3_000):
        come(shedder, 1)
        go(shedder, 1)
    clock.now = 1.0
    shedder.poll()
    assert come(shedder, 600) == 510
    go(shedder, 510)
    assert come(shedder, 600) == 150  # are answered in 50 ms
    go(shedder, 90)
    clock.now = 1.5
    shedder.poll()
    go(shedder, 5)
    assert come(shedder, 600) == 5  # 600 in half a second were 60 in 50 ms
    clock.now = 2.5
    shedder.poll()
    go(shedder, 45)
    assert come(shedder, 600) == 5  # none was: one waits for each connection


def test_a_small_queue_is_not_made_longer() -> None:
    shedder = LoadShedder(concurrency=10, queue=5)
    assert come(shedder, 20) == 15
    go(shedder, 1)
    assert come(shedder, 2) == 1


def test_the_log_counts_and_does_not_swell(caplog: pytest.LogCaptureFixture) -> None:
    shedder = LoadShedder(concurrency=1, queue=0)
    with caplog.at_level(logging.WARNING):
        come(shedder, 100)
        for _ in range(3):
            shedder.poll()
        come(shedder, 1)
        shedder.poll()
    assert [each.getMessage() for each in caplog.records] == [
        "overload: calls rejected: 99",
        "overload: calls rejected: 1",
    ]
