"""Fixtures for all tests. ``support`` implements them."""

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import databases, pooler, postgres, service
from tests.support.callers import CALLERS, READERS, Call
from tests.support.held import until_the_end
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.tokens import Issuer

# The duration of an example depends on other load; the first one also builds tables.
settings.register_profile("listings", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("listings")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --pgbouncer, which runs the tests behind a pooler."""
    parser.addoption(
        "--pgbouncer", action="store_true", help="test through PgBouncer in transaction mode"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Behind a pooler, keep one protocol of each test: all make the same statements."""
    if config.option.pgbouncer:
        others = {*CALLERS, *READERS} - {"grpcio"}
        config.hook.pytest_deselected(items=[each for each in items if others & _texts(each)])
        items[:] = [each for each in items if not others & _texts(each)]


@pytest.hookimpl(tryfirst=True)  # before the workers of a parallel run start
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start what the processes of a run share."""
    if not _is_worker(session.config) and not session.config.option.collectonly:
        until_the_end.enter_context(postgres.shared())
        if session.config.option.pgbouncer:
            until_the_end.enter_context(pooler.start(postgres.server()))


@pytest.hookimpl(trylast=True)  # after the teardown of the last test
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Release what a worker has kept, before it reports to the first process that it is done."""
    if _is_worker(session.config):
        until_the_end.close()


def pytest_unconfigure() -> None:
    """Release what this process has kept. The workers of a parallel run have ended."""
    until_the_end.close()


def pytest_xdist_auto_num_workers() -> int:
    """Two workers a processor: tests spend half of their time waiting."""
    return 2 * len(os.sched_getaffinity(0))


def _texts(item: pytest.Item) -> set[str]:
    """Return the parameters of a test that are texts."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {each for each in parameters if isinstance(each, str)}


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


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


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on a database of its own. It must exit with 0, and never log a traceback."""
    log = tmp_path_factory.mktemp("service") / "log"
    with service.on_own_database(log) as running:
        yield running
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def orders(running: Service) -> Orders:
    """The orders of ``running``. Tests share the table, and add rows of their own."""
    return Orders(running.database_url)


@pytest.fixture(scope="session", params=CALLERS)
def call(request: pytest.FixtureRequest, running: Service) -> Iterator[Call]:
    """A call over each protocol in turn."""
    with CALLERS[request.param](running.base_url) as call:
        yield call


_numbers = itertools.count(1_000_000, 1_000)


@pytest.fixture(scope="session", params=READERS)
def read(request: pytest.FixtureRequest, running: Service) -> Iterator[Call]:
    """A call over each protocol in turn, including Connect's GET."""
    with READERS[request.param](running.base_url) as call:
        yield call


@pytest.fixture
def number() -> int:
    """A storefront, a buyer, or a part of a name, that no other test uses."""
    return next(_numbers)


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """The issuer whose tokens ``guarded`` accepts."""
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Service]:
    """A service where everything needs a token. It must never log one, nor a traceback."""
    log = tmp_path_factory.mktemp("guarded") / "log"
    with service.on_own_database(log, public="none", **issuer.settings()) as guarded:
        yield guarded
    written = log.read_text()
    assert "Traceback" not in written
    assert "eyJ" not in written  # the first characters of every JWT
