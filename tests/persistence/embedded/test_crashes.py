"""The embedded PostgreSQL after SIGKILL of its server or of the processes that use it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from persistence.embedded import location, running
from persistence.errors import EmbeddedPostgresError
from tests.support.embedded import ROOT, User, alive, ask, postmaster
from tests.support.waiting import eventually


@pytest.mark.parametrize("victim", ["user", "initdb"])
def test_an_interrupted_initdb_is_repeated_at_the_next_start(
    data_dir: Path, user: Callable[[], User], victim: str
) -> None:
    first = user()
    eventually((data_dir / "pgdata.new" / "base" / "1").exists)
    if victim == "user":
        first.kill()
    else:
        (initdb,) = psutil.Process(first.process.pid).children()
        initdb.kill()
        first.process.communicate("leave\n", timeout=60)
        assert first.process.returncode != 0
    assert not (data_dir / "pgdata").exists()
    with running(data_dir) as url:
        assert ask(url, "SELECT 1") == 1
    assert not (data_dir / "pgdata.new").exists()


def test_a_crash_before_the_database_is_created(used_dir: Path) -> None:
    with running(used_dir) as url:
        ask(url.replace("/listings?", "/postgres?"), "DROP DATABASE listings")
    with running(used_dir) as url:
        assert ask(url, "SELECT current_database()") == "listings"


def test_a_user_killed_during_the_start(used_dir: Path, user: Callable[[], User]) -> None:
    first = user()
    eventually((used_dir / "pgdata" / "postmaster.pid").exists)
    first.kill()
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1


def test_a_user_killed_during_the_stop(used_dir: Path, user: Callable[[], User]) -> None:
    first = user()
    url = first.line()
    server = postmaster(used_dir)
    assert first.process.stdin is not None
    first.process.stdin.write("leave\n")
    first.process.stdin.flush()
    stopping = f"[{server}] LOG:  received fast shutdown request"
    eventually(lambda: stopping in (used_dir / "postgres.log").read_text())
    first.kill()
    with running(used_dir) as again:
        assert again == url
        assert ask(url, "SELECT 1") == 1
        assert postmaster(used_dir) != server


def test_a_killed_server_recovers_what_was_committed(used_dir: Path) -> None:
    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(postmaster(used_dir), signal.SIGKILL)
    with running(used_dir) as url:
        assert ask(url, "SELECT answer FROM kept") == 42


def test_a_start_waits_for_remaining_processes_of_a_killed_server(
    used_dir: Path, user: Callable[[], User]
) -> None:
    with running(used_dir) as url, psycopg.connect(url, autocommit=True) as connection:
        backend = connection.info.backend_pid
        log = used_dir / "postgres.log"
        refused = log.read_text().count("FATAL")
        os.kill(backend, signal.SIGSTOP)
        os.kill(postmaster(used_dir), signal.SIGKILL)
        second = user()
        eventually(lambda: log.read_text().count("FATAL") > refused)
        assert alive(backend)
        os.kill(backend, signal.SIGCONT)
        assert ask(second.line(), "SELECT 1") == 1
        second.leave()


def write_pid_file(data_dir: Path, content: str) -> Path:
    """Write a postmaster.pid, owned by the account that runs the server."""
    path = data_dir / "pgdata" / "postmaster.pid"
    path.write_text(content)
    status = data_dir.stat()
    os.chown(path, status.st_uid, status.st_gid)
    return path


@pytest.fixture
def bystander(used_dir: Path) -> Iterator[int]:
    """An unrelated process whose PID is in postmaster.pid. It must not be signalled."""
    with running(used_dir):
        lines = (used_dir / "pgdata" / "postmaster.pid").read_text().split("\n")
    # Of the same account: PostgreSQL itself ignores a PID of another account's process.
    status = used_dir.stat()
    user, group = (status.st_uid, status.st_gid) if ROOT else (None, None)
    with subprocess.Popen(["sleep", "600"], user=user, group=group) as process:
        write_pid_file(used_dir, "\n".join([str(process.pid), *lines[1:]]))
        yield process.pid
        assert process.poll() is None, "the bystander was signalled"
        process.kill()


def test_a_postmaster_pid_that_names_another_process(used_dir: Path, bystander: int) -> None:
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1
        assert postmaster(used_dir) != bystander


def test_only_a_process_known_to_be_the_server_is_signalled(used_dir: Path, bystander: int) -> None:
    misleading = (used_dir / "pgdata" / "postmaster.pid").read_text()
    with running(used_dir):
        server = postmaster(used_dir)
        write_pid_file(used_dir, misleading)
    assert alive(server)
    os.kill(server, signal.SIGTERM)
    eventually(lambda: not alive(server))


@pytest.mark.parametrize("content", ["", "nonsense", "-1\n", "99999999999999999999\n", "4194305\n"])
def test_a_postmaster_pid_without_a_live_process(used_dir: Path, content: str) -> None:
    write_pid_file(used_dir, content)
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1


def test_no_server_is_started_while_another_process_listens_on_the_socket(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.embedded.server._READY_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind(str(used_dir / "run" / location.SOCKET))
        hidden.listen()
        with pytest.raises(EmbeddedPostgresError, match="a server that is not ours answers in"):
            running(used_dir).__enter__()
    assert not (used_dir / "pgdata" / "postmaster.pid").exists()


def test_a_server_started_by_hand_with_an_open_socket_is_neither_used_nor_stopped(
    base: Path, used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = location.prepare(used_dir)
    elsewhere = base / "open"
    elsewhere.mkdir(mode=0o755)
    os.chown(elsewhere, place.account.uid, place.account.gid)
    arguments = ("--pgdata=pgdata", "--log=by-hand.log", "--wait")
    options = f"--options=-c listen_addresses= -k {elsewhere}"
    assert place.run("pg_ctl", "start", *arguments, options).returncode == 0
    server = postmaster(used_dir)
    monkeypatch.setattr("persistence.embedded.server._LEFTOVER_SECONDS", 0.2)
    with pytest.raises(EmbeddedPostgresError, match=f"PID {server}"):
        running(used_dir).__enter__()
    assert alive(server)
    assert place.run("pg_ctl", "stop", "--pgdata=pgdata", "--wait").returncode == 0


def test_a_deleted_directory_breaks_neither_the_stop_nor_the_next_start(used_dir: Path) -> None:
    with running(used_dir):
        server = postmaster(used_dir)
        shutil.rmtree(used_dir)
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1
        assert postmaster(used_dir) != server
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGQUIT)
    eventually(lambda: not alive(server))
