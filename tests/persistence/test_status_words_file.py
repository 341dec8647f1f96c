"""Mistakes in a file of words and states, which are reported with their line."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from persistence.errors import InvalidStatusWords
from persistence.payment_states import Meaning, PaymentState
from persistence.status_words import StatusWords

Write: TypeAlias = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "words.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('\n[PAYED.own]\nwords = ["x"]', 2, "there is no state PAYED; did you mean PAID?"),
        ('[paid.own]\nwords = ["x"]', 1, "there is no state paid; did you mean PAID?"),
        (
            '[DISPUTE_WON.own]\nwords = ["x"]',
            1,
            "no state DISPUTE_WON: that is a word of DISPUTE_REV",
        ),
        ("\n[Refund-Failed.own]\nwords = []", 2, "that is a word of REFUND_REVERSED"),
        ('[succeeded.own]\nwords = ["x"]', 1, "that is a word of PAID"),
        ("[DISPUTE_REVERSE.own]\nwords = []", 1, "did you mean DISPUTE_REVERSED?"),
        ("PAID = 7", 1, "expected a table, [PAID.<provider>]"),
        ('\nPAID.own = "x"', 2, "expected a table, [PAID.<provider>]"),
        ('[PAID.own]\nwords = [\n""]', 3, 'expected letters or digits; got ""'),
        ('[PAID.own]\nwords = [\n["x"]]', 3, "expected a string, in quotes; got ['x']"),
        ('\n\n[zzz.own]\nwords = ["x"]', 3, "there is no state zzz; expected PENDING, REQUIRES_"),
        ('PAID = ["x"]', 1, "expected a table, [PAID.<provider>]"),
        ('[PAID]\nwords = ["x"]', 2, "expected a table, [PAID.<provider>]"),
        ('[PAID]\nown = [\n"x"]', 3, "expected a table, [PAID.<provider>]"),
        ('[PAID.own]\nsource = "x"', 1, 'expected words = ["…", "…"] in this group'),
        (
            '[PAID.own]\n\nword = ["x"]',
            3,
            "there is no key word; did you mean words?",
        ),
        ("[PAID.own]\nwords = []\nx = 1", 3, "there is no key x; expected source or words"),
        ('[PAID.own]\nwords = "x"', 2, 'expected words = ["…", "…"]'),
        ("[PAID.own]\nwords = []\nsource = 1", 3, "expected a string, in quotes; got 1"),
        (
            '[PAID.own]\nwords = [\n  "a",\n  # not this\n  7,\n]',
            5,
            "expected a string, in quotes; got 7",
        ),
        ('[PAID.own]\nwords = [\n"a",\n\n" - "]', 5, 'expected letters or digits; got " - "'),
        (
            '[PAID.own]\nwords = ["a b"]\n[FAILED.own]\nwords = [\n"x", "A_B"]',
            5,
            '"A_B" is FAILED here and PAID in line 2; expected one meaning for a word',
        ),
        (
            '[[PAID.a]]\nwords = ["a"]\n[[PAID.a]]\nsource = "x"\n\n[[PAID.a]]\nwords = [1]',
            3,
            'expected words = ["…", "…"] in this group',
        ),
        ('[[PAID.a]]\nwords = ["a"]\n[[PAID.a]]\nwords = [1]', 4, "in quotes; got 1"),
        (
            '[UNKNOWN.a]\nwords = ["a"]\n[REFUND_REVERSED.a]\nwords = ["a"]',
            4,
            '"a" is REFUND_REVERSED here and UNKNOWN in line 2',
        ),
        ('[PAID.own]\nwords = ["paid", "Pending"]', 2, "expected it in PENDING, or not at all"),
        ('[providers]\nown_intent = ["x"]', 2, "no key own_intent; did you mean own_intents?"),
        ('[providers]\nown_intents = "x"', 2, 'expected own_intents = ["…", "…"]'),
        ('[providers]\nown_intents = ["x",\n""]', 3, 'expected letters or digits; got ""'),
        ("[provider]\n", 1, "there is no state provider; did you mean providers?"),
        ("providers = 1", 1, "expected a table, [providers]"),
        ('[PAID.own]\nwords = ["x"', 2, "this is not TOML: "),
        ('[PAID.own]\nwords = ["x"]\n\n[PAID.own]', 4, "this is not TOML: Cannot declare"),
        ("[PAID.own\n", 1, "this is not TOML: Expected ']'"),
    ],
)
def test_a_mistake_is_reported_with_its_line(
    write: Write, text: str, line: int, problem: str
) -> None:
    path = write(text)
    with pytest.raises(InvalidStatusWords) as caught:
        StatusWords.read(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidStatusWords, match=r"none\.toml cannot be read: No such file"):
        StatusWords.read(tmp_path / "none.toml")
    with pytest.raises(InvalidStatusWords, match="cannot be read: Is a directory"):
        StatusWords.read(tmp_path)


def test_the_encoding_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_bytes('\ufeff[PAID.shop]\r\nwords = ["оплачено"]\r\n'.encode())
    assert StatusWords.read(path).meaning("оплачено") == Meaning(PaymentState.PAID)
    path.write_bytes('[PAID.shop]\nwords = ["bezahlt", "übergeben"]\n'.encode("latin-1"))
    with pytest.raises(InvalidStatusWords, match="line 2: expected UTF-8"):
        StatusWords.read(path)
