"""Whether this process should be sent calls, as ``grpc.health.v1`` and for Kubernetes.

All of it is answered from memory, at once, in whatever state the database is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from persistence.health_probe import HealthProbe
from server.gen.grpc_health.v1.health_connect import Health
from server.gen.grpc_health.v1.health_pb import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from server.gen.listings.v1.orders_connect import OrderService

Status = HealthCheckResponse.ServingStatus

# The empty name is the server as a whole. Its services have one state: that of the database.
_SERVICES = ("", OrderService.desc().type_name)

# Characters of a name that are told: what gRPC's clients take as trailers is some KiB.
_LONGEST_NAME = 200


class Readiness:
    """Why the process is not ready for calls, if it is not, and word of each change."""

    def __init__(self, database_url: str) -> None:
        self.database = HealthProbe(database_url, self.tell)
        """Follows the database while it is entered as an async context manager."""
        self.faults: list[Callable[[], str | None]] = [lambda: self.database.fault]
        """Each tells what is wrong with something that calls need, if anything is."""
        self.stopping = asyncio.Event()
        """Set when the process stops."""
        self._changed = asyncio.Event()

    @property
    def fault(self) -> str | None:
        """What is wrong, for people; None when the process is ready."""
        if self.stopping.is_set():
            return "the server is shutting down"
        return next((fault for find in self.faults if (fault := find())), None)

    def stop(self) -> None:
        """Be not ready from now on, because the process stops."""
        self.stopping.set()
        self.tell()

    async def changed(self) -> None:
        """Wait until something may have changed since this was called."""
        await self._changed.wait()

    def tell(self) -> None:
        """Take note that ``fault`` may have changed."""
        self._changed.set()  # wakes all who wait
        self._changed = asyncio.Event()


class HealthHandler(Health):
    """Implements ``grpc.health.v1.Health``.

    https://github.com/grpc/grpc/blob/master/doc/health-checking.md says what each rpc does.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def check(
        self, request: HealthCheckRequest, _ctx: RequestContext[Any, Any]
    ) -> HealthCheckResponse:
        """Return the status of one service, or of the server."""
        if request.service not in _SERVICES:
            name = request.service[:_LONGEST_NAME]
            raise ConnectError(Code.NOT_FOUND, f"there is no service {name}")
        return self._response(request.service)

    async def list(
        self, _request: HealthListRequest, _ctx: RequestContext[Any, Any]
    ) -> HealthListResponse:
        """Return the status of the server and of each service."""
        return HealthListResponse(statuses={name: self._response(name) for name in _SERVICES})

    async def watch(
        self, request: HealthCheckRequest, _ctx: RequestContext[Any, Any]
    ) -> AsyncIterator[HealthCheckResponse]:
        """Send the status of one service, or of the server, now and whenever it changes.

        Ends when the process stops, after it has said so.
        """
        sent = None
        while True:
            # Read together, before anything is awaited: no change comes between the two.
            response = self._response(request.service)
            stopping = self._readiness.stopping.is_set()
            if response != sent:
                sent = response
                yield response
            elif stopping:
                return
            else:
                await self._readiness.changed()

    def _response(self, service: str) -> HealthCheckResponse:
        if service not in _SERVICES:
            return HealthCheckResponse(status=Status.SERVICE_UNKNOWN)
        ready = self._readiness.fault is None
        return HealthCheckResponse(status=Status.SERVING if ready else Status.NOT_SERVING)


class HealthPages:
    """What Kubernetes asks over HTTP."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def live(self, _request: Request) -> PlainTextResponse:
        """Say that the process answers, whatever the state of its database."""
        return PlainTextResponse("ok\n")

    async def ready(self, _request: Request) -> PlainTextResponse:
        """Say that the process should be sent calls, or why not."""
        fault = self._readiness.fault
        return PlainTextResponse(f"{fault or 'ok'}\n", 503 if fault else 200)
