"""Fixtures for calls that no generated client makes."""

from collections.abc import Iterator

import grpc
import httpx
import pytest

from tests.support.callers import json_client
from tests.support.service import Service


@pytest.fixture
def channel(running: Service) -> Iterator[grpc.Channel]:
    """A gRPC channel to ``running``."""
    with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
        yield channel


@pytest.fixture(params=[1, 2], ids=["http1", "http2"])
def http(request: pytest.FixtureRequest, running: Service) -> Iterator[httpx.Client]:
    """A client of ``running`` over each version of HTTP, for any request."""
    with json_client(running.base_url, request.param) as client:
        yield client
