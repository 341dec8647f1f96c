"""Fixtures for tests of what is below the service."""

from collections.abc import AsyncIterator

import pytest

from persistence.orders import OrderRepository
from tests.support.history import opened
from tests.support.state_migrations import undone


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[OrderRepository]:
    """The orders of ``database_url``, by a pool of one connection."""
    async with opened(database_url) as database:
        yield OrderRepository(database)


@pytest.fixture
def live_url(database_url: str) -> str:
    """The URL of a database with the schema of the version before."""
    return undone(database_url)
