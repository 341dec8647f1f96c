"""What the service's role may not do in the embedded PostgreSQL, beside its tables."""

import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from persistence.embedded import running
from persistence.roles import APPLICATION, OWNER
from server.gen.listings.v1.orders_connect import OrderService
from tests.support import service
from tests.support.embedded import ask, open_directory
from tests.support.service import Service

REFUSED = {
    "make a temporary table": "CREATE TEMPORARY TABLE mine (id int)",
    "select into a temporary table": "SELECT 1 AS id INTO TEMPORARY mine",
    "make a temporary sequence": "CREATE TEMPORARY SEQUENCE mine",
    "make a temporary view": "CREATE TEMPORARY VIEW mine AS SELECT 1",
    "make a table": "CREATE TABLE mine (id int)",
    "make a view": "CREATE VIEW mine AS SELECT 1",
    "make a type": "CREATE TYPE mine AS ENUM ('a')",
    "make a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "make a schema": "CREATE SCHEMA mine",
    "make a trusted extension": "CREATE EXTENSION hstore",
    "make a language": "CREATE LANGUAGE mine HANDLER plpgsql_call_handler",
    "make a database": "CREATE DATABASE mine",
    "make a role": "CREATE ROLE mine",
    "make a publication": "CREATE PUBLICATION mine",
    "make a server": "CREATE FOREIGN DATA WRAPPER mine",
    "run a program": "COPY orders TO PROGRAM 'true'",
    "read by a program": "COPY refused_payment_events (id) FROM PROGRAM 'true'",
    "write a file": "COPY orders TO '/tmp/orders'",
    "read a file": "SELECT pg_read_file('postgresql.conf')",
    "list files": "SELECT pg_ls_dir('.')",
    "load a library": "LOAD '/tmp/mine.so'",
    "become the owner": f"SET ROLE {OWNER}",
    "become the owner by a function": f"SELECT set_config('role', '{OWNER}', false)",
    "log in as the owner": f"SET SESSION AUTHORIZATION {OWNER}",
    "keep no history": "SELECT set_config('session_replication_role', 'replica', false)",
    "configure the server": "ALTER SYSTEM SET fsync = off",
    "configure the database": "ALTER DATABASE listings SET search_path = mine",
    "make a large object": "SELECT lo_create(0)",
    "make a large object of a number": "SELECT lo_creat(-1)",
    "fill a large object": "SELECT lo_from_bytea(0, 'data')",
    "write to a large object": "SELECT lo_put(1, 0, 'data')",
    "write to an open large object": "SELECT lowrite(0, 'data')",
    "import a file": "SELECT lo_import('/etc/hostname')",
    "export a file": "SELECT lo_export(1, '/tmp/mine')",
    "reserve WAL": "SELECT pg_create_physical_replication_slot('mine', true)",
    "read WAL": "SELECT pg_create_logical_replication_slot('mine', 'test_decoding')",
    "forget counters": "SELECT pg_stat_reset()",
    "switch WAL": "SELECT pg_switch_wal()",
    "reload": "SELECT pg_reload_conf()",
    "change statistics": (
        "SELECT pg_restore_relation_stats("
        "'schemaname', 'public', 'relname', 'orders', 'version', 180000, 'reltuples', 1::real)"
    ),
    "import collations": "SELECT pg_import_system_collations('public')",
    "take an object's id": "SELECT pg_nextoid('pg_class', 'oid', 'pg_class_oid_index')",
    "stop pinning": "SELECT pg_stop_making_pinned_objects()",
}

# Volatile functions that the role may call. Those with an effect outside the session:
EFFECTS = re.compile(
    r"pg_(try_)?advisory_\w+|pg_notify|pg_logical_emit_message|pg_export_snapshot"
    r"|pg_(cancel|terminate)_backend"  # sessions of the same role
)
# Those that PostgreSQL itself reserves: for owners, superusers, REPLICATION, and pg_upgrade.
RESERVED = re.compile(
    r"binary_upgrade_\w+|brin_\w+|gin_clean_pending_list|nextval|setval|pg_nextoid"
    r"|pg_(clear|restore)_(attribute|relation)_stats|pg_import_system_collations"
    r"|pg_(copy|create|drop)_\w*replication_slot|pg_replication_slot_advance|pg_logical_slot_\w+"
    r"|pg_sync_replication_slots|pg_extension_config_dump|pg_stop_making_pinned_objects"
)
# Those that only read, compute, or change the session.
HARMLESS = re.compile(
    r"set_config|setseed|pg_stat_clear_snapshot|pg_stat_force_next_flush|pg_sleep\w*"
    r"|pg_(stat_get|get|control|current|last|is|wal|xact|available|blocking|safe|partition)_\w+"
    r"|pg_\w*(size|version|jit_available|lock_status|prepared_xact|usage|is_blocked|last_value)"
    r"|(random|uuid)\w*|(query|cursor)_to_xml\w*|array_\w+|ts_\w+|gen_random_uuid|clock_timestamp"
    r"|timeofday|current_query|currtid2|currval|lastval|txid_status|amvalidate|dsnowball_\w+"
    r"|\w+handler|plpgsql_\w+|bernoulli|system"
)

CALLS: dict[str, dict[str, Any]] = {
    "UpdateOrderPayment": {"orderId": 1, "paymentStatus": "refunded", "overrideReason": "a test"},
    "GetOrder": {"orderId": 1},
    "FindOrderByPayment": {"paymentSessionId": "cs_none"},
    "ListOrders": {},
    "ListStuckPayments": {"olderThan": "3600s"},
    "ListOrderPaymentEvents": {"orderId": 1},
    "ListOrderPayments": {"orderId": 1},
    "ListRefusedPaymentEvents": {},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """The service on an embedded database of its own, and the directory of that."""
    directory = open_directory()
    log = tmp_path_factory.mktemp("served") / "log"
    try:
        with service.running(
            "", log, data_dir=str(directory / "data"), watch_heartbeat="1"
        ) as running_service:
            yield running_service, directory / "data"
            assert running_service.stop() == 0
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def url(served: tuple[Service, Path]) -> Iterator[str]:
    """The URL of that database for the service's role."""
    with running(served[1], APPLICATION) as url:
        yield url


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED)
def test_the_role_is_refused(url: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(url, statement)


@pytest.mark.parametrize("database", ["postgres", "template1"])
def test_the_role_can_connect_to_no_other_database(url: str, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not have CONNECT privilege"):
        ask(url.replace("/listings?", f"/{database}?"), "SELECT 1")


def test_the_functions_with_effects_that_the_role_may_call_are_known(url: str) -> None:
    """A new version of PostgreSQL may add some: decide on them, and tell in docs/security.md."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            """
            SELECT DISTINCT proname FROM pg_proc
            WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 'v'
            AND prorettype <> 'trigger'::regtype AND has_function_privilege(oid, 'EXECUTE')
            """
        ).fetchall()
    known = (EFFECTS, RESERVED, HARMLESS)
    assert {name for (name,) in rows if not any(each.fullmatch(name) for each in known)} == set()


def test_every_method_of_the_service_works_for_the_role(served: tuple[Service, Path]) -> None:
    watch, message = "WatchOrderPayments", b'{"orderIds": [1]}'
    assert {each.name for each in OrderService.desc().methods} == {*CALLS, watch}
    with httpx.Client(base_url=f"{served[0].base_url}/listings.v1.OrderService/") as client:
        found = {method: client.post(method, json=body) for method, body in CALLS.items()}
        head = {"content-type": "application/connect+json"}
        envelope = struct.pack(">BI", 0, len(message)) + message
        with client.stream("POST", watch, headers=head, content=envelope) as stream:
            heartbeat = next(stream.iter_bytes())
    codes = {method: answer.status_code for method, answer in found.items()}
    assert codes == dict.fromkeys(CALLS, 200) | {"FindOrderByPayment": 404}
    assert b"eventId" in heartbeat


def test_the_rights_of_an_earlier_cluster_are_revoked_at_the_next_start(used_dir: Path) -> None:
    opened = [
        "GRANT TEMPORARY ON DATABASE listings TO PUBLIC",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "GRANT EXECUTE ON FUNCTION lo_from_bytea(oid, bytea) TO PUBLIC",
    ]
    with running(used_dir) as owner:
        for statement in opened:
            ask(owner, statement)
    with running(used_dir, APPLICATION) as url:
        for statement in (
            "CREATE TEMPORARY TABLE mine (id int)",
            "CREATE TABLE mine (id int)",
            "SELECT lo_from_bytea(0, 'data')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                ask(url, statement)
