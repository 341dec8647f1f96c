"""The gRPC fast path: from an HTTP/2 stream to the handler of a unary method, without ASGI.

ASGI takes a response apart into messages that each pass through every layer, and connectrpc reads
each gRPC call as a stream, with tasks and generators that one small message does not need. An
update takes the service twice the time that way, and ``GetOrder`` 1.7 times (see
``benchmarks/RESULTS.md``). A call on the fast path runs the same interceptors, in the same order,
with the same context.

A call that is not as expected goes to the application instead, from its beginning (``hand_over``):
another protocol, an unreadable header, compression, a body that is not exactly one message.

Responses differ in one point: connectrpc compresses each of them for a client that accepts gzip
(connect-go and grpc-java do; grpcio prefers identity), the fast path only those of more than
``_MIN_COMPRESSED`` bytes. One order is 250 bytes, and 260 compressed. A page of 50 orders is 12,600
bytes, and 7,000 compressed, for 0.3 ms of the processor.

The calls of one service take the fast path. Health checks do not: they are few, and are answered
under overload, too.

This is the only module that uses private parts of connectrpc. If they are not as expected, or with
``LISTINGS_GRPC_FAST_PATH=off``, the fast path is off, and all calls go to the application.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextvars import Context
from typing import Any, Final

import zttp
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import Headers, RequestContext
from connectrpc.server import ConnectASGIApplication

from server.http import H2Connection
from server.rpc.binary_codec import BinaryCodec
from server.rpc.error_encoding import ENVELOPE_HEAD, RawHeaders, as_connect_error, grpc_trailers
from server.rpc.load_shedding import LoadShedder

_CODEC: Final = BinaryCodec()

_mismatch: Exception | None = None
try:
    from connectrpc._interceptor_async import MetadataInterceptorsRun
    from connectrpc._protocol_grpc import GRPCServerProtocol
    from connectrpc._server_shared import EndpointUnary
    from connectrpc._shared import decode_message

    _PROTOCOL: Final = GRPCServerProtocol()
except (ImportError, AttributeError, TypeError) as error:
    _mismatch = error

_CONTENT_TYPES: Final = ("application/grpc", "application/grpc+proto")
_RESPONSE_HEADERS: Final = ((b"content-type", b"application/grpc+proto"),)
_OK_TRAILERS: Final = [(b"grpc-status", b"0")]

_COMPRESSED: Final = b"\1"
_NOT_COMPRESSED: Final = b"\0"

_MIN_COMPRESSED: Final = 1400  # bytes; with headers and trailers, what fits into one TCP segment
_MAX_FRAME: Final = 16_384  # RFC 9113, section 6.5.2: SETTINGS_MAX_FRAME_SIZE, by default

_log = logging.getLogger(__name__)


def create_fast_path(
    application: ConnectASGIApplication[Any], shedder: LoadShedder, max_request_bytes: int
) -> FastPath | None:
    """Return the fast path to the unary methods of ``application``.

    Returns None, and logs a warning, if connectrpc's private parts are not as expected.
    """
    mismatch = _mismatch
    if mismatch is None:
        try:
            return FastPath(application, shedder, max_request_bytes)
        except (AttributeError, LookupError, TypeError) as error:
            mismatch = error
    _log.warning("gRPC fast path off: connectrpc is not as expected: %s", mismatch)
    return None


class FastPath:
    """Begins the calls that can take the fast path."""

    def __init__(
        self,
        application: ConnectASGIApplication[Any],
        shedder: LoadShedder,
        max_request_bytes: int,
    ) -> None:
        """Raises AttributeError, LookupError or TypeError, if connectrpc is not as expected."""
        endpoints: Mapping[str, Any] = application._resolve_endpoints(application._service)
        self._endpoints: dict[bytes, EndpointUnary[Any, Any]] = {
            path.encode(): endpoint
            for path, endpoint in endpoints.items()
            if isinstance(endpoint, EndpointUnary)
        }
        if not self._endpoints:
            raise LookupError("no endpoint is an EndpointUnary")
        self.interceptors = application._metadata_interceptors
        self.compressions = application._compressions
        self.shedder = shedder
        self.max_body = ENVELOPE_HEAD + max_request_bytes

    def __call__(self, connection: H2Connection, event: zttp.Request) -> FastPathCall | None:
        """Return the call that begins with ``event``, or None to leave it to the application."""
        endpoint = self._endpoints.get(event.target)
        if endpoint is None or event.method != b"POST":
            return None
        try:
            headers = Headers([(n.decode("ascii"), v.decode("ascii")) for n, v in event.headers])
            context = _PROTOCOL.create_request_context(
                endpoint.method,
                "POST",
                connection.scheme or "http",
                headers,
                connection.client_address,
            )
        except (UnicodeDecodeError, ConnectError):
            return None
        if (
            headers.get("content-type") not in _CONTENT_TYPES
            or headers.get("te") != "trailers"
            or ("grpc-encoding" in headers and headers["grpc-encoding"] != "identity")
        ):
            return None
        return FastPathCall(self, connection, event, endpoint, context)


class FastPathCall:
    """One call, in the place of uvicorn's ``RequestResponseCycle``, with the same attributes."""

    def __init__(
        self,
        fast_path: FastPath,
        connection: H2Connection,
        event: zttp.Request,
        endpoint: EndpointUnary[Any, Any],
        context: RequestContext[Any, Any],
    ) -> None:
        self._fast_path = fast_path
        self._connection = connection
        self._event = event
        self._endpoint = endpoint
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._is_expired = False
        self._is_in_flight = False
        self._received = bytearray()
        self.stream = connection.conn.stream(event.stream_id)
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False

    @property
    def message_event(self) -> FastPathCall:
        """What uvicorn sets. As an attribute it would be a cycle for the garbage collector."""
        return self

    def set(self) -> None:
        """Act upon a change of the attributes above: uvicorn sets ``message_event`` after each."""
        if self.disconnected:
            if self.response_complete:
                return
            if self._task is None:
                self.response_complete = True
                # Not at once: uvicorn iterates over the calls of a connection that is lost.
                self._connection.loop.call_soon(self._end, context=Context())
            else:
                self._task.cancel()
        elif self._task is None:
            self._consume()
            if self.more_body and len(self._received) <= self._fast_path.max_body:
                return
            # The load shedder may have become full since the headers came.
            if self._is_one_message() and not self._fast_path.shedder.is_full:
                self._begin()
            else:
                self.body = self._received
                self._connection.hand_over(self._event, self)

    def _consume(self) -> None:
        """Take what has been received, as ``receive`` of ASGI does.

        uvicorn pauses the whole connection while an exchange has 64 KiB that are not consumed.
        """
        self._received += self.body
        self.body = bytearray()
        self._connection.resume_reading_if_idle()

    def _begin(self) -> None:
        # Counted before the task starts: the same read may bring more calls.
        self._fast_path.shedder.enter()
        self._is_in_flight = True
        self._task = self._connection.loop.create_task(self._run(), context=Context())
        self._connection.tasks.add(self._task)
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._connection.tasks.discard(task)
        self._leave()
        self._end()

    def _leave(self) -> None:
        if self._is_in_flight:
            self._is_in_flight = False
            self._fast_path.shedder.leave()

    def _is_one_message(self) -> bool:
        size = len(self._received) - ENVELOPE_HEAD
        return (
            not self.more_body
            and 0 <= size <= self._fast_path.max_body - ENVELOPE_HEAD
            and self._received[:ENVELOPE_HEAD] == b"\0" + size.to_bytes(4)
        )

    async def _run(self) -> None:
        connection = self._connection
        try:
            message, error = await self._call()
            if connection.flow.write_paused:
                await connection.flow.drain()
            if not self.disconnected:
                await self._respond(message, error)
        except Exception:
            connection.logger.exception("gRPC fast path: unexpected exception")
            if not connection.transport.is_closing():
                self.stream.reset()
                connection.flush()

    async def _call(self) -> tuple[bytes, Exception | None]:
        """Call the method. Return its response as on the wire and None, or b"" and the error.

        Runs the interceptors as connectrpc's ``_handle_request`` does.
        """
        context = self._context
        run = MetadataInterceptorsRun(self._fast_path.interceptors, context)
        message, error = b"", None
        timer = self._start_timer()
        try:
            try:
                await run.start()
                request = decode_message(
                    _CODEC, self._received[ENVELOPE_HEAD:], self._endpoint.method.input
                )
                response = await self._endpoint.function(request, context)
                message = self._encode(response)
            except Exception as failure:
                error = failure
            error = await run.end(error)
        except asyncio.CancelledError:
            if self.disconnected:
                error = ConnectError(Code.CANCELED, "Client disconnected")
            elif self._is_expired:
                error = error or ConnectError(Code.DEADLINE_EXCEEDED, "Request timed out")
            else:
                error = ConnectError(Code.CANCELED, "Request was cancelled")
                raise
        finally:
            if timer:
                timer.cancel()
            error = await run.end(error)  # does nothing where it has been called before
        return message, error

    def _encode(self, response: Any) -> bytes:
        """Return a response with its prefix, compressed if that is worth it."""
        message, flag = _CODEC.encode(response), _NOT_COMPRESSED
        if len(message) > _MIN_COMPRESSED:
            context = self._context
            _, compression = _PROTOCOL.negotiate_stream_compression(
                context.request_headers, self._fast_path.compressions
            )
            if compression.name() != "identity":
                message, flag = compression.compress(message), _COMPRESSED
                context.response_headers["grpc-encoding"] = compression.name()
        return flag + len(message).to_bytes(4) + message

    def _start_timer(self) -> asyncio.TimerHandle | None:
        """Have the call cancelled at its caller's deadline, if it has one."""
        timeout_ms = self._context.timeout_ms
        if timeout_ms is None:
            return None
        return self._connection.loop.call_later(timeout_ms / 1000, self._expire)

    def _expire(self) -> None:
        self._is_expired = True
        if self._task is not None:
            self._task.cancel()

    async def _respond(self, message: bytes, error: Exception | None) -> None:
        connection, stream, context = self._connection, self.stream, self._context
        headers = [*connection.server_state.default_headers, *_RESPONSE_HEADERS]
        headers += _raw(context.response_headers)
        trailers = _raw(context.response_trailers) if context.response_trailers else []
        self._leave()
        if error is None:
            stream.send_response(200, headers)
            stream.send_data(message)
            if len(message) > _MAX_FRAME:
                await self._wait_until_read()
            stream.end_message([*trailers, *_OK_TRAILERS])
        else:  # Trailers-Only, without which gRPC clients would not send the call again
            trailers += grpc_trailers(as_connect_error(error))
            stream.send_response(200, headers + trailers, end_stream=True)
        self.response_started = self.response_complete = True
        connection.flush()
        connection.sent(self, len(message))

    async def _wait_until_read(self) -> None:
        """Keep the stream open while its client does not read, as ASGI's ``send`` does.

        Streams that are open count against MAX_CONCURRENT_STREAMS, and so bound how many responses
        one connection has waiting.
        """
        connection = self._connection
        self.response_started = True
        connection.flush()
        if connection.flow.write_paused:
            await connection.flow.drain()
        await connection.wait_until_read(self)

    def _end(self) -> None:
        self.response_complete = True
        self._connection.on_response_complete(self.stream.stream_id)


def _raw(headers: Any) -> RawHeaders:
    """Return ``headers``, as connectrpc has them, as zttp takes them."""
    return [(name.encode(), value.encode()) for name, value in headers.allitems()]
