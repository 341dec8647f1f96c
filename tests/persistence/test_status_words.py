"""The built-in table of words and states, and a shop's file laid over it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from persistence.payment_states import UNKNOWN, Meaning, PaymentState, Reversal, normalized
from persistence.status_words import StatusWords, changed_words
from persistence.status_words_file import SECTIONS

Write: TypeAlias = Callable[[str], Path]

# The meanings that the rules of payments rely on, written independently of the table.
MEANINGS: Final = {
    PaymentState.PENDING: "pending open created unpaid requires_payment_method "
    "requires_confirmation",
    PaymentState.REQUIRES_ACTION: "requires_action redirect payer_action_required approved",
    PaymentState.PROCESSING: "processing complete received in_progress",
    PaymentState.AUTHORIZED: "authorized authorised requires_capture preauthorize accepted",
    PaymentState.FAILED: "failed declined denied refused rejected error",
    PaymentState.CANCELLED: "cancelled canceled voided void",
    PaymentState.EXPIRED: "expired timed_out",
    PaymentState.PAID: "paid succeeded captured capture completed settled debit "
    "partially_captured partially_paid",
    PaymentState.PARTIALLY_REFUNDED: "partially_refunded",
    PaymentState.REFUNDED: "refunded refund",
    PaymentState.DISPUTED: "disputed needs_response warning_needs_response",
    PaymentState.CHARGED_BACK: "charged_back chargeback lost",
    PaymentState.RETURNED: "returned capture_failed",
}
REVERSALS: Final = {
    Reversal.CONTEST: "dispute_won warning_closed chargeback_reversed chargeback_reversal",
    Reversal.REFUND: "refund_failed",
}

# They depend on the object, on a flag beside them, or on the amount.
AMBIGUOUS: Final = [
    *("under_review", "in_review", "success", "closed", "reversed", "ok", "finished", "piad"),
    *("AUTHORISATION", "CANCELLATION", "charge.refunded", "charge.succeeded", "shipping"),
    *("PAYMENT.CAPTURE.REFUNDED", "charge.dispute.closed", "no_payment_required"),
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "words.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("word", "meaning"),
    [(word, Meaning(state)) for state, words in MEANINGS.items() for word in words.split()]
    + [
        (word, Meaning(PaymentState.PAID, reversal))
        for reversal, words in REVERSALS.items()
        for word in words.split()
    ]
    + [(word, UNKNOWN) for word in AMBIGUOUS],
)
def test_a_word_of_the_built_in_table(word: str, meaning: Meaning) -> None:
    table = StatusWords.builtin()
    assert table.meaning(word) == meaning
    assert table.state(word) == meaning.state


@pytest.mark.parametrize("word", ["PAID", " paid\n", "Pa-I_d", "p a\ti d"])
def test_spellings_make_no_difference(word: str) -> None:
    assert StatusWords.builtin().meaning(word) == Meaning(PaymentState.PAID)


@pytest.mark.parametrize("word", ["", "-", "pa.id", "p\u0430id", "\uff30aid", "paid\u00a0"])
def test_other_characters_make_a_word_unknown(word: str) -> None:
    assert StatusWords.builtin().meaning(word) == UNKNOWN


def test_every_group_of_the_built_in_table_names_its_source() -> None:
    for entry in StatusWords.builtin().entries():
        if entry.provider == "common":
            assert entry.source == "common spelling"
        else:
            name = {"allsecure": "ixopay"}.get(entry.provider, entry.provider)
            assert re.fullmatch(rf"https://[a-z]+\.{name}\.com/\S+", entry.source), entry


def test_the_built_in_table_has_each_spelling_once_in_a_group() -> None:
    entries = StatusWords.builtin().entries()
    spellings = [(entry.provider, normalized(entry.word)) for entry in entries]
    assert len(spellings) == len(set(spellings))
    assert {entry.meaning for entry in entries} == SECTIONS.keys() - {"UNKNOWN"}
    assert {entry.provider for entry in entries} == {
        *("stripe", "allsecure", "paypal", "adyen", "mollie", "klarna", "common")
    }


def test_many_different_words_do_not_fill_the_memory() -> None:
    table = StatusWords.builtin()
    for number in range(5000):
        assert table.meaning(f"word {number}") == UNKNOWN
    assert table._cached_meaning.cache_info().currsize <= 1024


def test_the_words_of_states() -> None:
    table = StatusWords.builtin()
    ended = table.words_of([PaymentState.CANCELLED, PaymentState.EXPIRED])
    assert ended == sorted(ended)
    assert {"canceled", "timedout"} < set(ended)
    assert all(table.state(word).name in ("CANCELLED", "EXPIRED") for word in ended)
    paid = table.words_of([PaymentState.PAID])
    assert {"debit", "disputewon", "refundfailed"} < set(paid)
    assert table.words_of([]) == []
    with pytest.raises(ValueError, match="UNKNOWN"):
        table.words_of([PaymentState.PAID, PaymentState.UNKNOWN])


@pytest.mark.parametrize(
    ("provider", "expected"),
    [("allsecure", True), ("All-Secure", True), ("IXOPAY", True), ("stripe", False), ("", False)],
)
def test_providers_with_own_intents(provider: str, expected: bool) -> None:
    assert StatusWords.builtin().has_own_intents(provider) is expected


def test_the_words_of_a_shop_win_over_the_built_in_ones(write: Write) -> None:
    path = write("""
        [PAID.invoice]
        source = "https://shop.example/wiki/payments"
        words = ["Bezahlt", "In Review"]

        [PROCESSING.invoice]
        words = ["completed"]

        [UNKNOWN.invoice]
        words = ["Time-Out", "timed out"]

        [REFUND_REVERSED.invoice]
        words = ["gutschrift_geplatzt"]

        [providers]
        own_intents = ["Bank Of Ours"]
    """)
    table = StatusWords.read(path)
    assert table.meaning("bezahlt") == table.meaning("in_review") == Meaning(PaymentState.PAID)
    assert table.meaning("COMPLETED") == Meaning(PaymentState.PROCESSING)
    assert table.meaning("timed_out") == UNKNOWN
    assert table.meaning("Gutschrift geplatzt") == Meaning(PaymentState.PAID, Reversal.REFUND)
    assert table.meaning("captured") == Meaning(PaymentState.PAID)
    assert "completed" not in table.words_of([PaymentState.PAID])
    assert "completed" in table.words_of([PaymentState.PROCESSING])
    assert table.has_own_intents("bankofours")
    assert table.has_own_intents("allsecure")

    completed = [entry for entry in table.entries() if normalized(entry.word) == "completed"]
    assert completed == [("completed", "PROCESSING", "invoice", str(path))]
    assert ("Bezahlt", "PAID", "invoice", "https://shop.example/wiki/payments") in table.entries()
    assert [entry.word for entry in table.entries()][-2:] == ["Time-Out", "timed out"]
    assert StatusWords.builtin().meaning("completed") == Meaning(PaymentState.PAID)


def test_an_empty_file_changes_nothing(write: Write) -> None:
    table, builtin = StatusWords.read(write("# nothing yet\n")), StatusWords.read(None)
    assert table.meanings == builtin.meanings
    assert table.digest == builtin.digest
    assert table.entries() == builtin.entries()


def test_the_digest_is_that_of_the_meanings(write: Write) -> None:
    builtin = StatusWords.builtin()
    assert re.fullmatch("[0-9a-f]{12}", builtin.digest)
    same = StatusWords.read(write('[PAID.shop]\nwords = ["P A I D"]\n[UNKNOWN.x]\nwords = ["?"]'))
    assert same.digest == builtin.digest
    moved = StatusWords.read(write('[PENDING.shop]\nwords = ["paid"]'))
    taken = StatusWords.read(write('[UNKNOWN.shop]\nwords = ["paid"]'))
    turned = StatusWords.read(write('[DISPUTE_REVERSED.shop]\nwords = ["paid"]'))
    assert len({table.digest for table in (builtin, moved, taken, turned)}) == 4


def test_words_whose_meaning_has_changed(write: Write) -> None:
    before = StatusWords.builtin()
    after = StatusWords.read(
        write("""
            [PENDING.shop]
            words = ["paid", "pending", "mahnung"]
            [UNKNOWN.shop]
            words = ["void"]
            [DISPUTE_REVERSED.shop]
            words = ["refund_failed"]
        """)
    )
    changed = ["mahnung", "paid", "refundfailed", "void"]
    assert changed_words(before.meanings, after.meanings) == changed
    assert changed_words(after.meanings, before.meanings) == changed
    assert changed_words(before.meanings, before.meanings) == []
