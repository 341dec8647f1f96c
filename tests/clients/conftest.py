"""The libraries that clients are written with, each in turn, and a browser."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support import chromium, client_programs
from tests.support.chromium import Chromium
from tests.support.real_clients import LIBRARIES, Client, Library, Options
from tests.support.service import Service


@pytest.fixture(scope="session", params=LIBRARIES, ids=str)
def library(request: pytest.FixtureRequest) -> Library:
    """A library, over one of its protocols; skipped where its language is not installed."""
    library: Library = request.param
    require(library.language)
    return library


@pytest.fixture(scope="session")
def client(library: Library, running: Service) -> Iterator[Client]:
    """A client of ``running``."""
    with library.connected(Options(running.base_url)) as client:
        yield client


@pytest.fixture(params=sorted({each.language for each in LIBRARIES}))
def libraries(request: pytest.FixtureRequest) -> list[Library]:
    """All that are written in one language."""
    require(request.param)
    return [each for each in LIBRARIES if each.language == request.param]


@pytest.fixture
def installed() -> list[Library]:
    """All whose language is installed."""
    languages = {each.language for each in LIBRARIES}
    found = {each for each in languages if is_installed(each)}
    return [each for each in LIBRARIES if each.language in found]


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    """Chromium, without any page."""
    if reason := chromium.missing():
        pytest.skip(reason)
    with chromium.launched() as browser:
        yield browser


def require(language: str) -> None:
    """Skip the test where the program of that language cannot be built."""
    try:
        client_programs.command(language)
    except client_programs.Missing as missing:
        pytest.skip(str(missing))


def is_installed(language: str) -> bool:
    with suppress(client_programs.Missing):
        client_programs.command(language)
        return True
    return False
