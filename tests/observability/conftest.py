"""Fixtures for tests of what the service tells of itself."""

from collections.abc import Iterator

import pytest

from tests.support.collector import ENDPOINT, Collector, collecting


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """The collector that each service of a test exports to."""
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.endpoint)
        yield collector
