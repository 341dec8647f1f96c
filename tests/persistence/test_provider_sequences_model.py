"""The sequences of providers, through the model of the rules: data and model agree."""

import pytest

from tests.support.payment_model import amounts_disagree
from tests.support.payment_words import DEFAULT_WORDS, State, plain
from tests.support.provider_sequences import DISPUTED, SEQUENCES, Sequence
from tests.support.provider_sequences.played import play
from tests.support.provider_sequences.sequence import ORDER

PROVIDERS = ("stripe", "allsecure", "paypal", "adyen", "mollie", "klarna")

# What a sequence says of words that are in no table.
UNKNOWN = {"inreview", "underreview"}


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda each: each.name)
def test_a_sequence_is_answered_as_it_says_and_ends_in_its_true_state(sequence: Sequence) -> None:
    answers, shop = play(sequence)
    order = shop.orders[ORDER]
    columns = {name: getattr(order, name) for name in sequence.row}
    assert answers == tuple(event.answer for event in sequence.events)
    assert order.payment_state == sequence.state
    assert columns == sequence.row
    assert amounts_disagree(order) is sequence.amounts_disagree


@pytest.mark.parametrize("sequence", DISPUTED, ids=lambda each: each.name)
def test_the_rules_still_get_a_disputed_sequence_wrong(sequence: Sequence) -> None:
    """Move a sequence to the others once the rules are mended."""
    order = play(sequence).shop.orders[ORDER]
    assert order.payment_state != sequence.state


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda each: each.name)
def test_each_event_is_taken_or_on_record(sequence: Sequence) -> None:
    answers, shop = play(sequence)
    neither = {"replayed", "NOT_FOUND", "ETAG_MISMATCH"}
    recorded = len(shop.history) + sum(refused.times for refused in shop.refused)
    assert recorded == len([answer for answer in answers if answer not in neither])


def test_sequences_are_told_apart_by_their_names() -> None:
    names = [sequence.name for sequence in (*SEQUENCES, *DISPUTED)]
    assert len(names) == len(set(names))


def test_each_sequence_names_a_public_source() -> None:
    assert all(sequence.source.startswith("https://") for sequence in (*SEQUENCES, *DISPUTED))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_provider_has_sequences_of_its_own(provider: str) -> None:
    own = [each for each in SEQUENCES if each.name.lower().startswith(provider)]
    assert len(own) >= 7


def test_words_are_known_or_meant_to_be_unknown() -> None:
    words = {
        plain(event.payment_status)
        for sequence in (*SEQUENCES, *DISPUTED)
        for event in sequence.events
        if event.payment_status is not None
    }
    assert words - DEFAULT_WORDS.keys() == UNKNOWN


def test_sequences_end_in_each_state_and_meet_each_answer() -> None:
    ends = {sequence.state for sequence in SEQUENCES}
    answers = {event.answer for sequence in SEQUENCES for event in sequence.events}
    assert ends == {str(state) for state in State} - {"REQUIRES_ACTION"}
    assert answers == {
        *("ok", "replayed", "NOT_FOUND", "ETAG_MISMATCH", "IDEMPOTENCY_KEY_REUSED"),
        *("PAYMENT_ATTEMPT_NOT_CURRENT", "PAYMENT_DUPLICATE", "PAYMENT_EVENT_LATE"),
        *("PAYMENT_CURRENCY_MISMATCH", "PAYMENT_STATUS_REFUSED", "PAYMENT_STATUS_UNKNOWN"),
    }
