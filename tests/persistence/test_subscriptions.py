"""Which subscriptions an event is for, and at what cost."""

from dataclasses import dataclass, field
from random import Random

import pytest

from persistence.history import EventFilter, WatchedEvent
from persistence.models import PaymentEvent, RefusedEvent
from persistence.positions import Position, Snapshot
from persistence.subscriptions import Subscription, Subscriptions

HERE = Position(Snapshot(1, 1, ()))


def event(order_id: int, storefront_id: int) -> PaymentEvent:
    unknown = dict.fromkeys(PaymentEvent._fields)
    values = unknown | {"order_id": order_id, "storefront_id": storefront_id}
    return PaymentEvent(**values)  # type: ignore[arg-type]


def refused(order_id: int, storefront_id: int | None) -> RefusedEvent:
    unknown = dict.fromkeys(RefusedEvent._fields)
    values = unknown | {"order_id": order_id, "storefront_id": storefront_id}
    return RefusedEvent(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_a_look_up_finds_what_a_scan_would_find(seed: int) -> None:
    """While subscriptions come and go; the filter for PostgreSQL matches all that one wants."""
    random = Random(seed)
    subscriptions, present = Subscriptions(), set[Subscription]()
    every_event: list[WatchedEvent] = []
    for order in range(6):
        every_event += (event(order, storefront) for storefront in range(6))
        every_event += (refused(order, storefront) for storefront in (None, *range(6)))

    def some(most: int) -> frozenset[int]:
        return frozenset(random.sample(range(6), random.randint(0, most)))

    for _ in range(60):
        if random.random() < 0.6 or not present:
            scope = random.choice([None, some(3)])
            wanted = EventFilter(some(2), some(2), scope, include_refused=random.random() < 0.2)
            subscription = Subscription(wanted)
            subscriptions.add(subscription)
            present.add(subscription)
        else:
            ended = random.choice([*present])
            subscriptions.discard(ended)
            subscriptions.discard(ended)  # as a slow watcher that ends
            present.remove(ended)
        assert set(subscriptions) == present
        assert len(subscriptions) == len(present)
        assert subscriptions.wanted == EventFilter(
            frozenset(n for each in present for n in each.wanted.order_ids),
            frozenset(n for each in present for n in each.wanted.storefront_ids),
            include_refused=any(each.wanted.include_refused for each in present),
        )
        for each in every_event:
            found = subscriptions.matching(each)
            assert len(found) == len(set(found))
            assert set(found) == {one for one in present if one.wanted.matches(each)}


@dataclass(frozen=True)
class Counting(EventFilter):
    """A filter that counts how often it is asked."""

    asked: list[WatchedEvent] = field(default_factory=list, compare=False)

    def matches(self, event: WatchedEvent) -> bool:
        self.asked.append(event)
        return super().matches(event)


def test_an_event_costs_nothing_for_subscriptions_to_other_orders() -> None:
    subscriptions = Subscriptions()
    filters = [
        *(Counting(order_ids=frozenset(range(n * 100, n * 100 + 100))) for n in range(300)),
        *(Counting(storefront_ids=frozenset([n])) for n in range(1, 300)),
    ]
    for each in filters:
        subscriptions.add(Subscription(each))
    assert [each.wanted for each in subscriptions.matching(event(4_217, 0))] == [filters[42]]
    assert [each.wanted for each in subscriptions.matching(event(99_999, 7))] == [filters[306]]
    assert sum(len(each.asked) for each in filters) == 2


def test_with_very_many_ids_the_history_is_read_unfiltered() -> None:
    """PostgreSQL took 188 ms for 10,000 ids, and a second for 100,000, at each change."""
    subscriptions = Subscriptions()
    one = Subscription(EventFilter(order_ids=frozenset(range(1_000))))
    other = Subscription(EventFilter(storefront_ids=frozenset([1])))
    subscriptions.add(one)
    assert subscriptions.wanted == one.wanted
    subscriptions.add(other)
    assert subscriptions.wanted == EventFilter(all_orders=True)
    subscriptions.discard(one)
    assert subscriptions.wanted == other.wanted


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (EventFilter(order_ids=frozenset([1])), [False, False]),
        (EventFilter(order_ids=frozenset([1]), include_refused=True), [True, True]),
        (EventFilter(storefront_ids=frozenset([5]), include_refused=True), [True, False]),
        (EventFilter(frozenset([1]), scope=frozenset([5]), include_refused=True), [True, False]),
        (EventFilter(frozenset([1]), scope=frozenset([6]), include_refused=True), [False, False]),
    ],
)
def test_refused_events_that_are_wanted(wanted: EventFilter, expected: list[bool]) -> None:
    """For an order that there is, and for one that there is not."""
    assert [wanted.matches(each) for each in (refused(1, 5), refused(1, None))] == expected


def test_a_shared_failure_keeps_its_traceback_short() -> None:
    """The failure of one reading ends all watches that wait for it."""
    try:
        raise OSError("lost")
    except OSError as error:
        failure = error
    subscriptions = [Subscription(EventFilter()) for _ in range(3)]
    for subscription in subscriptions:
        subscription.fail(failure)
    lengths = set()
    for subscription in subscriptions:
        assert not subscription.put(None, HERE)
        with pytest.raises(OSError, match="lost") as caught:
            subscription.take()
        lengths.add(len(caught.traceback))
    assert len(lengths) == 1
