"""The database moves to another server: by a dump, and by logical replication to a later version.

Its transaction ids are then those of another cluster, and its sequences may be behind. These follow
the steps of docs/operations.md.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest

from persistence.roles import APPLICATION
from server.gen.listings.v1.orders_pb import GetOrderRequest, UpdateOrderPaymentRequest
from tests.support import checker, cluster, postgres_versions, service
from tests.support.callers import Failure
from tests.support.cluster import Cluster
from tests.support.command_line import listings
from tests.support.follower import Follower, following
from tests.support.load import OK, Call, Updates, callers, grpcio
from tests.support.orders import Orders
from tests.support.runbook import Runbook
from tests.support.trial import Trial
from tests.support.waiting import eventually, eventually_async

pytestmark = pytest.mark.anyio


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


def check_refusal(server: Cluster) -> None:
    """Check that `serve` does not start, and names the command that is to be run."""
    refused = listings("serve", url=server.url)
    assert refused.returncode == 1
    assert "Run `listings new-history`" in refused.stderr


def names(follower: Follower) -> list[str]:
    """Return the ``payment_transaction_id`` of each event that the client was sent."""
    return [each.after.payment_transaction_id for each in follower.events if each.after]


async def test_a_dump_is_restored_into_a_younger_cluster(tmp_path: Path, trial: Trial) -> None:
    number = 40
    with (
        cluster.running(fsync="off") as old,
        cluster.running(is_migrated=False, fsync="off") as young,
    ):
        spend_transactions(old, 3_000)
        orders = Orders(old.url)
        order_ids = [orders.add() for _ in range(4)]

        def update(each: int, *, key: bool = True, etag: str = "") -> UpdateOrderPaymentRequest:
            request = UpdateOrderPaymentRequest(
                order_id=order_ids[each % 4],
                payment_provider="stripe",
                payment_status="pending",
                payment_transaction_id=f"txn_{each}",
            )
            if key:
                request.payment_idempotency_key = f"evt_{each}"
            if etag:
                request.etag = etag
            return request

        async def etag(call: Call, order_id: int) -> str:
            return str((await call(GetOrderRequest(order_id=order_id), None)).order.etag)

        with service.running(old.url, tmp_path / "old") as running:
            async with (
                following(running.base_url, order_ids) as follower,
                grpcio(running.base_url) as call,
            ):
                for each in range(number):
                    await call(update(each), None)
                await follower.has(f"txn_{number - 1}")
                before_dump = follower.positions[-1]
                etags = [
                    (await call(GetOrderRequest(order_id=e), None)).order.etag for e in order_ids
                ]
        before = ledger(old)

        runbook = Runbook(old, young, tmp_path)
        await asyncio.to_thread(runbook.run, "pg_dump --format=custom")
        await asyncio.to_thread(runbook.run, "pg_restore")
        await asyncio.to_thread(check_refusal, young)
        said = await asyncio.to_thread(runbook.run, "restored the dump")
        assert f"Opened epoch 2: events up to {before[-1][0]} " in said
        young.execute(f"ALTER ROLE {APPLICATION} LOGIN")

        with service.running(young.url, tmp_path / "young") as running:
            async with (
                following(running.base_url, order_ids) as follower,
                following(running.base_url, order_ids, before_dump) as left_behind,
                grpcio(running.base_url) as call,
            ):
                assert left_behind.reasons == {"HISTORY_CHANGED"}
                for each in range(number, 2 * number):
                    # The ids of the events in the dump come, one after the other.
                    spend_transactions(young, last_transaction(old) - 60 + each - number)
                    read = etags[each % 4] if each < number + 4 else ""
                    made = await call(update(each, key=bool(each % 2), etag=read), None)
                    assert not made.replayed
                assert (await call(update(1), None)).replayed
                with pytest.raises(Failure) as refused:
                    await call(update(2 * number, etag=etags[0]), None)
                assert refused.value.code == "aborted"
                await follower.has(f"txn_{2 * number - 1}")
        after = ledger(young)

    new = [f"txn_{each}" for each in range(number, 2 * number)]
    assert names(follower) == new
    assert left_behind.events == []
    assert after[:number] == before
    assert [name for _, name in after[number:]] == new
    assert after[number][0] > before[-1][0]
    trial.report(1, 0, f"{number} events restored, {number} new ones sent")


@pytest.mark.skipif(bool(postgres_versions.missing()), reason=str(postgres_versions.missing()))
async def test_a_switch_from_15_to_18_by_logical_replication(tmp_path: Path, trial: Trial) -> None:
    with (
        cluster.running(major=15, wal_level="logical", fsync="off") as old,
        cluster.running(is_migrated=False, fsync="off") as new,
    ):
        spend_transactions(old, 3_000)
        updates, runbook = Updates(old.url), Runbook(old, new, tmp_path)
        async with AsyncExitStack() as stack:
            with service.running(old.url, tmp_path / "old") as running:
                base_url, port = running.base_url, str(running.port)
                follower = await stack.enter_async_context(following(base_url, updates.order_ids))
                load = await stack.enter_async_context(
                    callers(base_url, updates, 4, kinds=["grpcio"])
                )
                await load.answered(OK, since=time.monotonic())
                await asyncio.to_thread(replicate, runbook)
                await load.answered(OK, since=time.monotonic())
                assert await asyncio.to_thread(running.stop) == 0
            stopped = time.monotonic()
            before = await asyncio.to_thread(switch_over, runbook)
            with service.running(new.url, tmp_path / "new", port=port):
                async with following(base_url, updates.order_ids) as later:
                    began = time.monotonic()
                    # Up to the ids of the events that were replicated, and through them.
                    for each in (-50, 50):
                        last = last_transaction(old) + each
                        await asyncio.to_thread(spend_transactions, new, last)
                        await load.answered(OK, since=time.monotonic())
                    await eventually_async(lambda: follower.has_ended)
                    await stack.aclose()  # callers go on until they know what became of an update
                    acknowledged = {
                        each.request.payment_transaction_id
                        for each in load.log
                        if each.code == OK
                        and each.began > began
                        and isinstance(each.request, UpdateOrderPaymentRequest)
                    }
                    await eventually_async(lambda: acknowledged <= set(names(later)))
        lost = checker.losses(new.url, load.log)
        after = ledger(new)

    assert lost == []
    assert after[: len(before)] == before
    assert all(each > before[-1][0] for each, _ in after[len(before) :])
    assert len(acknowledged) > 10
    assert len(names(later)) == len(set(names(later)))
    assert set(names(later)) <= {name for _, name in after[len(before) :]}
    assert "HISTORY_CHANGED" in follower.reasons
    assert set(names(follower)) <= {name for _, name in before}
    note = f"{len(load.log)} calls, {len(load.failed)} failed; {began - stopped:.1f} s without"
    trial.report(1, len(lost), note)


def replicate(runbook: Runbook) -> None:
    """Have the new server replicate all tables, and wait until it has their rows."""
    runbook.run("CREATE SUBSCRIPTION")
    eventually(lambda: runbook.run("srsubstate") == "", 60)


def switch_over(runbook: Runbook) -> list[tuple[int, str | None]]:
    """End the replication once the new server has all, open an epoch, and return the ledger."""
    old, new = runbook.old, runbook.new
    eventually(lambda: runbook.run("confirmed_flush_lsn") == "t\n")
    early = listings("new-history", "--yes", url=new.url)
    assert early.returncode == 1
    assert "replicated by the subscription listings" in early.stderr
    check_refusal(new)
    said = runbook.run("DROP SUBSCRIPTION")
    assert ledger(new) == ledger(old)
    for table in ("order_payment_events", "refused_payment_events", "orders"):
        assert f"sequence public.{table}_id_seq: 0 -> " in said
    new.execute(f"ALTER ROLE {APPLICATION} LOGIN")
    return ledger(new)
