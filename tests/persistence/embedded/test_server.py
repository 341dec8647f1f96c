"""Starting, sharing and stopping the embedded PostgreSQL, with real servers and processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from persistence.dsn import asyncpg_dsn
from persistence.embedded import location, running
from persistence.roles import APPLICATION, OWNER
from tests.support.embedded import ENVIRONMENT, User, alive, ask, postmaster, servers_below
from tests.support.waiting import eventually

# ---- start, use, stop


def test_the_first_start_makes_a_private_server_with_a_socket_only(
    data_dir: Path,
) -> None:
    with running(data_dir / "deep" / "down") as url:
        home = data_dir / "deep" / "down"
        server = psutil.Process(postmaster(home))
        assert url.startswith("postgresql://listings@/listings?host=%2F")
        assert ask(url, "SELECT current_database() || ' ' || current_user") == "listings listings"
        assert ask(url, "SHOW listen_addresses") == ""
        assert ask(url, "SHOW server_encoding") == "UTF8"
        assert ask(url, "SHOW fsync") == "on"
        assert ask(url, "SHOW full_page_writes") == "on"
        assert ask(url, "SHOW synchronous_commit") == "on"
        assert ask(url, "SHOW data_checksums") == "on"
        assert ask(url, "SELECT upper('é')") == "É"
        assert not server.net_connections(kind="inet")
        assert server.uids().real != 0
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "run" / location.SOCKET).stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "postgres.log").stat().st_mode) == 0o600
    eventually(lambda: not alive(server.pid))


def test_the_application_role_can_log_in_to_a_cluster_made_before_the_role(
    used_dir: Path,
) -> None:
    with running(used_dir) as url:
        ask(url, f"DROP ROLE {APPLICATION}")
    with running(used_dir, APPLICATION) as url:
        assert ask(url, "SELECT current_user") == APPLICATION
        assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False


@pytest.mark.parametrize("role", [OWNER, APPLICATION])
def test_its_log_does_not_quote_values(used_dir: Path, role: str) -> None:
    async def test(url: str) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"INSERT INTO keys VALUES ('{role}_secret')")
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(f"INSERT INTO keys SELECT '{role}_' || 'secret'")
        await connection.close()

    with running(used_dir) as owner, running(used_dir, role) as url:
        ask(owner, "DROP TABLE IF EXISTS keys; CREATE TABLE keys (key text UNIQUE)")
        ask(owner, f"GRANT SELECT, INSERT ON keys TO {APPLICATION}")
        asyncio.run(test(url))
        log = (used_dir / "postgres.log").read_text()
    assert "keys_key_key" in log
    assert f"{role}_secret" not in log


def test_asyncpg_connects_by_the_url(used_dir: Path) -> None:
    async def version(url: str) -> object:
        connection = await asyncpg.connect(dsn=url)
        try:
            return await connection.fetchval("SHOW server_version_num")
        finally:
            await connection.close()

    with running(used_dir) as url:
        assert str(asyncio.run(version(url))).startswith("18")


def test_data_survives_a_restart(used_dir: Path) -> None:
    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS answer")
    with running(used_dir) as url:
        assert ask(url, "SELECT answer FROM kept") == 42


def test_libpq_environment_variables_are_ignored(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "5999")
    monkeypatch.setenv("PGHOST", "db.example.com")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGUSER", "somebody")
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1


def test_the_programs_of_the_server_get_few_variables(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """initdb, pg_ctl, postgres and psql: what else they have they set themselves."""
    monkeypatch.setenv("PGOPTIONS", "-c search_path=nothing")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    seen = location.prepare(used_dir).account.run("env").stdout
    assert {line.partition("=")[0] for line in seen.splitlines()} == {
        "LC_ALL",
        "PATH",
        "PGCONNECT_TIMEOUT",
        "TZ",
    }


@pytest.mark.parametrize(
    "name",
    ["with space", "Größe-数据", "a'b\"c", "$HOME`id`\\x", "a,b", "50%+&host=x"],
)
@pytest.mark.usefixtures("temporary")
def test_a_path_may_have_special_characters(base: Path, used_dir: Path, name: str) -> None:
    used_dir.rename(base / name)
    with running(base / name) as url:
        assert ask(url, "SHOW data_directory") == str(base / name / "pgdata")
    (base / name).rename(used_dir)


def test_a_symbolic_link_and_its_target_are_the_same_place(base: Path, used_dir: Path) -> None:
    (base / "link").symlink_to(used_dir)
    with running(used_dir) as first, running(base / "link") as second:
        assert first == second


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_of_the_caller_stops_the_server(
    used_dir: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), running(used_dir):
        server = postmaster(used_dir)
        raise error
    eventually(lambda: not alive(server))


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(
    used_dir: Path, user: Callable[[], User]
) -> None:
    other = user()
    url = other.line()
    server = postmaster(used_dir)
    os.killpg(other.process.pid, signal.SIGINT)
    assert other.line() == "interrupted"
    assert ask(url, "SELECT 1") == 1
    assert os.getsid(server) != os.getsid(other.process.pid)
    other.leave()
    eventually(lambda: not alive(server))


def test_an_interrupted_first_start_leaves_no_server(
    data_dir: Path, user: Callable[[], User]
) -> None:
    other = user()
    eventually((data_dir / "pgdata.new" / "base" / "1").exists)
    os.killpg(other.process.pid, signal.SIGINT)
    other.process.communicate("leave\n", timeout=60)
    assert (data_dir / "pgdata.new" / "PG_VERSION").exists(), "initdb was interrupted as well"
    eventually(lambda: not list(servers_below(data_dir)))


@pytest.mark.parametrize("file", ["pgdata/postmaster.pid", f"run/{location.SOCKET}"])
def test_an_interrupted_start_leaves_no_server(
    used_dir: Path, user: Callable[[], User], file: str
) -> None:
    other = user()
    eventually((used_dir / file).exists)
    os.killpg(other.process.pid, signal.SIGINT)
    other.process.communicate("leave\n", timeout=60)
    eventually(lambda: not list(servers_below(used_dir)))


# ---- shared by several processes


def test_the_last_user_stops_the_server(used_dir: Path, user: Callable[[], User]) -> None:
    first, second = user(), user()
    url = first.line()
    assert second.line() == url
    server = postmaster(used_dir)
    first.leave()
    assert alive(server)
    assert ask(url, "SELECT 1") == 1
    second.leave()
    eventually(lambda: not alive(server))


def test_running_may_be_entered_twice_in_one_process(used_dir: Path) -> None:
    with running(used_dir) as url:
        server = postmaster(used_dir)
        with running(used_dir) as again:
            assert again == url
        assert alive(server)
        assert ask(url, "SELECT 1") == 1
    eventually(lambda: not alive(server))


def test_a_killed_user_no_longer_counts(used_dir: Path, user: Callable[[], User]) -> None:
    first, second = user(), user()
    first.line(), second.line()
    server = postmaster(used_dir)
    first.kill()
    assert alive(server)
    second.leave()
    eventually(lambda: not alive(server))


def test_the_next_user_takes_over_a_server_whose_users_were_killed(
    used_dir: Path, user: Callable[[], User]
) -> None:
    only = user()
    only.line()
    server = postmaster(used_dir)
    only.kill()
    assert alive(server)
    with running(used_dir) as url:
        assert postmaster(used_dir) == server
        assert ask(url, "SELECT 1") == 1
    eventually(lambda: not alive(server))


def test_processes_that_start_and_stop_concurrently(used_dir: Path) -> None:
    program = """
import sys
from pathlib import Path
import psycopg
from persistence.embedded import running

for turn in range(5):
    with running(Path(sys.argv[1])) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO turns VALUES (%s, %s)", (sys.argv[2], turn))
"""
    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS turns; CREATE TABLE turns (process int, turn int)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(used_dir), str(number)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    eventually(lambda: not list(servers_below(used_dir)))
    with running(used_dir) as url:
        assert ask(url, "SELECT count(DISTINCT (process, turn)) FROM turns") == 20


# ---- the locks


def test_a_start_waits_for_the_lock(used_dir: Path, user: Callable[[], User]) -> None:
    lock = location.prepare(used_dir).open_lock(location.LIFECYCLE_LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = user()
        assert waiting.process.stdout is not None
        ready, _, _ = select.select([waiting.process.stdout], [], [], 0.7)
        assert not ready
        assert not (used_dir / "pgdata" / "postmaster.pid").exists()
    finally:
        os.close(lock)
    assert ask(waiting.line(), "SELECT 1") == 1
    waiting.leave()


@contextmanager
def child_with_the_locks() -> Iterator[int]:
    """A forked child, which inherits every descriptor that is open."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_forked_child_does_not_keep_the_server_running(used_dir: Path) -> None:
    with running(used_dir):
        server = postmaster(used_dir)
        child = child_with_the_locks()
        child.__enter__()
    eventually(lambda: not alive(server))
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1
    child.__exit__(None, None, None)


def test_variables_of_libpq_do_not_replace_what_the_url_gives(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(url: str) -> object:
        connection = await asyncpg.connect(asyncpg_dsn(url))
        try:
            return await connection.fetchval("SHOW search_path")
        finally:
            await connection.close()

    variables = {
        "PGOPTIONS": "-csearch_path=nix",
        "PGTARGETSESSIONATTRS": "standby",
        "PGPORT": "1",
    }
    with running(used_dir) as url:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert "nix" not in str(ask(url, "SHOW search_path"))
        assert "nix" not in str(asyncio.run(asked(url)))
