"""One line in the log and one count for Prometheus for each RPC.

An RPC that connectrpc routes to a method is logged by the interceptor here, which starts before all
others and ends after them. The parts that answer an RPC before that report it by a method here.
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
from prometheus_client import Counter, Histogram
from protobuf import DescService, Message
from starlette.datastructures import Headers
from starlette.types import Scope
from structlog.contextvars import bind_contextvars, get_contextvars

from persistence.errors import WatchEnded
from server.observability.masking import has_current_request, mask_name, set_current_request
from server.observability.metrics import Metrics
from server.rpc.callers import Fields, TrustedProxies
from server.rpc.interceptors.base import Context
from server.rpc.interceptors.request_id import REQUEST_ID, is_request_id
from server.rpc.protocols import protocol_of
from server.rpc.unreadable import UnreadableRequest

_OK: Final = "ok"

# The levels of codes that report a state of the service; other codes, which report a mistake of the
# caller, are INFO.
_LEVELS: Final = {
    Code.UNKNOWN.value: logging.ERROR,
    Code.INTERNAL.value: logging.ERROR,
    Code.DATA_LOSS.value: logging.ERROR,
    Code.UNAVAILABLE.value: logging.WARNING,
    Code.DEADLINE_EXCEEDED.value: logging.WARNING,
    Code.ABORTED.value: logging.WARNING,
}

_MAX_PATH: Final = 200  # characters that are logged of a path without a method

# Whether the interceptor has seen the RPC that the current task serves.
_is_intercepted: ContextVar[bool] = ContextVar("is_intercepted", default=False)

_log = logging.getLogger(__name__)


class AccessLog:
    """Logs and counts RPCs, as the first metadata interceptor of the chain.

    connectrpc runs ``on_end`` in the reverse order of ``on_start``, so that the first interceptor
    sees the error that the caller gets.
    """

    def __init__(
        self,
        metrics: Metrics,
        sample: float,
        services: Collection[DescService],
        quiet: str,
        proxies: TrustedProxies,
    ) -> None:
        """Log RPCs, and count those of ``services`` by their methods, others as "unknown".

        ``sample`` is the share, from 0 to 1, of successful RPCs that are logged. Successful RPCs
        of services whose names begin with ``quiet`` are logged at DEBUG. ``proxies`` say who
        called.
        """
        self.in_flight = 0
        """How many RPCs have begun and not ended."""
        self._log = structlog.get_logger().bind()
        self._metrics = metrics
        self._sample = sample
        self._quiet = quiet
        self._proxies = proxies
        self._methods = {
            f"{service.type_name}/{method.name}"
            for service in services
            for method in service.methods
        }
        self._series: dict[tuple[str, str, str, str], tuple[str, Counter, Histogram]] = {}

    async def on_start(self, _ctx: Context) -> float:
        """Count an RPC in. Return when it began, in seconds of ``time.perf_counter``."""
        _is_intercepted.set(True)
        self.in_flight += 1
        return time.perf_counter()

    async def on_end(self, began: float, ctx: Context, error: Exception | None) -> None:
        """Count an RPC out, and log it."""
        seconds = time.perf_counter() - began
        self.in_flight -= 1
        code = _OK if error is None else _code(error)
        content_type = ctx.request_headers.get("content-type", "")
        protocol = protocol_of(content_type)
        service = ctx.method.service_name
        method, count, duration = self._series_of(service, ctx.method.name, code, protocol)
        count.inc()
        duration.observe(seconds)
        if code == _OK:
            level = logging.DEBUG if service.startswith(self._quiet) else logging.INFO
            if self._sample < 1 and "outcome" not in get_contextvars() and self._is_sampled_out():
                return
        else:
            level = _level(error, code)
        entry: dict[str, object] = {
            "method": method,
            "protocol": protocol,
            "code": code,
            "duration_ms": round(seconds * 1000, 3),
            "caller": self._caller(ctx.client_address, ctx.request_headers.getall),
        }
        if error is not None:
            entry |= _error_fields(error, level)
        self._write(level, entry)

    def log_unrouted(self, scope: Scope, code: str, message: str) -> None:
        """Log and count a request that was refused before the interceptor could see it.

        ``code`` is that of the answer, and ``message`` as well, with what it quotes masked by
        ``mask_name``. A request that the interceptor has seen is left to it.
        """
        if _is_intercepted.get():
            return
        headers = Headers(scope=scope)
        path, protocol = scope["path"], protocol_of(headers.get("content-type", ""))
        self._count(path, code, protocol)
        entry: dict[str, object] = {
            "method": mask_name(path.lstrip("/"))[:_MAX_PATH],
            "protocol": protocol,
            "code": code,
            "caller": self._caller(":".join(map(str, scope["client"] or ())), headers.getlist),
            "error": message,
        }
        if is_request_id(request_id := headers.get(REQUEST_ID, "")):
            entry["request_id"] = request_id
        self._write(logging.INFO, entry)

    def count_shed(self, path: str, content_type: str) -> None:
        """Count an RPC that load shedding rejected. It is not logged: there may be very many."""
        self._metrics.queue_drops.inc()
        self._count(path, Code.RESOURCE_EXHAUSTED.value, protocol_of(content_type))

    def count_refused(self, path: str, content_type: str) -> None:
        """Count an RPC that was refused for its host, which is logged elsewhere."""
        self._count(path, Code.PERMISSION_DENIED.value, protocol_of(content_type))

    def _caller(self, peer: str | None, fields: Fields) -> str | None:
        caller = self._proxies.caller(peer, fields)
        return None if caller is None else str(caller)

    def _write(self, level: int, entry: Mapping[str, object]) -> None:
        try:
            self._log.log(level, "rpc", **entry)
        except Exception:  # the RPC has ended, and its caller must get the answer
            _log.exception("an RPC could not be logged")

    def _count(self, path: str, code: str, protocol: str) -> None:
        """Count an RPC by its path; one without a method is "unknown", to bound the labels."""
        method = path.lstrip("/")
        known = method if method in self._methods else "unknown"
        self._metrics.rpcs.labels(known, code, protocol).inc()

    def _series_of(
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

    def _is_sampled_out(self) -> bool:
        return random.random() >= self._sample  # noqa: S311 - not for security


def bind_request(request: Message[Any]) -> None:
    """Add the order id to log entries while ``request`` is served, and mask its identifiers."""
    set_current_request(request)
    order_id = getattr(request, "order_id", 0)
    if order_id:  # unset, it reads as 0, which is the id of no order
        bind_contextvars(order_id=order_id)


def _code(error: Exception) -> str:
    return error.code.value if isinstance(error, ConnectError) else Code.UNKNOWN.value


def _level(error: Exception | None, code: str) -> int:
    if isinstance(error, UnreadableRequest):
        return logging.INFO  # the caller's fault, also where its code is INTERNAL
    if error is not None and isinstance(error.__cause__, WatchEnded):
        return logging.INFO  # every stop of a process ends its streams like that
    return _LEVELS.get(code, logging.INFO)


def _error_fields(error: Exception, level: int) -> dict[str, object]:
    """Return what is logged of an error: with a traceback, for a fault of the service."""
    message = _message(error) if isinstance(error, ConnectError) else ""
    fields: dict[str, object] = {"error": message}
    if level == logging.ERROR:
        fields["exc_info"] = error.__cause__ or error
    elif level == logging.WARNING and (cause := _root_cause(error)):
        fields["cause"] = cause
    return fields


def _message(error: ConnectError) -> str:
    """Return the message for the caller, without a part that may quote a request.

    A message may quote identifiers of a request that is not masked, because it was not decoded.
    """
    if isinstance(error, UnreadableRequest):
        return error.logged
    if has_current_request() or error.details:
        return error.message
    return error.message.partition(":")[0]


def _root_cause(error: Exception) -> str | None:
    """Return the innermost cause with a text; that of a time-out has none."""
    found, cause = None, error.__cause__
    while cause is not None:
        found = f"{type(cause).__name__}: {cause}" if str(cause) else found
        cause = cause.__cause__
    return found
