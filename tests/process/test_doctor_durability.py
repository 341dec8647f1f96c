"""``listings doctor`` on what an acknowledgement is worth: settings, tables and replication."""

from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest

from persistence.roles import APPLICATION
from tests.support import cluster
from tests.support.cluster import Cluster
from tests.support.databases import with_role
from tests.support.doctor import examined, problem
from tests.support.waiting import eventually

_STANDBYS = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A server of the module's own, with PostgreSQL's defaults for durability."""
    with cluster.running() as running:
        yield running


def run(server: Cluster, remedy: str) -> None:
    """Run the statements of a remedy, and wait until each session has them."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in filter(None, map(str.strip, remedy.split(";"))):
            connection.execute(statement.rpartition(": ")[2].encode())
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        eventually(lambda name=name: server.execute(f"SHOW {name}") == "on")  # type: ignore[misc]


def remedy(text: str) -> str:
    return text.partition(". ")[2]


def test_the_defaults(server: Cluster) -> None:
    text = examined(server.url, healthy=True)["durability"][1]
    assert text.startswith("fsync and full_page_writes are on, and synchronous_commit is on")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("ALTER SYSTEM", "in the configuration of the server"),
        ("ALTER DATABASE shop", "by ALTER DATABASE shop"),
        ("ALTER ROLE ALL", "by ALTER ROLE ALL"),
        ("ALTER ROLE listings", "by ALTER ROLE listings"),
        ("ALTER ROLE listings IN DATABASE shop", "by ALTER ROLE listings IN DATABASE shop"),
    ],
)
def test_synchronous_commit_is_off(server: Cluster, change: str, place: str) -> None:
    server.execute(f"{change} SET synchronous_commit = off")
    server.execute("SELECT pg_reload_conf()")
    eventually(lambda: server.execute("SHOW synchronous_commit") == "off")
    text = problem(examined(server.url), "durability")
    assert f"synchronous_commit is off ({place}): updates of the last moments" in text
    run(server, remedy(text))


def test_it_is_off_in_the_url_and_below(server: Cluster) -> None:
    server.execute("ALTER ROLE listings SET synchronous_commit = off")
    options = quote("-c synchronous_commit=off", safe="")
    text = problem(examined(f"{server.url}&options={options}"), "durability")
    assert "(by the options of the connection and by ALTER ROLE listings)" in text
    assert "Remove synchronous_commit from the options in LISTINGS_DATABASE_URL. ALTER" in text
    run(server, text.partition("LISTINGS_DATABASE_URL. ")[2])


def test_it_is_off_for_others_alone(server: Cluster) -> None:
    server.execute("CREATE ROLE reporting")
    server.execute("ALTER ROLE reporting SET synchronous_commit = off")
    examined(server.url, healthy=True)
    server.execute("DROP ROLE reporting")


def test_settings_of_the_server(server: Cluster) -> None:
    server.configure("fsync", "off")
    server.configure("full_page_writes", "off")
    text = problem(examined(server.url), "durability")
    assert "fsync is off (in the configuration of the server): a crash of the machine" in text
    run(server, remedy(text))
    server.configure("full_page_writes", "off")
    verdict, text = examined(server.url, healthy=True)["durability"]
    assert verdict == "warning"
    assert text.startswith("full_page_writes is off")
    run(server, remedy(text))


def test_a_table_that_a_crash_empties(server: Cluster) -> None:
    server.execute("ALTER TABLE refused_payment_events SET UNLOGGED")
    text = problem(examined(server.url), "durability")
    assert "table refused_payment_events is UNLOGGED" in text
    run(server, remedy(text))
    examined(server.url, healthy=True)


def test_replication(server: Cluster) -> None:
    def text(url: str = server.url) -> str:
        found = examined(url, healthy=True)["replication"][1]
        assert found.endswith('docs/operations.md, "What an acknowledgement is worth"')
        return found

    service_url = with_role(server.url, APPLICATION)
    assert text().startswith("one server, as far as PostgreSQL shows")
    with server.standby("twin"):
        for url in (server.url, service_url):
            assert text(url).startswith(
                "synchronous (twin), 1 standby connected: an acknowledged update is on the disk of "
                "a standby, too"
            )
        assert "; twin (streaming, sync, " in text()
        assert "shown to members of pg_monitor" in text(service_url)
        server.execute(f"GRANT pg_monitor TO {APPLICATION}")
        assert "; twin (streaming, sync, " in examined(service_url)["replication"][1]
        server.execute(f"REVOKE pg_monitor FROM {APPLICATION}")

        server.configure("synchronous_commit", "remote_write")
        assert "but perhaps not its disk" in text()
        server.configure("synchronous_commit", "on")
        server.execute(f"ALTER ROLE {APPLICATION} SET synchronous_commit = local")
        found = problem(examined(service_url), "durability")
        assert "synchronous_commit is local (by ALTER ROLE listings_app)" in found
        run(server, remedy(found))
        server.execute(f"ALTER ROLE {APPLICATION} SET client_min_messages = error")
        found = problem(examined(service_url), "durability")
        assert "client_min_messages is error (by ALTER ROLE listings_app): behind a poo" in found
        run(server, remedy(found))

        server.configure("synchronous_standby_names", "")
        for url in (server.url, service_url):
            assert text(url).startswith("asynchronous, 1 standby connected: a fail-over loses")
        server.configure("synchronous_standby_names", "twin")
    eventually(lambda: server.execute(_STANDBYS) == 0)
    for url in (server.url, service_url):
        found = problem(examined(url), "replication")
        assert "commits wait for synchronous_standby_names = 'twin', and no standby is" in found
    # A commit would wait for the standby.
    found = found.partition("managed server: ")[2].partition(" See ")[0]
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in filter(None, map(str.strip, found.split(";"))):
            connection.execute(statement.encode())
    eventually(lambda: server.execute("SHOW synchronous_standby_names") == "")
