"""``listings doctor`` reports each fault and its remedy."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from persistence import embedded
from persistence.roles import APPLICATION, CALLED
from persistence.schema import migration_ids
from tests.support import service
from tests.support.certificates import Issued
from tests.support.command_line import listings
from tests.support.databases import with_role
from tests.support.doctor import examined, problem
from tests.support.embedded import open_directory, suspended
from tests.support.markdown import code, page, table
from tests.support.tokens import Issuer


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_healthy_setup(database_url: str) -> None:
    report = examined(with_role(database_url, APPLICATION), healthy=True)
    # The rights of every user, which a new server of PostgreSQL grants.
    assert [subject for subject, (verdict, _) in report.items() if verdict != "ok"] == ["PUBLIC"]
    rows = table(page("configuration.md"), "Line", "Checks")
    documented = [subject for line, *_ in rows for subject in code(line)]
    assert list(report) == [
        *("configuration", "telemetry", "tokens", "TLS", "words"),
        *(each for each in documented if each in report),
        "port",
    ]
    assert {*documented} - report.keys() <= {"durability", "direct URL", "migration URL"}
    assert "LISTINGS_DATABASE_URL" in report["configuration"][1]
    assert "PostgreSQL " in report["database"][1]
    assert "LISTINGS_FOO" in examined(database_url, foo="bar")["configuration"][1]
    assert report["rights"][1] == "listings_app may do what the service does, and no more"
    assert migration_ids()[-1] in report["schema"][1]


def test_every_invalid_setting_is_named_and_the_rest_is_checked(database_url: str) -> None:
    report = examined(database_url, workers="0", pool_size="ten", poolsize="7", port="http")
    verdict, text = report["configuration"]
    assert verdict == "problem"
    assert "LISTINGS_POOLSIZE is not a setting; did you mean LISTINGS_POOL_SIZE?" in text
    for words in ("LISTINGS_WORKERS: ", "LISTINGS_POOL_SIZE: ", "LISTINGS_PORT: "):
        assert words in text
    assert report["schema"][0] == "ok"
    assert report["port"][0] == "skipped"


def test_an_unreachable_telemetry_collector(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        port = collector.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://u:hunter2@127.0.0.1:{port}")
        assert examined(database_url)["telemetry"] == ("ok", "sent by OTLP")
    assert f"127.0.0.1 port {port}" in problem(examined(database_url), "telemetry")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert "expected http/protobuf" in problem(examined(database_url), "telemetry")


def test_tokens(database_url: str, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    assert "may do everything" in examined(database_url, healthy=True)["tokens"][1]
    found = examined(database_url, healthy=True, **issuer.settings())["tokens"][1]
    assert found == f"3 keys at {issuer.jwks}"
    for url, words in (("http://127.0.0.1:1/keys", "127.0.0.1:1"), (str(tmp_path), "directory")):
        settings = issuer.settings() | {"jwks": url}
        text = problem(examined(database_url, healthy=False, **settings), "tokens")
        assert words in text
        assert "LISTINGS_JWKS" in text
    assert examined(database_url, jwt_issuer="us")["tokens"][0] == "skipped"


def test_certificates(database_url: str, tmp_path: Path) -> None:
    assert examined(database_url)["TLS"] == ("ok", "off")
    ca = Issued.ca()
    files = ca.issue("pay.example").save(tmp_path, "server")
    settings: dict[str, Any] = {"tls_cert": str(files.cert), "tls_key": str(files.key)}
    text = examined(database_url, healthy=True, **settings)["TLS"][1]
    assert text.startswith("the certificate is for pay.example, valid until 20")
    assert "renewed" not in text
    ca.issue(days=(-1, 13.5)).save(tmp_path, "server")
    verdict, text = examined(database_url, healthy=True, **settings)["TLS"]
    assert verdict == "warning"
    assert "That is in 13 days" in text
    ca.issue(days=(-9, -1)).save(tmp_path, "server")
    assert "it has expired" in problem(examined(database_url, **settings), "TLS")
    del settings["tls_key"]
    assert "LISTINGS_TLS_KEY" in problem(examined(database_url, **settings), "configuration")


def test_the_owner_of_a_port_with_tls(database_url: str, tmp_path: Path) -> None:
    ca = Issued.ca()
    files = ca.issue("pay.example").save(tmp_path, "server")
    settings: dict[str, Any] = {"tls_cert": str(files.cert), "tls_key": str(files.key)}
    with service.running(database_url, tmp_path / "log", **settings) as running:
        settings["port"] = str(running.port)
        report = examined(database_url, healthy=True, **settings)
        assert "a Listings Service serves" in report["port"][1]
        settings["tls_client_ca"] = str(files.cert)
        report = examined(database_url, **settings)
        assert report["port"][0] == "skipped"
        assert f"process {running.process.pid}, " in report["port"][1]


def test_an_additional_url_of_another_database(database_url: str, empty_database_url: str) -> None:
    for subject, name in (
        ("direct URL", "direct_database_url"),
        ("migration URL", "migration_database_url"),
    ):
        report = examined(database_url, healthy=True, **{name: database_url})
        assert report[subject] == ("ok", "it leads to the same database")
        report = examined(database_url, healthy=False, **{name: empty_database_url})
        text = problem(report, subject)
        assert "it leads to another database" in text
        assert f"LISTINGS_{name.upper()}" in text
    unreachable = "postgresql://127.0.0.1:1/shop"
    assert "127.0.0.1" in problem(
        examined(database_url, direct_database_url=unreachable), "direct URL"
    )


@pytest.mark.parametrize("url", ["mysql://root:hunter2@db/x", "postgresql://u:%zzhunter2@h/db"])
def test_an_invalid_database_url(url: str) -> None:
    report = examined(url)
    assert any("expected postgresql://" in text for _, text in report.values())
    assert report["port"][0] == "ok"


def test_an_unreachable_or_missing_database(database_url: str) -> None:
    text = problem(examined("postgresql://a:hunter2@127.0.0.1:1/b"), "database")
    assert "port 1" in text
    assert "Start PostgreSQL" in text
    missing = urlunsplit(urlsplit(database_url)._replace(path="/nowhere"))
    assert "createdb" in problem(examined(missing), "database")
    unknown_role = with_role(database_url, "stranger:hunter2")
    assert "pg_hba.conf" in problem(examined(unknown_role), "database")
    text = problem(examined("postgresql://a:hunter2@host.invalid/b"), "database")
    assert "DNS" in text


def test_a_read_only_database(database_url: str) -> None:
    name = urlsplit(database_url).path[1:]
    execute(database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "default_transaction_read_only is on" in problem(examined(database_url), "writing")


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A login role without privileges in the test's database."""
    name = urlsplit(database_url).path[1:]
    role = f"role_{name}"
    execute(database_url, f"CREATE ROLE {role} LOGIN")
    yield role
    execute(database_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_missing_privileges(database_url: str, role: str) -> None:
    url = with_role(database_url, role)
    execute(
        database_url,
        f"GRANT SELECT ON _yoyo_migration TO {role}",
        f"GRANT SELECT, UPDATE (payment_status) ON orders TO {role}",
        "REVOKE USAGE ON SCHEMA public FROM public",
    )
    text = problem(examined(url), "rights")
    assert f"which {role} may not use" in text
    execute(database_url, text.partition("As the owner: ")[2])

    text = problem(examined(url), "rights")
    assert "lacks UPDATE (payment_provider, " in text
    assert "updated_at) ON orders, SELECT ON order_payment_events, " in text
    assert "INSERT ON refused_payment_events, UPDATE (times, last_refused_at) ON " in text
    assert text.partition("As the owner: ")[2] == f"GRANT listings_app TO {role};"
    refused = listings("serve", url=url)
    assert (refused.returncode, refused.stderr) == (1, f"Error: {text}\n")
    execute(database_url, text.partition("As the owner: ")[2])  # the remedy works
    assert examined(url, healthy=True)["rights"][1].endswith("and no more")


def test_privileges_revoked_from_the_service_role(database_url: str) -> None:
    url = with_role(database_url, APPLICATION)
    execute(database_url, f"REVOKE UPDATE (updated_at), SELECT ON orders FROM {APPLICATION}")
    text = problem(examined(url), "rights")
    assert "lacks SELECT ON orders, UPDATE (payment_provider, " in text
    assert "listings migrate up" in text
    execute(database_url, text.partition("as the owner: ")[2])
    assert examined(url, healthy=True)["rights"][1].endswith("and no more")


def test_functions_that_the_service_role_may_not_call(database_url: str) -> None:
    url = with_role(database_url, APPLICATION)
    for each in CALLED:
        name = each.function.partition("(")[0]
        execute(database_url, f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC, {APPLICATION}")
    text = problem(examined(url), "rights")
    assert text.startswith(f"{APPLICATION} lacks {', '.join(map(str, CALLED))}. ")
    refused = listings("serve", url=url)
    assert (refused.returncode, refused.stderr) == (1, f"Error: {text}\n")
    execute(database_url, text.partition("as the owner: ")[2])
    assert examined(url, healthy=True)["rights"][1].endswith("and no more")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("GRANT UPDATE (total_amount) ON orders TO {}", "UPDATE (total_amount) ON orders"),
        ("GRANT DELETE ON orders TO {}", "DELETE ON orders"),
        ("GRANT TRUNCATE ON order_payment_events TO {}", "TRUNCATE ON order_payment_events"),
        ("GRANT TRIGGER ON orders TO {}", "TRIGGER ON orders"),
        ("GRANT INSERT ON _yoyo_migration TO {}", "INSERT ON _yoyo_migration"),
        ("GRANT DELETE ON refused_payment_events TO {}", "DELETE ON refused_payment_events"),
        (
            "GRANT UPDATE (reason) ON refused_payment_events TO {}",
            "UPDATE (reason) ON refused_payment_events",
        ),
        (
            "GRANT UPDATE (captured_amount) ON order_payment_events TO {}",
            "UPDATE (captured_amount) ON order_payment_events",
        ),
        ("GRANT CREATE ON SCHEMA public TO {}", "CREATE ON SCHEMA public"),
        ("ALTER ROLE {} CREATEROLE", "CREATEROLE"),
        ("ALTER ROLE {} REPLICATION", "REPLICATION"),
        ("GRANT pg_execute_server_program TO {}", "membership in pg_execute_server_program"),
    ],
)
def test_each_excess_privilege(database_url: str, role: str, statement: str, words: str) -> None:
    execute(database_url, f"GRANT {APPLICATION} TO {role}")
    assert examined(with_role(database_url, role))["rights"][1].endswith("and no more")
    execute(database_url, statement.format(role))
    verdict, text = examined(with_role(database_url, role))["rights"]
    assert verdict == "warning"
    assert "and more, such as" in text
    assert words in text


def test_excess_privileges_of_superuser_and_owner(database_url: str, role: str) -> None:
    superuser = examined(database_url, healthy=True)["rights"][1]
    execute(database_url, f"ALTER TABLE orders OWNER TO {role}", f"GRANT {APPLICATION} TO {role}")
    owner = examined(with_role(database_url, role), healthy=True)["rights"][1]
    for text in (superuser, owner):
        assert "and more, such as INSERT ON " in text
        assert "IN ROLE listings_app" in text
    assert "INSERT ON _yoyo_migration" in superuser
    assert "INSERT ON _yoyo_migration" not in owner


def test_more_connections_than_allowed(database_url: str, role: str) -> None:
    text = problem(examined(database_url, workers="3", pool_size="40"), "connections")
    assert "126 connections (3 x (40 of the pool + 2))" in text
    assert "LISTINGS_POOL_SIZE" in text
    execute(
        database_url, f"GRANT {APPLICATION} TO {role}", f"ALTER ROLE {role} CONNECTION LIMIT 11"
    )
    text = problem(examined(with_role(database_url, role)), "connections")
    assert "may open 12 connections" in text
    assert f"the limit of user {role} allows 11" in text
    assert "ALTER ROLE" in text
    name = urlsplit(database_url).path[1:]
    execute(
        database_url,
        f"ALTER ROLE {role} CONNECTION LIMIT 12",
        f"ALTER DATABASE {name} CONNECTION LIMIT 13",
    )
    url = with_role(database_url, role)
    # Those of the service are no others: the doctor may run beside it.
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(psycopg.connect(url))
        stack.enter_context(psycopg.connect(with_role(database_url, APPLICATION)))
        assert (
            "of 12 that are left for the service" in examined(url, healthy=True)["connections"][1]
        )
        stack.enter_context(psycopg.connect(with_role(database_url, APPLICATION)))
        text = problem(examined(url), "connections")
        assert "allows 13, of which others have 2 at present" in text
        assert "ALTER DATABASE" in text


def test_missing_and_newer_migrations(database_url: str, empty_database_url: str) -> None:
    text = problem(examined(empty_database_url), "schema")
    assert all(name in text for name in migration_ids())
    assert "listings migrate up" in text
    report = examined(empty_database_url)
    assert report["objects, history, classification, unknown words, processes"] == (
        "skipped",
        "until the problem of schema is solved",
    )
    execute(
        database_url,
        "INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '3000_future')",
    )
    # No problem: the previous version serves while the next one is rolled out.
    assert "3000_future" in examined(database_url, healthy=True)["schema"][1]


def test_the_owner_of_a_port(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        verdict, text = examined(database_url, healthy=True, port=str(running.port))["port"]
        assert verdict == "ok"
        assert "a Listings Service serves" in text
        assert f"process {running.process.pid}, " in text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        text = problem(examined(database_url, port=port), "port")
        assert f"used by process {os.getpid()}, " in text
        assert "LISTINGS_PORT" in text
    text = problem(examined(database_url, host="0.0.0.0"), "port")
    assert "LISTINGS_INSECURE=1" in text
    assert problem(examined(host="host.invalid"), "port").endswith("Correct LISTINGS_HOST")
    text = problem(examined(database_url, host="192.0.2.1"), "port")
    assert "an address of this machine" in text


def test_an_address_rejected_by_the_bind_policy(database_url: str, tmp_path: Path) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        settings: dict[str, Any] = {"host": "0.0.0.0", "port": str(running.port)}
        text = problem(examined(database_url, **settings), "port")
        assert "a Listings Service serves" in text
        assert "`listings serve` refuses the address: without authentication" in text
        assert examined(database_url, **settings, insecure="1")["port"][0] == "ok"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"host": "0.0.0.0", "port": str(taken.getsockname()[1])}
        text = problem(examined(database_url, **settings), "port")
        assert f"used by process {os.getpid()}, " in text
        assert "LISTINGS_INSECURE=1" in text


@pytest.fixture
def data_dir() -> Iterator[Path]:
    directory = open_directory()
    yield directory / "data"
    shutil.rmtree(directory)


def test_the_data_directory_and_a_hanging_server(data_dir: Path) -> None:
    here = str(data_dir)
    report = examined(healthy=True, data_dir=here)
    assert "is not there yet" in report["data directory"][1]
    assert not data_dir.exists(), "it changes nothing"

    data_dir.mkdir()
    (data_dir / "mine").touch()
    assert "name another directory" in problem(examined(data_dir=here), "data directory")
    (data_dir / "mine").unlink()

    with embedded.running(data_dir) as url:
        with suspended(data_dir):
            text = problem(examined(url, connect_timeout="0.5"), "database")
        assert "does not answer within 0.5 s" in text
    report = examined(data_dir=here)
    assert "user listings_app" in report["database"][1]
    assert report["data directory"][0] == "ok"
    assert "listings migrate up" in problem(report, "schema")
