"""How many frames that ask for nothing are no flood."""

from itertools import count, takewhile

from server.http.h2_flood import FrameAllowance
from tests.support.clock import Clock


def spent(allowance: FrameAllowance) -> int:
    """How many can be spent at once."""
    return sum(1 for _ in takewhile(lambda _: allowance.spend(), count()))


def used_up() -> tuple[FrameAllowance, Clock]:
    clock = Clock(100)
    allowance = FrameAllowance(clock)
    assert spent(allowance) == 2_000
    return allowance, clock


def test_some_are_granted_each_second_and_saved_up_to_a_limit() -> None:
    allowance, clock = used_up()
    clock.now += 3
    assert 298 <= spent(allowance) <= 300
    clock.now += 3_600
    assert 1_998 <= spent(allowance) <= 2_000


def test_a_client_that_pings_every_second_comes_nowhere_near() -> None:
    clock = Clock(100)
    allowance = FrameAllowance(clock)
    for _ in range(100_000):
        clock.now += 1
        assert allowance.spend()


def test_each_call_and_each_answer_grants_some() -> None:
    allowance, _ = used_up()
    for _ in range(10):
        allowance.earn_for_call()
    assert 98 <= spent(allowance) <= 100
    allowance, _ = used_up()
    for _ in range(10):
        allowance.earn_for_answer(0)
    assert 18 <= spent(allowance) <= 20


def test_a_client_may_tell_twice_of_what_it_has_read() -> None:
    allowance, _ = used_up()
    allowance.earn_for_answer(512 * 1024)
    assert spent(allowance) >= 2 * 512 * 1024 // 16_384  # the largest frame, for two windows
