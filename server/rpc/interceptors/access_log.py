"""What becomes of each RPC: a line in the log, and counts for Prometheus.

An RPC that reaches its method is seen by an interceptor that stands before all others, save for
tracing. One that does not is told of by whoever has refused it.
"""

import logging
import random
import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any, Final

import structlog
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from prometheus_client import Counter, Histogram
from protobuf import DescService, Message
from starlette.datastructures import Headers
from starlette.types import Scope
from structlog.contextvars import bind_contextvars, get_contextvars

from persistence.errors import WatchEnded
from server.observability.masking import has_current_request, mask_tokens, set_current_request
from server.observability.metrics import Metrics
from server.rpc.interceptors.request_id import REQUEST_ID, is_request_id

_OK: Final = "ok"

# The codes that speak of the service rather than of its caller, and how they are logged.
_LEVELS: Final = {
    Code.UNKNOWN.value: logging.ERROR,
    Code.INTERNAL.value: logging.ERROR,
    Code.DATA_LOSS.value: logging.ERROR,
    Code.UNAVAILABLE.value: logging.WARNING,
    Code.DEADLINE_EXCEEDED.value: logging.WARNING,
    Code.ABORTED.value: logging.WARNING,
}

_LONGEST_PATH = 200  # characters of one that leads nowhere

_was_seen: ContextVar[bool] = ContextVar("was_seen", default=False)

_log = logging.getLogger(__name__)


class Calls:
    """Keeps the record. Stands before other interceptors, where it sees how each call ends."""

    def __init__(
        self, metrics: Metrics, sample: float, services: Collection[DescService], quiet: str
    ) -> None:
        """Keep the record of ``services``.

        ``sample`` is the share of lines that are written for RPCs that just went well. Those of
        services whose names begin with ``quiet``, which are for probes and tools, are for DEBUG.
        """
        self.in_flight = 0
        """How many RPCs have begun and not ended."""
        self._log = structlog.get_logger().bind()
        self._metrics = metrics
        self._sample = sample
        self._quiet = quiet
        self._methods = {
            f"{service.type_name}/{method.name}"
            for service in services
            for method in service.methods
        }
        self._series: dict[tuple[str, str, str, str], tuple[str, Counter, Histogram]] = {}

    async def on_start(self, _ctx: RequestContext[Any, Any]) -> float:
        """Take note that an RPC has begun."""
        _was_seen.set(True)
        self.in_flight += 1
        return time.perf_counter()

    async def on_end(
        self, began: float, ctx: RequestContext[Any, Any], error: Exception | None
    ) -> None:
        """Count an RPC that has ended, and log it."""
        seconds = time.perf_counter() - began
        self.in_flight -= 1
        code = _OK if error is None else _code(error)
        content_type = ctx.request_headers.get("content-type", "")
        protocol = protocol_of(content_type)
        service = ctx.method.service_name
        method, count, duration = self._of(service, ctx.method.name, code, protocol)
        count.inc()
        duration.observe(seconds)
        if code == _OK:
            level = logging.DEBUG if service.startswith(self._quiet) else logging.INFO
            if self._sample < 1 and "outcome" not in get_contextvars() and self._is_left_out():
                return
        else:
            level = _level(error, code)
        entry: dict[str, object] = {
            "method": method,
            "protocol": protocol,
            "code": code,
            "duration_ms": round(seconds * 1000, 3),
            "caller": ctx.client_address,
        }
        if error is not None:
            entry |= _why(error, level)
        self._write(level, entry)

    def refused(self, scope: Scope, code: str, message: str) -> None:
        """Count an RPC that was refused before this could see it, and log it."""
        if _was_seen.get():
            return
        headers = Headers(scope=scope)
        path, protocol = scope["path"], protocol_of(headers.get("content-type", ""))
        self._count(path, code, protocol)
        entry: dict[str, object] = {
            "method": mask_tokens(path.lstrip("/"))[:_LONGEST_PATH],
            "protocol": protocol,
            "code": code,
            "caller": ":".join(map(str, scope["client"] or ())),
            "error": message,
        }
        if is_request_id(request_id := headers.get(REQUEST_ID, "")):
            entry["request_id"] = request_id
        self._write(logging.INFO, entry)

    def dropped(self, path: str, content_type: str) -> None:
        """Count an RPC that there was no room for. It has no line in the log: there are many."""
        self._metrics.queue_drops.inc()
        self._count(path, Code.RESOURCE_EXHAUSTED.value, protocol_of(content_type))

    def _write(self, level: int, entry: Mapping[str, object]) -> None:
        try:
            self._log.log(level, "rpc", **entry)
        except Exception:  # what was done is done, and its caller must be told so
            _log.exception("an RPC could not be logged")

    def _count(self, path: str, code: str, protocol: str) -> None:
        """Count an RPC by a path that may be anything, and then is no label of a metric."""
        method = path.lstrip("/")
        known = method if method in self._methods else "unknown"
        self._metrics.rpcs.labels(known, code, protocol).inc()

    def _of(
        self, service: str, name: str, code: str, protocol: str
    ) -> tuple[str, Counter, Histogram]:
        key = service, name, code, protocol
        found = self._series.get(key)
        if found is None:
            method = f"{service}/{name}"
            count = self._metrics.rpcs.labels(method, code, protocol)
            duration = self._metrics.rpc_seconds.labels(method, protocol)
            found = self._series[key] = method, count, duration
        return found

    def _is_left_out(self) -> bool:
        return random.random() >= self._sample  # noqa: S311 - it is no secret


def take_note(request: Message[Any]) -> None:
    """Have entries of the log tell the order while ``request`` is served, and no identifier."""
    set_current_request(request)
    order_id = getattr(request, "order_id", None)
    if order_id is not None:
        bind_contextvars(order_id=order_id)


def protocol_of(content_type: str) -> str:
    """Return the name of the protocol that a request of this content type speaks."""
    if not content_type.startswith("application/grpc"):
        return "connect"
    return "grpc_web" if content_type.startswith("application/grpc-web") else "grpc"


def _code(error: Exception) -> str:
    return error.code.value if isinstance(error, ConnectError) else Code.UNKNOWN.value


def _level(error: Exception | None, code: str) -> int:
    if error is not None and isinstance(error.__cause__, WatchEnded):
        return logging.INFO  # as every stop of a process has it
    return _LEVELS.get(code, logging.INFO)


def _why(error: Exception, level: int) -> dict[str, object]:
    """Return what is logged of an error: for one of the service's own, all there is to know."""
    told: dict[str, object] = {"error": _told(error) if isinstance(error, ConnectError) else ""}
    if level == logging.ERROR:
        told["exc_info"] = error.__cause__ or error
    elif level == logging.WARNING and (cause := _root_cause(error)):
        told["cause"] = cause
    return told


def _told(error: ConnectError) -> str:
    """Return what the caller was told; before a request was read, without what quotes it."""
    if has_current_request() or error.details:
        return error.message
    return error.message.partition(":")[0]


def _root_cause(error: Exception) -> str | None:
    """Return the innermost cause that has something to say; a time-out's own has not."""
    found, cause = None, error.__cause__
    while cause is not None:
        found = f"{type(cause).__name__}: {cause}" if str(cause) else found
        cause = cause.__cause__
    return found
