"""The database moves to another server: by a dump, and by logical replication to a later version.

Its transaction ids are then those of another cluster, and its sequences may be behind. These follow
the steps of docs/operations.md.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Thread
from typing import Final

import psycopg
import pytest

from persistence.roles import APPLICATION
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import callers, checker, cluster, postgres_versions, service, watchers
from tests.support.callers import Failure
from tests.support.cluster import Cluster
from tests.support.command_line import listings
from tests.support.load import OK, Updates
from tests.support.load import callers as calling
from tests.support.orders import Orders
from tests.support.trial import Trial
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

# These servers are not killed.
FAST: Final = {"fsync": "off"}

STOREFRONT: Final = 3
"""Of all orders here."""


class Follower:
    """A client that watches all payments, from ``position`` or from now on, until ``close``."""

    def __init__(self, base_url: str, position: str = "") -> None:
        self.positions: list[str] = []
        self.transactions: list[str] = []
        """The ``payment_transaction_id`` that each event has left."""
        self.failure: Failure | None = None
        request = WatchOrderPaymentsRequest(storefront_id=STOREFRONT, last_event_id=position)
        self._thread = Thread(target=self._follow, args=(base_url, request), daemon=True)
        self._thread.start()
        eventually(lambda: self.positions or self.failure)

    def _follow(self, base_url: str, request: WatchOrderPaymentsRequest) -> None:
        try:
            with watchers.grpcio(base_url) as watch, watch(request) as stream:
                for message in stream:
                    self.positions.append(message.event_id)
                    if message.has_field("event"):
                        self.transactions.append(message.event.after.payment_transaction_id)
        except Failure as failure:
            self.failure = failure

    def close(self) -> None:
        """Wait for the end of the stream: the service has to end first."""
        self._thread.join(30)
        assert not self._thread.is_alive()


def ledger(server: Cluster) -> list[tuple[int, str | None]]:
    """Return the id of each event, and the ``payment_transaction_id`` that it has left."""
    with psycopg.connect(server.url) as connection:
        return connection.execute(
            "SELECT id, payment_transaction_id_after FROM order_payment_events ORDER BY id"
        ).fetchall()


def spend_transactions(server: Cluster, upto: int) -> None:
    """Have the server assign the ids of transactions up to ``upto``, and use them for nothing."""
    server.execute(
        "DO $$ BEGIN WHILE pg_current_xact_id()::text::bigint < "
        f"{upto} LOOP COMMIT; END LOOP; END $$"
    )


def last_transaction(server: Cluster) -> int:
    last = server.execute("SELECT max(transaction_id::text::bigint) FROM order_payment_events")
    assert isinstance(last, int)
    return last


def let_in(server: Cluster) -> None:
    """Create the roles, which belong to a server, and are in no dump of a database."""
    server.execute(f"CREATE ROLE {APPLICATION} LOGIN")


def begin_epoch(server: Cluster) -> str:
    """Check that `serve` wants a new epoch, open it, and return what the command says."""
    refused = listings("serve", url=server.url)
    assert refused.returncode == 1
    assert "Run `listings new-history`" in refused.stderr
    done = listings("new-history", "--yes", url=server.url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dump_is_restored_into_a_younger_cluster(tmp_path: Path, trial: Trial) -> None:
    updates = 40
    with cluster.running(**FAST) as old, cluster.running(is_migrated=False, **FAST) as young:
        spend_transactions(old, 3_000)
        orders = Orders(old.url)
        order_ids = [orders.add() for _ in range(4)]

        def update(number: int, **others: str) -> UpdateOrderPaymentRequest:
            return UpdateOrderPaymentRequest(
                order_id=order_ids[number % len(order_ids)],
                payment_provider="stripe",
                payment_status="pending",
                payment_transaction_id=f"txn_{number}",
                **others,
            )

        with service.running(old.url, tmp_path / "old") as running:
            follower = Follower(running.base_url)
            with callers.grpcio(running.base_url) as call:
                for number in range(updates):
                    call(update(number, payment_idempotency_key=f"evt_{number}"))
                etags = [call(GetOrderRequest(order_id=each)).order.etag for each in order_ids]
            eventually(lambda: len(follower.transactions) == updates)
            assert running.stop() == 0
            follower.close()
        before = ledger(old)

        let_in(young)
        dump = old.place.home / "dump"
        old.run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={old.url}")
        young.run("pg_restore", "--exit-on-error", f"--dbname={young.url}", str(dump))
        assert "transaction ids" in begin_epoch(young)

        with service.running(young.url, tmp_path / "young") as running:
            watching = Follower(running.base_url)
            with callers.grpcio(running.base_url) as call:
                # The ids of the dump come, one after the other.
                for number in range(updates, 2 * updates):
                    spend_transactions(young, last_transaction(old) - updates + number - 20)
                    key = {"payment_idempotency_key": f"evt_{number}"} if number % 2 else {}
                    etag = {"etag": etags[number % 4]} if number < updates + 4 else {}
                    assert not call(update(number, **key, **etag)).replayed
                assert call(update(1, payment_idempotency_key="evt_1")).replayed
                etag = call(GetOrderRequest(order_id=order_ids[0])).order.etag
            assert etag != etags[0]
            eventually(lambda: len(watching.transactions) >= updates)
            assert running.stop() == 0
            watching.close()
        after = ledger(young)

    new = [f"txn_{number}" for number in range(updates, 2 * updates)]
    assert after[:updates] == before
    assert [name for _, name in after[updates:]] == new
    assert after[updates][0] > before[-1][0]
    assert watching.transactions == new
    trial.report(1, 0, f"{updates} events restored, {updates} new ones sent")


@pytest.mark.skipif(bool(postgres_versions.missing()), reason=str(postgres_versions.missing()))
async def test_a_switch_from_15_to_18_by_logical_replication(tmp_path: Path, trial: Trial) -> None:
    with (
        cluster.running(major=15, wal_level="logical", **FAST) as old,
        cluster.running(is_migrated=False, **FAST) as new,
    ):
        spend_transactions(old, 3_000)
        updates = Updates(old.url)
        async with AsyncExitStack() as stack:
            with service.running(old.url, tmp_path / "old") as running:
                port = str(running.port)
                load = await stack.enter_async_context(
                    calling(running.base_url, updates, 4, kinds=["grpcio"])
                )
                await load.answered(OK, since=time.monotonic())
                await asyncio.to_thread(replicate, old, new)
                await load.answered(OK, since=time.monotonic())
                assert await asyncio.to_thread(running.stop) == 0
            stopped = time.monotonic()
            before = await asyncio.to_thread(switch_over, old, new)
            with service.running(new.url, tmp_path / "new", port=port) as running:
                watching = await asyncio.to_thread(Follower, running.base_url)
                began = time.monotonic()
                # Up to the ids of the events that were replicated, and through them.
                for each in (-50, 50):
                    last = last_transaction(old) + each
                    await asyncio.to_thread(spend_transactions, new, last)
                    await load.answered(OK, since=time.monotonic())
                await stack.aclose()  # callers go on until they know what became of an update
                assert await asyncio.to_thread(running.stop) == 0
                await asyncio.to_thread(watching.close)
        lost = checker.losses(new.url, load.log)
        after = ledger(new)

    assert lost == []
    assert after[: len(before)] == before
    assert all(each > before[-1][0] for each, _ in after[len(before) :])
    sent, written = watching.transactions, [name for _, name in after[len(before) :]]
    assert sent
    assert sorted(sent) == sorted(written[-len(sent) :])
    note = f"{len(load.log)} calls, {len(load.failed)} failed; {began - stopped:.1f} s without"
    trial.report(1, len(lost), note)


def replicate(old: Cluster, new: Cluster) -> None:
    """Have ``new`` replicate all tables of ``old``, and wait until it has their rows."""
    let_in(new)
    schema = new.place.home / "schema.sql"
    new.run("pg_dump", "--schema-only", f"--file={schema}", f"--dbname={old.url}")
    new.run("psql", "-q", "-v", "ON_ERROR_STOP=1", f"--file={schema}", f"--dbname={new.url}")
    old.execute("CREATE PUBLICATION listings FOR ALL TABLES")
    source = f"host={old.place.socket_directory()} port=5432 user=listings dbname=shop"
    new.execute(f"CREATE SUBSCRIPTION listings CONNECTION '{source}' PUBLICATION listings")
    ready = "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel"
    eventually(lambda: new.execute(ready), 60)


def switch_over(old: Cluster, new: Cluster) -> list[tuple[int, str | None]]:
    """End the replication once ``new`` has all, open an epoch, and return the ledger."""
    end = old.execute("SELECT pg_current_wal_lsn()::text")
    has_all = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
    eventually(lambda: old.execute(has_all, end))
    early = listings("new-history", "--yes", url=new.url)
    assert early.returncode == 1
    assert "replicated by the subscription listings" in early.stderr
    new.execute("DROP SUBSCRIPTION listings")
    assert ledger(new) == ledger(old)
    said = begin_epoch(new)
    for table in ("order_payment_events", "refused_payment_events", "orders"):
        assert f"sequence public.{table}_id_seq: 0 -> " in said
    return ledger(new)
