"""Health checks: ``grpc.health.v1``, and the probes of Kubernetes over HTTP.

All of them are answered from memory, without a query to the database.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from persistence.database import Database
from persistence.health_probe import HealthProbe
from server.gen.grpc_health.v1.health_connect import Health
from server.gen.grpc_health.v1.health_pb import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from server.gen.listings.v1.orders_connect import OrderService
from server.rpc.interceptors.base import Context

Status = HealthCheckResponse.ServingStatus

# The empty name is the server as a whole. All of them have one status.
_SERVICES: Final = ("", OrderService.desc().type_name)

# Characters of a name in an error: gRPC clients accept a few KiB of trailers.
_MAX_NAME: Final = 200


class Readiness:
    """Whether the process is ready for calls, why not, and when that may have changed."""

    def __init__(self, database_url: str, pool: Database) -> None:
        """``pool`` is that of calls, at that URL."""
        self.database = HealthProbe(database_url, pool, self.notify)
        """Probes the database while it is entered as an async context manager."""
        self.faults: list[Callable[[], str | None]] = [lambda: self.database.fault]
        """Each returns what is wrong with one thing that calls need, or None."""
        self.stopping = asyncio.Event()
        """Set when the process stops."""
        self._changed = asyncio.Event()

    @property
    def fault(self) -> str | None:
        """What is wrong, as text for people; None when the process is ready."""
        if self.stopping.is_set():
            return "the server is shutting down"
        return next((fault for find in self.faults if (fault := find())), None)

    def stop(self) -> None:
        """Be unready from now on, because the process stops."""
        self.stopping.set()
        self.notify()

    async def changed(self) -> None:
        """Wait until ``fault`` may have changed since this was called."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake those who wait in ``changed``: ``fault`` may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()


class HealthHandler(Health):
    """Implements ``grpc.health.v1.Health``.

    https://github.com/grpc/grpc/blob/master/doc/health-checking.md says what each rpc does.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def check(self, request: HealthCheckRequest, _ctx: Context) -> HealthCheckResponse:
        """Return the status of one service, or of the server.

        Raises ConnectError, NOT_FOUND, for an unknown service.
        """
        if request.service not in _SERVICES:
            name = request.service[:_MAX_NAME]
            raise ConnectError(Code.NOT_FOUND, f"there is no service {name}")
        return self._response(request.service)

    async def list(self, _request: HealthListRequest, _ctx: Context) -> HealthListResponse:
        """Return the status of the server and of each service."""
        return HealthListResponse(statuses={name: self._response(name) for name in _SERVICES})

    async def watch(
        self, request: HealthCheckRequest, _ctx: Context
    ) -> AsyncIterator[HealthCheckResponse]:
        """Send the status of one service, or of the server, now and whenever it changes.

        Ends when the process stops, after a last message with that status.
        """
        sent = None
        while True:
            # Both are read before the next await, so that no change comes between them.
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
    """The liveness and readiness probes of Kubernetes.

    https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def live(self, _request: Request) -> PlainTextResponse:
        """Return 200 whenever the process can answer, also without a database."""
        return PlainTextResponse("ok\n")

    async def ready(self, _request: Request) -> PlainTextResponse:
        """Return 200 when the process is ready for calls; 503 and the reason when it is not."""
        fault = self._readiness.fault
        return PlainTextResponse(f"{fault or 'ok'}\n", 503 if fault else 200)
