"""The terms of the UPDATE of a payment: what it sets, and on which conditions.

They are expressions on the target row, because PostgreSQL checks those again for a row that it has
waited for. Each operator and function of a text takes PostgreSQL time at each execution, to prepare
it: so there are few of them.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, Final, NamedTuple

from pypika import Case, Parameter, Table
from pypika.functions import Cast, Coalesce, NullIf
from pypika.terms import Bracket, Criterion, Interval, Term

from persistence import dialect as pg
from persistence import payment_terms
from persistence.decision import LATE, Attempt
from persistence.models import AMOUNT_COLUMNS
from persistence.payment_states import CONTESTED, SETTLED, UNPAID, PaymentState

_orders = Table("orders")

# By the id of an attempt: whether it is one that an earlier attempt has left. The intent decides.
_STALE: Final = {
    "payment_intent_id": _orders.payment_intent_stale,
    "payment_session_id": _orders.payment_session_stale,
}


class Shape(NamedTuple):
    """Which of the statements it is."""

    columns: tuple[str, ...]
    """The payment columns that it sets, in the order of ``PAYMENT_COLUMNS``."""
    is_rich: bool
    is_scoped: bool
    has_fixed_state: bool = False
    """Whether it sets a status whose state does not depend on that of the order."""
    is_second: bool = False
    """Whether it is a second try, which is rich: it knows all words, and the earlier uses of keys,
    and returns the order also where it writes nothing."""


class UpdateTerms:
    """The terms of one text. The names of conditions and values are those of ``decision``."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        parameter = map(Parameter, (f"${number}" for number in count(1)))
        self.order_id, self.recorded = next(parameter), next(parameter)
        # A cast, because one parameter in SET and in a comparison would have two types.
        self.values = {name: Cast(next(parameter), "VARCHAR") for name in shape.columns}
        self.refusals = Cast(next(parameter), "BYTEA")
        self.targets: Any = None
        if "payment_status" in self.values:
            kind = "SMALLINT" if shape.has_fixed_state else "BYTEA"
            self.targets = Cast(next(parameter), kind)
        # Normalized here and not in SQL, where it would be done anew for each use.
        self.provider = (
            Cast(next(parameter), "VARCHAR") if "payment_provider" in self.values else None
        )
        self.digest = (
            Cast(next(parameter), "TEXT") if "payment_idempotency_key" in self.values else None
        )
        has_status = self.targets is not None
        may_reverse = has_status and not shape.has_fixed_state
        self.rich = None
        if shape.is_rich:
            self.rich = _Rich(parameter, has_status=has_status, may_reverse=may_reverse)
        self.second = None
        if shape.is_second:
            self.second = _Second(parameter, has_key=self.digest is not None)
        self.storefronts = next(parameter)
        self.now = self._now()
        self.new: Any = self.targets
        if self.targets is not None and not shape.has_fixed_state:
            fixed = NullIf(pg.get_byte(self.targets, self.now), 0)
            self.new = Coalesce(fixed, _orders.contested_from, PaymentState.PAID.value)

    # What the update is about.

    def _now(self) -> Term:
        """Return the state of the order; null where it is to be derived from another word."""
        if self.second is not None:
            return Coalesce(
                _orders.payment_state,
                self.second.state_of(_orders.payment_status),
                PaymentState.UNKNOWN.value,
            )
        is_new = _orders.payment_status == UNPAID
        derived = Case().when(is_new, PaymentState.PENDING.value)
        return Coalesce(_orders.payment_state, derived)

    def _is_other_provider(self) -> Any:
        """Return whether the provider is another one, null for an order without; else None."""
        if self.provider is None:
            return None
        return payment_terms.normalized(_orders.payment_provider) != self.provider

    def _attempt(self) -> Any:
        """Return the number of the attempt; None where only the order's own can be meant."""
        case, known = Case(), []
        if (other := self._is_other_provider()) is not None:
            case = case.when(other, Attempt.OTHER.value)
        for name, stale in _STALE.items():
            if (given := self.values.get(name)) is not None:
                of_equal = Case().when(stale, Attempt.OTHER.value).else_(Attempt.OWN.value)
                case = case.when(_orders[name] == given, of_equal)
                is_known = _orders[name].notnull()
                case = case.when(is_known & stale.negate(), Attempt.OTHER.value)
                known.append(is_known)  # a stale one, from which the given one differs
        if known:
            case = case.when(Criterion.any(known), Attempt.UNKNOWN.value)
        return case.else_(Attempt.OWN.value) if case._cases else None

    def _is_other(self) -> Any:
        attempt = self._attempt()
        return None if attempt is None else attempt == Attempt.OTHER.value

    # SET

    def assignments(self) -> Iterator[tuple[Term, Any]]:
        """Yield the columns that the statement sets, and what to."""
        for name, value in self.values.items():
            if name == "payment_provider":
                is_equal = payment_terms.normalized(_orders[name]) == self.provider
                yield _orders[name], Case().when(is_equal, _orders[name]).else_(value)
            else:
                yield _orders[name], value
        is_same = Criterion.all(list(self._unchanged()))
        version = Case().when(is_same, _orders.payment_version).else_(_other_version())
        yield _orders.payment_version, version
        yield from self._stale()
        if self.new is None:
            yield _orders.payment_state, self.now
            since: Term = Coalesce(_orders.payment_status_since, pg.clock_timestamp())
        else:
            yield _orders.payment_state, self.new
            yield _orders.contested_from, self._contested_from()
            yield _orders.payment_event_time, self._event_time()
            is_kept = _orders.payment_status_since.notnull() & (self.new == self.now)
            since = Case().when(is_kept, _orders.payment_status_since).else_(pg.clock_timestamp())
        yield _orders.payment_status_since, since
        if self.rich is not None:
            for name in AMOUNT_COLUMNS:
                yield _orders[name], self.rich.amount(_orders[name])
        # clock_timestamp(), because now() is the start of the transaction: after a wait for a row
        # lock, it would write an earlier time over a later one. greatest(), because clocks step
        # back. From a time that no clock has told, it begins anew: greatest() ignores a null.
        is_told = _orders.updated_at < pg.END_OF_9999
        later = Case().when(is_told, _orders.updated_at + Interval(microseconds=1))
        yield _orders.updated_at, pg.greatest(pg.clock_timestamp(), later)

    def _unchanged(self) -> Iterator[Criterion]:
        """Yield the conditions on which the payment stays as it is; null counts as false.

        Only a reversal can change the time and nothing else.
        """
        for name, value in self.values.items():
            yield (
                payment_terms.normalized(_orders[name]) == self.provider
                if name == "payment_provider"
                else _orders[name] == value
            )
        if self.new is not None:
            yield self.now == self.new
        for name, stale in _STALE.items():
            if name in self.values:
                yield stale.negate()
        if self.rich is not None:
            yield from self.rich.unchanged()

    def _stale(self) -> Iterator[tuple[Term, Any]]:
        """Yield what becomes of the ids that another attempt leaves in the order."""
        session, intent = _orders.payment_session_stale, _orders.payment_intent_stale
        if "payment_session_id" in self.values:
            yield session, False
        elif (other := self._is_other_provider()) is not None:
            yield session, _either(session, other & _orders.payment_session_id.notnull())
        if "payment_intent_id" in self.values:
            yield intent, False
        elif (is_other := self._is_other()) is not None:
            yield intent, _either(intent, is_other & _orders.payment_intent_id.notnull())

    def _contested_from(self) -> Term | None:
        if self.shape.has_fixed_state:
            return None
        contested = sorted(CONTESTED)
        before = (
            Case()
            .when(self.now.isin(contested), _orders.contested_from)
            .when(self.now >= min(SETTLED), self.now)
            .else_(PaymentState.PAID.value)
        )
        return Case().when(self.new.isin(contested), before)

    def _event_time(self) -> Term:
        current = _orders.payment_event_time
        is_moved = self.new != self.now
        if (is_other := self._is_other()) is not None:
            is_moved |= Bracket(is_other & (self.now < min(SETTLED)))
        if self.rich is None:
            return Case().when(current.notnull() & Bracket(is_moved).negate(), current)
        time: Any = self.rich.event_time
        is_kept = time.notnull()
        if self.rich.is_reversal is not None:
            is_moved |= Bracket(self.rich.is_reversal & time.notnull())
            is_plain_paid = (self.new == PaymentState.PAID.value) & self.rich.is_reversal.negate()
            is_kept &= Bracket(is_plain_paid).negate()
        moved = Case().when(is_kept, pg.greatest(time, current))
        return Case().when(is_moved, moved).else_(current)

    # WHERE

    def conditions(self) -> Iterator[Criterion]:
        """Yield the conditions on which the statement writes."""
        yield _orders.id == self.order_id
        attempt: Any = self._attempt() or 0
        if self.rich is not None:
            attempt = attempt + self.rich.lateness
        # Bits are numbered from the lowest of the first byte: 8 for each state.
        yield pg.get_bit(self.refusals, self.now * 8 + attempt) == 0
        if self.rich is not None:
            yield from self.rich.conditions()
        if self.digest is not None:
            yield from self._key_conditions(self.digest)
        if self.shape.is_scoped:
            yield _orders.storefront_id == pg.any_(self.storefronts)
        yield set_local("listings.payment_event", self.recorded)

    def _key_conditions(self, digest: Term) -> Iterator[Criterion]:
        """Yield that the request is none that was made with this key before.

        The unique indexes of the history refuse it, too, but with an error, for which a whole batch
        is rolled back. Where the order has the key already, the request is a repetition of the
        first one, or another event.
        """
        key = self.values["payment_idempotency_key"]
        is_first: Any = pg.is_distinct_from(_orders.payment_idempotency_key, key)
        # A function, since PostgreSQL would prepare a subquery for each execution.
        is_further: Any = pg.is_other_payment_request(self.order_id, key, digest)
        if self.second is not None:
            is_first &= self.second.may_be_first_use
            is_further = Bracket(self.second.is_further_use | is_further)
            yield set_local("listings.further_use", Case().when(is_further, "on").else_("off"))
        yield Bracket(Bracket(is_first) | is_further)


class _Rich:
    """The terms of what only the rich statements have."""

    def __init__(
        self, parameter: Iterator[Parameter], *, has_status: bool, may_reverse: bool
    ) -> None:
        def typed(name: str) -> Term:
            return Cast(next(parameter), name)

        self.event_time: Any = typed("TIMESTAMPTZ") if has_status else None
        self.is_reversal: Any = typed("BOOLEAN") if may_reverse else None
        self._late_limit = typed("TIMESTAMPTZ")
        self._amounts = {name: (typed("BIGINT"), typed("BIGINT")) for name in AMOUNT_COLUMNS}
        self._currency = typed("VARCHAR")
        self._version = typed("XID8")

    @property
    def lateness(self) -> Term:
        is_late = _orders.payment_event_time >= self._late_limit
        return Case().when(is_late, LATE).else_(0)

    def amount(self, column: Any) -> Term:
        """Return the new total: the larger of the old and the given one, or the limit if any."""
        given, limit = self._amounts[column.name]
        return pg.greatest(pg.least(column, limit), given)

    def unchanged(self) -> Iterator[Criterion]:
        """Yield the conditions on which the amounts and the time of a reversal do not change."""
        for name in AMOUNT_COLUMNS:
            column = _orders[name]
            yield pg.is_distinct_from(self.amount(column), column).negate()
        if self.is_reversal is not None:
            is_earlier = self.event_time <= _orders.payment_event_time
            yield Bracket(self.is_reversal.negate() | self.event_time.isnull() | is_earlier)

    def conditions(self) -> Iterator[Criterion]:
        yield _orders.currency == Coalesce(self._currency, _orders.currency)
        version = Coalesce(_orders.payment_version, Cast("0", "XID8"))
        yield Bracket(self._version.isnull() | (version == self._version))


class _Second:
    """The terms of what only a second try has."""

    def __init__(self, parameter: Iterator[Parameter], *, has_key: bool) -> None:
        self._states = Cast(next(parameter), "JSONB")
        if has_key:
            self.may_be_first_use: Any = Cast(next(parameter), "BOOLEAN")
            self.is_further_use: Any = Cast(next(parameter), "BOOLEAN")

    def state_of(self, word: Term) -> Term:
        """Return the state that a word stands for, null for one that is not known."""
        state = pg.jsonb_object_field_text(self._states, payment_terms.normalized(word))
        return Cast(state, "INTEGER")


def _other_version() -> Term:
    """Return the id of the transaction, or 1 if the order has that for its version.

    A restored order has the id of a transaction of another cluster, which this one comes to. To the
    trigger, a payment has changed if its version has. 1 is the id of no transaction that writes
    orders.
    """
    own = NullIf(pg.pg_current_xact_id(), _orders.payment_version)
    return Coalesce(own, Cast("1", "XID8"))


def _either(first: Any, second: Criterion) -> Term:
    """Return ``first OR second``, and false where that is null."""
    return Case().when(first | Bracket(second), True).else_(False)


def set_local(setting: str, value: Term | str) -> Criterion:
    """Return a condition that is always true, and sets ``setting`` as ``SET LOCAL`` does.

    The trigger that writes the history reads the settings in ``listings``. A statement of its own
    would take a second round trip.
    """
    return pg.set_config(setting, value, True).isnotnull()
