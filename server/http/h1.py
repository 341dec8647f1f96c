"""HTTP/1.1 connections: uvicorn's, with bounds on what a client may send.

Without them, what arrives while a request is answered is kept by zttp, up to 8 MiB a connection;
the rest of a body is read without end once its request has been answered; and an incomplete request
stays open for ever.

A response may begin before the body of its request has been received, as one of 401. The rest of a
short body is read and discarded, and the connection goes on. After one that may be long the
connection ends, and the response says so: the client would send its next request on a connection
that is not read any more.

A request that RFC 9112 does not allow gets an answer that says why: see ``h1_requests``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias, cast

import zttp
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.zttp_impl import RequestResponseCycle, ZttpProtocol

from server.http.h1_close_delimited import CloseDelimited
from server.http.h1_requests import Refusal, check, explain
from server.http.joined_writes import JoinedWrites
from server.http.limits import Limits

_HEAD_END: Final = b"\r\n\r\n"
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")
_CLOSE: Final = (b"connection", b"close")
_KEEP_ALIVE: Final = (b"connection", b"keep-alive")

_log = logging.getLogger(__name__)

Send: TypeAlias = Callable[[ASGISendEvent], Awaitable[None]]


class H1Protocol(ZttpProtocol):
    """uvicorn's HTTP/1.1 server protocol with ``Limits``."""

    def __init__(
        self, *args: Any, limits: Limits, tcp_transport: asyncio.Transport, **options: Any
    ) -> None:
        """``tcp_transport`` carries the connection, or its TLS; the rest is uvicorn's."""
        super().__init__(*args, **options)
        self.tcp_transport = tcp_transport
        self._limits = limits
        self._is_ending = False  # input is discarded, and the connection closes soon
        self._close_timer: asyncio.TimerHandle | None = None
        self._discarded = 0  # bytes, since then
        self._is_draining = False  # the connection closes after the next response
        self._read_ahead = bytearray()
        self._head = b""  # of a request, while it is incomplete
        # Bytes of the body that have not arrived. None for a body in chunks, and for the rest of
        # the connection: zttp may hold the beginning of the next request. Otherwise zttp gets one
        # request at a time, and empty lines before the next one can be removed.
        self._expected: int | None = 0
        self._checked_app = self.app
        self.app = self._run_checked

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark the exchange as disconnected, and cancel all timers."""
        super().connection_lost(exc)
        # Works around uvicorn, which leaves it to run when a client resets the connection.
        self._unset_keepalive_if_required()
        if self._close_timer is not None:
            self._close_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Act upon ``data``: a part of a request, or of what follows it."""
        if self._is_ending:
            self._discarded += len(data)
            if self._discarded > self._limits.max_discarded:
                self.transport.abort()
            return
        if self._is_answering():
            # Works around zttp, which keeps 8 MiB. Reading does not pause: that would hide the
            # client's disconnect.
            self._read_ahead += data
            if len(self._read_ahead) > self._limits.max_read_ahead:
                self.transport.abort()
        elif self._is_answered_early():
            self._discard_body(data)
        elif self._is_between_requests():
            self._receive_head(data)
        else:
            self._receive_body(data)

    def _receive_head(self, data: bytes) -> None:
        """Act upon ``data``, with which a request begins or its head goes on."""
        if self._expected == 0 and self._head in (b"", b"\r"):
            # Works around zttp. RFC 9112, section 2.2: empty lines before a request are ignored.
            data = self._head + data
            data = data[_EMPTY_LINES.match(data).end() :]  # type: ignore[union-attr]
            self._head = b""
            if data in (b"", b"\r"):
                self._head = data
                return
        before = len(self._head)
        self._head += data
        # Where zttp has had the beginning of the head, what looks like its end may be content.
        searched = max(before - len(_HEAD_END) + 1, 0)
        end = self._head.find(_HEAD_END, searched) if self._expected == 0 else -1
        rest = b""
        if end >= 0:
            end += len(_HEAD_END) - before
            data, rest = data[:end], data[end:]
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:
            self._expected = _content_length(self.cycle) if end >= 0 else None
            self._head = b""
        self._receive_rest(rest)

    def _receive_body(self, data: bytes) -> None:
        """Act upon ``data``, with which a body goes on, and with what follows the body."""
        rest = b""
        if self._expected is not None:
            data, rest = data[: self._expected], data[self._expected :]
            self._expected -= len(data)
        super().data_received(data)
        self._receive_rest(rest)

    def _receive_rest(self, data: bytes) -> None:
        """Act upon what came in the same read as the end of a head or body.

        While the request is answered, that may be more than ``max_read_ahead``, but no read more.
        """
        if not data:
            return
        if self._is_answering() and not self._is_ending:
            self._read_ahead += data
        else:
            self.data_received(data)

    def handle_events(self, event: zttp.Event) -> None:
        """Act upon what zttp has parsed."""
        before = self.cycle
        try:
            super().handle_events(event)
        except UnicodeDecodeError:
            # Works around uvicorn: it decodes the path as ASCII, and zttp accepts other bytes.
            self.handle_remote_protocol_error()
            return
        cycle = self.cycle
        if cycle is before:
            return
        if self._is_draining:
            self._announce_close()
        # uvicorn has made the cycle, and runs the application with its ``send`` later.
        if _is_http_1_0(cycle):
            # Works around uvicorn. RFC 9110, section 10.1.1: HTTP/1.0 has no 100.
            cycle.waiting_for_100_continue = False
        elif not cycle.more_body:
            return
        cycle.send = partial(self._send, cycle, cycle.send)  # type: ignore[method-assign]

    def handle_remote_protocol_error(self) -> None:
        """Answer a malformed request, and close the connection.

        Works around uvicorn, which says no more than that it is invalid, and writes a body that
        zttp refuses in a response to HEAD.
        """
        self._refuse(explain(sys.exception(), self._head))

    def _run_checked(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> Awaitable[None]:
        """Run the application, unless the request is to be refused."""
        refusal = check(cast(dict[str, Any], scope))
        if refusal is None:
            return cast(Awaitable[None], self._checked_app(scope, receive, send))
        self._log_refusal(refusal)
        return _send_refusal(refusal, send)

    def on_response_complete(self) -> None:
        """Go on with what has arrived while the request was answered."""
        super().on_response_complete()
        if self._is_ending:
            self._unset_keepalive_if_required()
        elif self._read_ahead and not self._is_answering() and not self.transport.is_closing():
            data, self._read_ahead = bytes(self._read_ahead), bytearray()
            self.data_received(data)

    def shutdown(self) -> None:
        """End the connection because the server stops: after its next response, which says so.

        A connection that is idle is given time for a request. Works around uvicorn, which closes it
        at once: a request on its way would be lost, and no proxy may send an update again.
        """
        self._is_draining = True
        self.timeout_keep_alive = self._limits.drain_idle  # type: ignore[assignment]
        if self.cycle is not None and not self.cycle.response_complete:
            self._announce_close()
        elif self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _announce_close(self) -> None:
        """Have the response say that it is the last one, if it has not begun."""
        self.cycle.default_headers = [*self.cycle.default_headers, _CLOSE]
        self.cycle.keep_alive = False

    def incomplete(self) -> object | None:
        """Return what identifies the request whose rest has not arrived, or None without one."""
        if self._is_ending:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            waits = self.cycle.more_body and not self.cycle.response_started
        else:
            # What has arrived cancelled the keep-alive timer, and was neither a complete head nor
            # the complete rest of a body.
            waits = self.timeout_keep_alive_task is None
        return (self.cycle or self) if waits else None

    def end_incomplete(self) -> None:
        """Close the connection because the rest of a request does not arrive in time.

        Works around uvicorn, which has no timeout for it. The response is 408 (RFC 9110, section
        15.5.9), unless the request has been answered.
        """
        self._refuse(Refusal(408, "the rest of the request did not arrive in time"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer ``refusal``, unless a response has begun, and close the connection."""
        cycle = None if self._is_between_requests() else self.cycle
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or not cycle.response_started:
            self._log_refusal(refusal)
            is_head = self._head.startswith(b"HEAD ") or (
                cycle is not None and cycle.scope["method"] == "HEAD"
            )
            response = refusal.response(self.server_state.default_headers, with_body=not is_head)
            self.transport.write(response)
        self._close_after_delay()

    def _log_refusal(self, refusal: Refusal) -> None:
        client = "{}:{}".format(*self.client) if self.client else "a client"
        _log.info("HTTP/1.1: answered %s with %d: %s", client, refusal.status, refusal.message)

    async def _send(self, cycle: RequestResponseCycle, send: Send, message: ASGISendEvent) -> None:
        """Send a part of a response to HTTP/1.0, or of one that begins early.

        The latter may be the last of its connection.
        """
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if cycle.more_body:
                # uvicorn closes this transport after the last response.
                cycle.transport = _DelayedClose(self)  # type: ignore[assignment]
                if not self._may_discard_body(cycle) and _CLOSE not in headers:
                    # Works around uvicorn, which reads the rest of such a body without end.
                    headers.append(_CLOSE)
            if _is_http_1_0(cycle):
                if _has_unknown_length(cycle, headers):
                    cycle.conn = CloseDelimited()  # type: ignore[assignment]
                elif cycle.keep_alive and not self.conn.should_close() and _CLOSE not in headers:
                    # RFC 9112, appendix C.2.2: else the client closes.
                    headers.append(_KEEP_ALIVE)
            message = {**message, "headers": headers}
        await send(message)

    def _may_discard_body(self, cycle: RequestResponseCycle) -> bool:
        """Whether the rest of a body is known to come, and to be within the limit."""
        if cycle.waiting_for_100_continue:
            return False
        length = _content_length(cycle)
        return length is not None and length <= self._limits.max_read_ahead

    def close_after_response(self) -> None:
        """Close the connection: at once, unless the client is still sending the request."""
        if self.cycle.more_body:
            self._close_after_delay()
        else:
            self.transport.close()

    def _close_after_delay(self) -> None:
        """Close the connection once the client has had time to read the response."""
        self._is_ending = True
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._close_timer = self.loop.call_later(self._limits.close_delay, self.transport.close)

    def _discard_body(self, data: bytes) -> None:
        cycle = self.cycle
        self._receive_body(data)
        is_idle = self._is_between_requests() and self._head in (b"", b"\r")
        if self.cycle is cycle and is_idle and self.timeout_keep_alive_task is None:
            # Works around uvicorn, which sets no keep-alive timer here.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _is_between_requests(self) -> bool:
        """Whether what arrives next belongs to the head of a request."""
        return self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)

    def _is_answering(self) -> bool:
        """Whether a request is complete and its response is not."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _is_answered_early(self) -> bool:
        """Whether the response is complete and the request is not."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body


def _is_http_1_0(cycle: RequestResponseCycle) -> bool:
    return cycle.scope["http_version"] == "1.0"


def _content_length(cycle: RequestResponseCycle) -> int | None:
    """Return the length of the body of a request, or None where it comes in chunks."""
    headers = dict(cycle.scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    # Without the zeros before it, of which zttp takes any number, and int() some thousand.
    return int(headers.get(b"content-length", b"").lstrip(b"0") or b"0")


def _has_unknown_length(cycle: RequestResponseCycle, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether uvicorn would send a body in chunks."""
    if cycle.scope["method"] == "HEAD":
        return False
    return not any(name.lower() == b"content-length" for name, _ in headers)


async def _send_refusal(refusal: Refusal, send: ASGISendCallable) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": refusal.headers,
            "trailers": False,
        }
    )
    await send({"type": "http.response.body", "body": refusal.body, "more_body": False})


class _DelayedClose:
    """The transport of a cycle whose response begins before its request is complete."""

    def __init__(self, connection: H1Protocol) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        """Close the connection, so that the client can read the response first."""
        self._connection.close_after_response()
