"""Fixtures for tests of what is below the service."""

from collections.abc import AsyncIterator

import pytest

from persistence.orders import OrderRepository
from tests.support.history import opened


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[OrderRepository]:
    """The orders of ``database_url``, by a pool of one connection."""
    async with opened(database_url) as database:
        yield OrderRepository(database)
