"""Which events of an order belong to one attempt to pay it.

Events belong to one attempt if their requests named the same session, intent or transaction of one
provider. A change by hand, or by version 0.1, has only the ids that it has changed: an id that it
has not changed tells nothing.

So the order is followed from its first event, as ``persistence.decision`` decides: an event whose
ids contradict those of the order's attempt begins another attempt, or returns to one; any other
event is one of the order's attempt, unless an attempt before has its ids.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from persistence.decision import (
    Attempt,
    Reason,
    attempt_of,
    is_other_provider,
    may_follow_up,
)
from persistence.disjoint_sets import DisjointSets
from persistence.models import PaymentEvent, PaymentUpdate, RefusedEvent
from persistence.payment_states import PaymentState, normalized
from persistence.payment_steps import IDS, INTENT, SESSION, Key, Step
from persistence.status_words import StatusWords

_Item: TypeAlias = int | Key


class _Held(NamedTuple):
    """What the order had when an event came. Names are those of ``Order``."""

    payment_provider: str | None
    payment_session_id: str | None
    payment_intent_id: str | None
    payment_session_stale: bool
    payment_intent_stale: bool


class AttemptWalk:
    """Follows an order through its events, and links each to its attempt."""

    def __init__(self, words: StatusWords, intents_of_others: Collection[str | None]) -> None:
        """``intents_of_others`` were written although they are those of another attempt."""
        self._words = words
        self._intents_of_others = intents_of_others
        self._steps: list[Step] = []
        # Steps by their numbers, and what they have in common.
        self._links: DisjointSets[_Item] = DisjointSets()
        self._current: int | None = None
        self._session_stale = self._intent_stale = False

    def follow(self, step: Step) -> None:
        """Take the next step."""
        number = len(self._steps)
        self._steps.append(step)
        is_seen = any(key in self._links for key in step.keys)
        attempt = self._attempt(step, is_seen=is_seen)
        for key in step.keys:
            self._links.join(number, key)
        if not is_seen and attempt is Attempt.OWN and self._current is not None:
            self._links.join(number, self._current)
        elif not step.keys:
            self._links.join(number, step.anonymous)
        if isinstance(step.record, RefusedEvent):
            if attempt is Attempt.OWN and step.record.order_payment_provider is None:
                ids = {name: getattr(step.record, f"order_{name}") for name in (SESSION, INTENT)}
                self._name_provider(ids, step.provider)
            return
        if step.record is not None:
            self._leave_behind(step.record, step, attempt)
        # A transaction that an attempt before has had leaves the order where it is.
        if attempt is Attempt.OTHER or self._current is None or {SESSION, INTENT} & step.ids.keys():
            self._current = number

    def attempts(self) -> Iterator[tuple[list[Step], bool]]:
        """Yield the steps of each attempt, and whether it is the one that the order is at."""
        groups: dict[_Item, list[Step]] = {}
        for number, step in enumerate(self._steps):
            groups.setdefault(self._links.find(number), []).append(step)
        current = None if self._current is None else self._links.find(self._current)
        for item, steps in groups.items():
            yield steps, item == current

    def _attempt(self, step: Step, *, is_seen: bool) -> Attempt:
        """Return which attempt the event is about; of an event that was taken, not UNKNOWN."""
        update = PaymentUpdate(
            payment_provider=step.provider,
            payment_session_id=step.ids.get(SESSION),
            payment_intent_id=step.ids.get(INTENT),
        )
        stale = self._session_stale, self._intent_stale
        match step.record:
            case None:
                return Attempt.OWN
            case RefusedEvent() as event:
                provider = event.order_payment_provider
                session, intent = event.order_payment_session_id, event.order_payment_intent_id
                return attempt_of(_Held(provider, session, intent, *stale), update)
            case event:
                provider = event.payment_provider_before
                session, intent = event.payment_session_id_before, event.payment_intent_id_before
                attempt = attempt_of(_Held(provider, session, intent, *stale), update)
                if attempt is Attempt.UNKNOWN or (not is_seen and self._is_follow_up(event, step)):
                    return Attempt.OWN
                return attempt

    def _is_follow_up(self, event: PaymentEvent, step: Step) -> bool:
        """Return whether the event is one of the order's payment, by an intent of its own."""
        before, after = event.payment_provider_before, event.payment_provider_after
        return (
            INTENT in step.ids
            and step.ids[INTENT] not in self._intents_of_others
            and after is not None
            and not is_other_provider(before, after)
            and self._words.has_own_intents(after)
            and event.payment_state_before is not None
            and may_follow_up(
                PaymentState(event.payment_state_before),
                self._words.meaning(event.payment_status_after),
                Reason.ATTEMPT_NOT_CURRENT,
            )
        )

    def _leave_behind(self, event: PaymentEvent, step: Step, attempt: Attempt) -> None:
        """Note which ids the event leaves in the order that are those of an earlier attempt."""
        before, after = event.payment_provider_before, event.payment_provider_after
        if SESSION in step.ids or event.payment_session_id_after is None:
            self._session_stale = False
        elif is_other_provider(before, after):
            self._session_stale = True
        if INTENT in step.ids or event.payment_intent_id_after is None:
            self._intent_stale = False
        elif attempt is Attempt.OTHER:
            self._intent_stale = True
        if before is None:
            self._name_provider({name: getattr(event, f"{name}_before") for name in IDS}, after)

    def _name_provider(self, ids: Mapping[str, str | None], provider: str | None) -> None:
        """Link the ``ids`` that came without a provider to those of the first one that is named."""
        if provider is None:
            return
        for name, value in ids.items():
            if value is not None and (None, name, value) in self._links:
                self._links.join((None, name, value), (normalized(provider), name, value))
