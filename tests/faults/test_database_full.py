"""The database's disk is full: updates fail with that reason until there is space again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from server.gen.listings.v1.orders_pb import GetOrderRequest
from tests.support import checker, cluster, service
from tests.support.cluster import Cluster
from tests.support.load import CALLERS, OK, Attempt, Call, Log, Updates, attempt
from tests.support.trial import Trial

pytestmark = pytest.mark.anyio

MOST_UPDATES = 2_000  # that can fit into the existing pages


class Disk(NamedTuple):
    """A small disk, which can be filled."""

    path: Path

    def fill(self) -> None:
        with (self.path / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.path / "ballast").unlink()


@contextmanager
def small_disk(postgres: Cluster) -> Iterator[Disk]:
    """Mount a disk of a few megabytes for PostgreSQL, and move its tables there."""
    path, account = postgres.place.home / "small", postgres.place.account
    postgres.place.account.run("mkdir", path)
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size=8m,mode=0700,uid={account.uid},gid={account.gid}"
    mounted = subprocess.run(
        [*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        postgres.place.account.run("mkdir", path / "tables")
        postgres.execute(f"CREATE TABLESPACE small LOCATION '{path}/tables'")
        for table in ("orders", "order_payment_events"):
            postgres.execute(f"ALTER TABLE {table} SET TABLESPACE small")
        yield Disk(path)
    finally:
        postgres.kill()
        subprocess.run([*as_root, "umount", path], check=True)


class Writer:
    """Sends updates until one fails for lack of space."""

    def __init__(self, updates: Updates) -> None:
        self.log = Log()
        self.updates = updates

    async def write(self, call: Call) -> Attempt:
        self.log.append(await attempt("", call, self.updates.next(), 10))
        return self.log[-1]

    async def write_until_full(self, call: Call) -> Attempt:
        for _ in range(MOST_UPDATES):
            if not (made := await self.write(call)).is_fine:
                return made
        raise AssertionError("there is room for everything")


async def test_a_full_disk(tmp_path: Path, trial: Trial) -> None:
    times = trial.times(1, 5)
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(cluster.running())
        disk = stack.enter_context(small_disk(postgres))
        running = stack.enter_context(service.running(postgres.url, tmp_path / "log"))
        writer = Writer(Updates(postgres.url))
        calls = [
            await stack.enter_async_context(each(running.base_url)) for each in CALLERS.values()
        ]
        for _ in range(times):
            disk.fill()
            for call in calls:
                refused = await writer.write_until_full(call)
                assert (refused.code, refused.reason) == ("unavailable", "DATABASE_FULL")
                assert "disk is full" in refused.message
                assert refused.may_be_retried
                read = GetOrderRequest(order_id=writer.updates.order_ids[0])
                assert (await attempt("", call, read, 10)).code == OK
            disk.free()
            for call in calls:
                assert (await writer.write(call)).is_fine
        lost = checker.losses(postgres.url, writer.log)
    trial.report(times, len(lost), f"{len(writer.log)} updates")
    assert lost == []
