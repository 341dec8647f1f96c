"""``listings doctor`` on the words of payment statuses."""

from pathlib import Path
from typing import Any

import pytest

from persistence.roles import APPLICATION
from persistence.status_words import StatusWords
from tests.support import service
from tests.support.command_line import listings
from tests.support.databases import with_role
from tests.support.doctor import examined, problem
from tests.support.history import connect
from tests.support.orders import Orders
from tests.support.waiting import eventually, sessions


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.toml"
    path.write_text("[PAID.shop]\nwords = ['bezahlt']\n[UNKNOWN.shop]\nwords = ['egal', 'lost']\n")
    return path


def test_the_file_of_words(database_url: str, words: Path) -> None:
    builtin = StatusWords.builtin()
    text = examined(database_url, healthy=True)["words"][1]
    assert text == f"{len(builtin.meanings)} for payment statuses; digest {builtin.digest}"
    text = examined(database_url, payment_statuses=str(words))["words"][1]
    assert f"with those of {words}" in text
    assert StatusWords.read(words).digest in text

    words.write_text("[PAYED.shop]\nwords = ['bezahlt']\n")
    report = examined(database_url, payment_statuses=str(words))
    assert problem(report, "words") == (
        f"LISTINGS_PAYMENT_STATUSES: {words}, line 1: there is no state PAYED; did you mean PAID?"
    )
    assert report["classification, unknown words, processes"] == (
        "skipped",
        "until the problem of words is solved",
    )


def test_apply_is_due_until_it_is_done(database_url: str, words: Path) -> None:
    orders = Orders(database_url)
    settings: dict[str, Any] = {"payment_statuses": str(words)}
    service_url = with_role(database_url, APPLICATION)
    assert "by this table" in examined(service_url, healthy=True)["classification"][1]
    text = problem(examined(service_url, **settings), "classification")
    assert text == (
        "orders are classified by other meanings of 'bezahlt' (UNKNOWN -> PAID), "
        "'lost' (CHARGED_BACK -> UNKNOWN). Run `listings statuses apply`, once all processes of "
        "the service have these words"
    )
    assert listings("statuses", "apply", url=database_url, settings=settings).returncode == 0
    examined(service_url, healthy=True, **settings)

    # Of a worker that still had the table before.
    orders.add(payment_status="Bezahlt", payment_state=1)
    text = problem(examined(service_url, **settings), "unknown words")
    assert text.startswith("orders with 'Bezahlt' (1) are UNKNOWN, although the table has the ")
    assert listings("statuses", "apply", url=database_url, settings=settings).returncode == 0
    assert examined(service_url, healthy=True, **settings)["unknown words"][1] == "no order has one"


def test_more_than_some_words_are_counted(database_url: str) -> None:
    with connect(database_url) as connection:
        connection.execute(
            "UPDATE status_words SET state = 6 WHERE word IN ('won', 'void', 'voided', 'waiting',"
            " 'unpaid', 'timedout', 'succeeded')"
        )
    text = problem(examined(database_url), "classification")
    assert text.count("(FAILED -> ") == 5
    assert " and 2 more. " in text


def test_words_that_are_in_no_table(database_url: str, words: Path) -> None:
    orders = Orders(database_url)
    orders.add()
    for word in ("piad", "piad", "on\x1b[31mhold", "egal"):
        orders.add(payment_status=word, payment_state=1)
    orders.add(payment_status="piad")  # as after a change by hand
    orders.add(payment_status="paid")
    verdict, text = examined(database_url)["unknown words"]
    assert verdict == "ok"
    assert text.startswith(
        "orders with 'piad' (3), 'egal' (1), 'on\\x1b[31mhold' (1) are in no table. Give each word"
    )
    # The file says that the word has no meaning.
    text = examined(database_url, payment_statuses=str(words))["unknown words"][1]
    assert "egal" not in text
    assert "'piad' (3)" in text


def test_processes_with_different_tables(database_url: str, words: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"payment_statuses": str(words)}
    assert listings("statuses", "apply", url=database_url, settings=settings).returncode == 0
    builtin, own = StatusWords.builtin().digest, StatusWords.read(words).digest
    assert "no process" in examined(database_url, **settings)["processes"][1]
    named = f"{database_url}{'&' if '?' in database_url else '?'}application_name=pay"
    with service.running(named, tmp_path / "log", workers="2", **settings):
        eventually(lambda: sessions(database_url).count(f"pay words={own}") == 2)
        text = examined(database_url, healthy=True, **settings)["processes"][1]
        assert text == f"all processes of the service have this table: 2 with {own}"
        report = examined(database_url)
        assert report["processes"][0] == "problem"
        assert report["processes"][1].startswith(
            "the service has another table than this environment: "
            f"2 with {own}; here it is {builtin}. Restart the service"
        )
        with service.running(database_url, tmp_path / "log 2"):
            eventually(lambda: f"listings words={builtin}" in sessions(database_url))
            text = problem(examined(database_url, **settings), "processes")
            assert text == (
                "processes of the service have different tables: "
                f"2 with {own}, 1 with {builtin}; here it is {own}. "
                "If no rolling deployment is under way, restart those that were forgotten"
            )
