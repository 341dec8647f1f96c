"""gRPC's way to a method that most calls take, without ASGI in between.

ASGI takes a response apart into messages that each pass through every layer, and the runtime reads
each gRPC call as a stream, with tasks and generators that one small message does not need. An
update by gRPC took twice the service's time that way (see ``benchmarks/RESULTS.md``). So a call
that is nothing out of the ordinary goes from its HTTP/2 stream to the Connect handler directly:
through the same interceptors, in the same order, with the same context.

Whatever is not as expected is left to the application from its beginning, by ``hand_over``: other
protocols, a header that wants an explanation, compression, a body that is not one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextvars import Context
from typing import Any, Final

import zttp
from connectrpc._interceptor_async import MetadataInterceptorsRun
from connectrpc._protocol import ConnectWireError
from connectrpc._protocol_grpc import GRPCServerProtocol
from connectrpc._server_async import ConnectASGIApplication
from connectrpc._server_shared import EndpointUnary
from connectrpc._shared import decode_message
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec
from connectrpc.errors import ConnectError
from connectrpc.request import Headers, RequestContext

from server.http import H2Connection
from server.rpc.load_shedding import Admission

_CODEC: Final = proto_binary_codec()
_PROTOCOL: Final = GRPCServerProtocol()
_WRITER: Final = _PROTOCOL.create_envelope_writer(_CODEC, None)

_CONTENT_TYPES: Final = ("application/grpc", "application/grpc+proto")
_ANSWER_HEADERS: Final = ((b"content-type", b"application/grpc+proto"),)

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: a flag and the length.
_PREFIX: Final = 5

_RawHeaders = list[tuple[bytes, bytes]]


def _raw(headers: Any) -> _RawHeaders:
    return [(name.encode(), value.encode()) for name, value in headers.allitems()]


_OK_TRAILERS: Final = _raw(_WRITER.end(Headers(), None))


class DirectMethods:
    """Finds the calls that can take the direct way."""

    def __init__(
        self,
        application: ConnectASGIApplication[Any],
        methods: Collection[str],
        admission: Admission,
        max_request_bytes: int,
    ) -> None:
        """``methods`` are the paths of unary methods of ``application``."""
        endpoints: Mapping[str, Any] = application._resolve_endpoints(application._service)
        self._endpoints: dict[bytes, EndpointUnary[Any, Any]] = {
            path.encode(): endpoints[path] for path in methods
        }
        self.interceptors: Sequence[Any] = application._metadata_interceptors
        self.admission = admission
        self.most = _PREFIX + max_request_bytes

    def __call__(self, connection: H2Connection, event: zttp.Request) -> DirectCall | None:
        """Return the call that begins with ``event``, or None for one that takes the usual way."""
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
            or headers.get("grpc-encoding", "identity") != "identity"
        ):
            return None
        return DirectCall(self, connection, event, endpoint, context)


class DirectCall:
    """One call. To the connection, it is what uvicorn's ``RequestResponseCycle`` is to it."""

    def __init__(
        self,
        methods: DirectMethods,
        connection: H2Connection,
        event: zttp.Request,
        endpoint: EndpointUnary[Any, Any],
        context: RequestContext[Any, Any],
    ) -> None:
        self._methods = methods
        self._connection = connection
        self._event = event
        self._endpoint = endpoint
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._expired = False
        self._is_in = False
        self.stream = connection.conn.stream(event.stream_id)
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False

    @property
    def message_event(self) -> DirectCall:
        """What uvicorn sets. As an attribute, it would leave each call to the garbage collector."""
        return self

    def set(self) -> None:
        """Act upon what has changed: uvicorn sets ``message_event`` then."""
        if self.disconnected:
            if self.response_complete:
                return
            if self._task is None:
                self.response_complete = True
                # Not now: uvicorn is going through all calls of a connection that is lost.
                self._connection.loop.call_soon(self._end, context=Context())
            else:
                self._task.cancel()
        elif self._task is None:
            # Whether there is room may have changed since the headers came.
            if self.more_body and len(self.body) <= self._methods.most:
                return
            if self._is_one_message() and not self._methods.admission.is_full:
                self._begin()
            else:
                self._connection.hand_over(self._event, self)

    def _begin(self) -> None:
        # Now, and not when the task starts: others may come in with the same read.
        self._methods.admission.enter()
        self._is_in = True
        self._task = self._connection.loop.create_task(self._run(), context=Context())
        self._connection.tasks.add(self._task)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connection.tasks.discard(task)
        self._leave()
        self._end()

    def _leave(self) -> None:
        if self._is_in:
            self._is_in = False
            self._methods.admission.leave()

    def _is_one_message(self) -> bool:
        size = len(self.body) - _PREFIX
        return (
            not self.more_body
            and 0 <= size <= self._methods.most - _PREFIX
            and self.body[:_PREFIX] == b"\0" + size.to_bytes(4)
        )

    async def _run(self) -> None:
        connection = self._connection
        try:
            message, error = await self._call()
            if connection.flow.write_paused:
                await connection.flow.drain()
            if not self.disconnected:
                self._answer(message, error)
        except Exception:
            connection.logger.exception("Exception in a direct call")
            if not connection.transport.is_closing():
                self.stream.reset()
                connection.flush()

    async def _call(self) -> tuple[bytes, Exception | None]:
        """Call the method, and return its answer, or what there is in its place.

        What the interceptors see is what they see in the runtime's own ``_handle_request``.
        """
        methods, context = self._methods, self._context
        run = MetadataInterceptorsRun(methods.interceptors, context)
        message, error = b"", None
        timer = self._timer()
        try:
            try:
                await run.start()
                request = decode_message(_CODEC, self.body[_PREFIX:], self._endpoint.method.input)
                response = await self._endpoint.function(request, context)
                message = _CODEC.encode(response)
            except Exception as failure:
                error = failure
            error = await run.end(error)
        except asyncio.CancelledError:
            if self.disconnected:
                error = ConnectError(Code.CANCELED, "Client disconnected")
            elif self._expired:
                error = error or ConnectError(Code.DEADLINE_EXCEEDED, "Request timed out")
            else:
                error = ConnectError(Code.CANCELED, "Request was cancelled")
                raise
        finally:
            if timer:
                timer.cancel()
            error = await run.end(error)  # unless that has been done
        return message, error

    def _timer(self) -> asyncio.TimerHandle | None:
        """Have the call cancelled when the time is over that its caller gives it."""
        timeout_ms = self._context.timeout_ms
        if timeout_ms is None:
            return None
        return self._connection.loop.call_later(timeout_ms / 1000, self._expire)

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    def _answer(self, message: bytes, error: Exception | None) -> None:
        connection, stream, context = self._connection, self.stream, self._context
        headers = [*connection.server_state.default_headers, *_ANSWER_HEADERS]
        headers += _raw(context.response_headers)
        self._leave()
        stream.send_response(200, headers)
        if error is None:
            stream.send_data(b"\0" + len(message).to_bytes(4) + message)
        if error is None and not context.response_trailers:
            stream.end_message(_OK_TRAILERS)
        else:
            wire_error = None if error is None else ConnectWireError.from_exception(error)
            stream.end_message(_raw(_WRITER.end(context.response_trailers, wire_error)))
        self.response_started = self.response_complete = True
        connection.flush()
        connection.sent(self, len(message))

    def _end(self) -> None:
        self.response_complete = True
        self._connection.on_response_complete(self.stream.stream_id)
