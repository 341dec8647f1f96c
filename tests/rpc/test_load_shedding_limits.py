"""How many calls may be in, as a matter of counting."""

import logging

import pytest

from server.rpc.load_shedding import Admission
from tests.support.clock import Clock


def come(admission: Admission, number: int) -> int:
    """Let that many calls come; returns how many have been let in."""
    before = admission.in_flight
    for _ in range(number):
        if admission.is_full:
            admission.refuse()
        else:
            admission.enter()
    return admission.in_flight - before


def go(admission: Admission, number: int) -> None:
    for _ in range(number):
        admission.leave()


def test_a_burst_fills_the_queue() -> None:
    admission = Admission(at_once=10, queue=200)
    assert come(admission, 300) == 210
    assert (admission.in_flight, admission.refused) == (210, 90)


def test_callers_who_wait_for_their_answers_may_wait_for_ever() -> None:
    """A hundred of them are more than a short queue takes, and no overload."""
    admission = Admission(at_once=10, queue=200)
    come(admission, 100)
    for _ in range(1_000):
        go(admission, 1)
        assert come(admission, 1) == 1


def test_once_full_the_queue_is_kept_short() -> None:
    admission = Admission(at_once=10, queue=200)
    come(admission, 300)
    for _ in range(190):
        go(admission, 1)
        come(admission, 4)
    for _ in range(1_000):
        go(admission, 1)
        come(admission, 4)
        assert admission.in_flight == 20


def test_after_a_second_of_calm_a_burst_may_come_again() -> None:
    clock = Clock()
    admission = Admission(at_once=10, queue=200, clock=clock)
    come(admission, 300)
    go(admission, 210)
    assert come(admission, 100) == 20
    clock.now = 0.9
    assert come(admission, 1) == 0
    clock.now = 1.8
    go(admission, 20)
    assert come(admission, 100) == 20
    clock.now = 2.9
    go(admission, 9)
    assert come(admission, 100) == 9  # calls are still waiting
    clock.now = 3.9
    go(admission, 10)
    assert come(admission, 300) == 200


def test_the_queue_is_kept_as_short_as_the_answers_are_fast() -> None:
    clock = Clock()
    admission = Admission(at_once=10, queue=500, clock=clock)
    for _ in range(3_000):
        come(admission, 1)
        go(admission, 1)
    clock.now = 1.0
    admission.look()
    assert come(admission, 600) == 510
    go(admission, 510)
    assert come(admission, 600) == 150  # are answered in 50 ms
    go(admission, 90)
    clock.now = 1.5
    admission.look()
    go(admission, 5)
    assert come(admission, 600) == 5  # 600 in half a second were 60 in 50 ms
    clock.now = 2.5
    admission.look()
    go(admission, 45)
    assert come(admission, 600) == 5  # none was: one waits for each connection


def test_a_small_queue_is_not_made_longer() -> None:
    admission = Admission(at_once=10, queue=5)
    assert come(admission, 20) == 15
    go(admission, 1)
    assert come(admission, 2) == 1


def test_the_log_counts_and_does_not_swell(caplog: pytest.LogCaptureFixture) -> None:
    admission = Admission(at_once=1, queue=0)
    with caplog.at_level(logging.WARNING):
        come(admission, 100)
        for _ in range(3):
            admission.look()
        come(admission, 1)
        admission.look()
    assert [each.getMessage() for each in caplog.records] == [
        "overload: calls refused: 99",
        "overload: calls refused: 1",
    ]
