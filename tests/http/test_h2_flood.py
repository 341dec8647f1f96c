"""FrameBudget: how many frames other than requests a client may send."""

from itertools import count, takewhile

from server.http.h2_flood import FrameBudget
from tests.support.clock import Clock


def spent(budget: FrameBudget) -> int:
    """Spend the budget, and return how many frames it allowed."""
    return sum(1 for _ in takewhile(lambda _: budget.spend(), count()))


def used_up() -> tuple[FrameBudget, Clock]:
    clock = Clock(100)
    budget = FrameBudget(clock)
    assert spent(budget) == 2_000
    return budget, clock


def test_the_budget_refills_each_second_up_to_a_limit() -> None:
    budget, clock = used_up()
    clock.now += 3
    assert 298 <= spent(budget) <= 300
    clock.now += 3_600
    assert 1_998 <= spent(budget) <= 2_000


def test_a_ping_every_second_never_exceeds_the_budget() -> None:
    clock = Clock(100)
    budget = FrameBudget(clock)
    for _ in range(100_000):
        clock.now += 1
        assert budget.spend()


def test_requests_and_responses_refill_the_budget() -> None:
    budget, _ = used_up()
    for _ in range(10):
        budget.earn_for_request()
    assert 98 <= spent(budget) <= 100
    budget, _ = used_up()
    for _ in range(10):
        budget.earn_for_sent(0)
    assert 18 <= spent(budget) <= 20


def test_each_part_of_a_response_may_be_acknowledged_twice() -> None:
    budget, _ = used_up()
    budget.earn_for_sent(512 * 1024)
    assert spent(budget) >= 2 * 512 * 1024 // 16_384  # the largest frame, for two windows
