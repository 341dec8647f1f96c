"""Data directories for the embedded PostgreSQL, and processes that use them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from persistence.embedded import running
from tests.support.embedded import User, open_directory, servers_below
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def spare() -> Iterator[Path]:
    """A place that keeps an intact data directory for the next test: initdb takes seconds."""
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
    """Replaces the system's temporary directory."""
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
    """`data_dir`, already initialized. A test that damages it removes it."""
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
    """Starts processes that use `data_dir`; those still running after the test are stopped."""
    users: list[User] = []

    def start() -> User:
        users.append(User(data_dir))
        return users[-1]

    yield start
    for each in users:
        if each.process.returncode is None:
            each.process.communicate("leave\n", timeout=60)
