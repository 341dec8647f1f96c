"""``listings statuses``, run as a process, and the start with a shop's own words."""

from pathlib import Path

import pytest

from persistence.status_words import StatusWords
from tests.support import databases, fork_server, service
from tests.support.command_line import listings
from tests.support.orders import Orders
from tests.support.waiting import eventually, sessions


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A shop's file with a word of its own, one that it redefines, and one that it takes away."""
    path = tmp_path / "words.toml"
    path.write_text("""
        [PAID.invoice]
        source = "https://shop.example/wiki"
        words = ["Bezahlt\\n am Schalter", "complete"]

        [UNKNOWN.invoice]
        words = ["lost"]

        [providers]
        own_intents = ["Bank"]
    """)
    return path


def test_the_help_names_the_setting() -> None:
    with fork_server.avoided():
        done = listings("statuses", "--help")
    assert done.returncode == 0
    assert "LISTINGS_PAYMENT_STATUSES" in done.stdout


def test_a_line_for_each_word_and_provider() -> None:
    done = listings("statuses")
    assert done.returncode == 0
    table, _, rest = done.stdout.partition("\n\n")
    rows = [tuple(line.split(maxsplit=3)) for line in table.splitlines()]
    entries = StatusWords.builtin().entries()
    assert rows == [(each.meaning, each.word, each.provider, each.source) for each in entries]
    assert rest.splitlines() == [
        "Refunds, disputes and chargebacks have intents of their own at: allsecure, ixopay",
        f"Digest of the meanings: {StatusWords.builtin().digest}",
    ]


def test_the_table_in_force_has_the_words_of_the_shop(words: Path) -> None:
    done = listings("statuses", settings={"payment_statuses": str(words)})
    lines = [line.split() for line in done.stdout.splitlines()]
    own = ["PAID", "Bezahlt", "am", "Schalter", "invoice", "https://shop.example/wiki"]
    assert own in lines
    complete = ["PAID", "complete", "invoice", "https://shop.example/wiki"]
    assert [each for each in lines if each[1:2] == ["complete"]] == [complete]
    assert ["UNKNOWN", "lost", "invoice", str(words)] in lines
    assert "own at: allsecure, ixopay, Bank\n" in done.stdout
    assert StatusWords.read(words).digest in done.stdout
    assert len({line.index("http") for line in done.stdout.splitlines() if "http" in line}) == 1


@pytest.mark.parametrize("command", ["serve", "statuses"])
def test_a_mistake_in_the_file_is_an_error_with_its_line(words: Path, command: str) -> None:
    words.write_text('\n[PAYED.invoice]\nwords = ["bezahlt"]\n')
    # A database that cannot be reached: the file is refused before it is needed.
    done = listings(
        command, url="postgresql://127.0.0.1:1/x", settings={"payment_statuses": str(words)}
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"Error: LISTINGS_PAYMENT_STATUSES: {words}, line 2: "
        "there is no state PAYED; did you mean PAID?"
    )
    assert done.stdout == ""


def test_apply_says_what_it_did(database_url: str, words: Path) -> None:
    orders = Orders(database_url)
    paid = orders.add(payment_status="Bezahlt am Schalter", payment_state=1)
    orders.add(payment_status="lost", payment_state=13)
    orders.add(payment_status="received")
    orders.change(paid, payment_transaction_id="1")
    settings = {"payment_statuses": str(words)}
    # The service may not; the owner's URL goes first.
    owned = settings | {"migration_database_url": database_url}
    service = databases.for_service(database_url)
    done = listings("statuses", "apply", url=service, settings=settings)
    shown = f"Words: {described(StatusWords.read(words), words)}"
    assert (done.returncode, done.stdout) == (1, f"{shown}\n")
    assert "LISTINGS_MIGRATION_DATABASE_URL" in done.stderr
    done = listings("statuses", "apply", url=service, settings=owned)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        shown,
        "UNKNOWN -> PAID: the word 'bezahltamschalter'",
        "PROCESSING -> PAID: the word 'complete'",
        "CHARGED_BACK -> UNKNOWN: the word 'lost'",
        "CHARGED_BACK -> UNKNOWN: 1 order",
        "not classified -> PROCESSING: 1 order",
        "UNKNOWN -> PAID: 1 order",
    ]
    done = listings("statuses", "apply", url=service, settings=owned)
    assert done.stdout == f"{shown}\nNo order changes its state.\n"


def described(table: StatusWords, path: Path) -> str:
    return (
        f"{len(table.meanings)} for payment statuses, with those of {path}; digest {table.digest}"
    )


def test_apply_is_refused_while_a_process_has_another_table(
    database_url: str, words: Path, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    order_id = orders.add(payment_status="bezahltamschalter", payment_state=1)
    settings = {"payment_statuses": str(words)}
    log = tmp_path / "log"
    with service.running(database_url, log, status_guard="shadow"):
        shown = f"listings words={StatusWords.builtin().digest}"
        eventually(lambda: shown in sessions(database_url))
        done = listings("statuses", "apply", url=database_url, settings=settings)
        assert done.returncode == 1
        assert "the service has another table than this environment: 1 with " in done.stderr
        assert orders.row(order_id)["payment_state"] == 1
    assert log.read_text().count("events that would overwrite a payment are written") == 1
    done = listings("statuses", "apply", url=database_url, settings=settings)
    assert done.returncode == 0


def test_a_start_classifies_nothing(database_url: str, words: Path, tmp_path: Path) -> None:
    orders = Orders(database_url)
    order_id = orders.add(payment_status="bezahltamschalter", payment_state=1)
    with service.running(database_url, tmp_path / "log", payment_statuses=str(words)):
        assert orders.row(order_id)["payment_state"] == 1
