"""``listings verify``, run as a process."""

import psycopg

from tests.support.command_line import listings, on_terminal
from tests.support.orders import Orders


def broken(url: str, orders: int) -> None:
    """Add orders with a payment, and pay for them without an event."""
    for _ in range(orders):
        Orders(url).add(payment_status="authorized")
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")  # without triggers
        connection.execute("UPDATE orders SET payment_status = 'paid'")


def test_what_is_sound(database_url: str) -> None:
    assert listings("verify", url=database_url).stdout == (
        "0 orders, 0 events, 0 refused events: nothing disagrees.\n"
    )
    Orders(database_url).add(payment_status="paid")
    done = listings("verify", url=database_url)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "1 order, 1 event, 0 refused events: nothing disagrees.\n",
        "",  # no progress bar
    )


def test_faults_are_printed_with_the_ids_of_orders(database_url: str) -> None:
    broken(database_url, 101)
    fault = "order {0}: is not what event {0} left: payment_status\n"
    first = "".join(fault.format(number) for number in range(1, 101))
    counts = "101 orders, 101 events, 0 refused events: something disagrees in 101 orders.\n"
    done = listings("verify", url=database_url)
    more = "… and 1 more fault; --all prints them\n"
    assert (done.returncode, done.stdout) == (1, first + more + counts)
    done = listings("verify", "--all", url=database_url)
    assert (done.returncode, done.stdout) == (1, first + fault.format(101) + counts)
    done = listings("verify", "101", "7", url=database_url)
    assert (done.returncode, done.stdout) == (
        1,
        f"{fault.format(7)}{fault.format(101)}"
        "2 orders, 2 events, 0 refused events: something disagrees in 2 orders.\n",
    )


def test_a_sequence_that_is_behind(database_url: str) -> None:
    orders = Orders(database_url)
    for _ in range(2):
        orders.add()
    orders.value("SELECT setval('orders_id_seq', 1)")
    done = listings("verify", url=database_url)
    assert (done.returncode, done.stdout) == (
        1,
        "the sequence public.orders_id_seq is at 1, behind row 2 of orders\n"
        "2 orders, 0 events, 0 refused events: something disagrees in 0 orders; behind: 1 sequence."
        "\n",
    )


def test_a_terminal_has_a_progress_bar(database_url: str) -> None:
    Orders(database_url).add(payment_status="paid")
    with on_terminal("verify", url=database_url) as (process, seen):
        assert process.wait(60) == 0
        assert "Verifying" in seen()
        assert "100%" in seen()
        assert "nothing disagrees" in seen()


def test_without_migrations(empty_database_url: str) -> None:
    done = listings("verify", url=empty_database_url)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "listings migrate up" in done.stderr
