"""Fixtures that every test may use. See ``support`` for what stands behind them."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support import databases, pooler

# grpcio reads it once. Its handlers of fork() can crash a process that a test starts under load.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

_stack = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole suite run behind a pooler."""
    parser.addoption(
        "--pgbouncer", action="store_true", help="test through PgBouncer in transaction mode"
    )


@pytest.hookimpl(tryfirst=True)  # before the workers of a parallel run start
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start PostgreSQL once for the whole run."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        session.config.stash[_stack] = stack = databases.start()
        if session.config.option.pgbouncer:
            stack.enter_context(pooler.start(databases.server()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started."""
    if stack := config.stash.get(_stack, None):
        stack.close()


@pytest.fixture
def database_url() -> Iterator[str]:
    """The URL of a fresh, migrated, empty database."""
    with databases.clone() as url:
        yield url


@pytest.fixture
def empty_database_url() -> Iterator[str]:
    """The URL of a fresh database without any table."""
    with databases.empty() as url:
        yield url


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on the event loop that the service runs on."""
    return "asyncio"
