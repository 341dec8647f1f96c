"""The service of the suite: each request says what the method is to answer.

https://github.com/connectrpc/conformance/blob/main/docs/testing_servers.md

The generated code has no types here: it does not exist where the suite has never run.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import protobuf.wkt
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Message, Oneof

from server.rpc.error_encoding import GRPC_STATUS
from server.rpc.interceptors.base import Context
from tests.conformance.gen.connectrpc.conformance.v1.service_pb import (
    BidiStreamResponse,
    ClientStreamResponse,
    ConformancePayload,
    Header,
    IdempotentUnaryResponse,
    ServerStreamResponse,
    StreamResponseDefinition,
    UnaryResponse,
    UnaryResponseDefinition,
)

# The suite's enum has gRPC's numbers.
_CODES: Final = {number: code for code, number in GRPC_STATUS.items()}


class ConformanceHandler:
    """Implements ``connectrpc.conformance.v1.ConformanceService``."""

    async def unary(self, request: Any, ctx: Context) -> Any:
        return await _single(UnaryResponse, request.response_definition, [request], ctx)

    async def idempotent_unary(self, request: Any, ctx: Context) -> Any:
        return await _single(IdempotentUnaryResponse, request.response_definition, [request], ctx)

    async def client_stream(self, requests: AsyncIterator[Any], ctx: Context) -> Any:
        received = [request async for request in requests]
        wanted = received[0].response_definition if received else None
        return await _single(ClientStreamResponse, wanted, received, ctx)

    async def server_stream(self, request: Any, ctx: Context) -> AsyncIterator[Any]:
        wanted = request.response_definition or StreamResponseDefinition()
        _add_metadata(ctx, wanted)
        responses = _responses(ServerStreamResponse, wanted, wanted.response_data, [request], ctx)
        async for response in responses:
            yield response

    async def bidi_stream(self, requests: AsyncIterator[Any], ctx: Context) -> AsyncIterator[Any]:
        wanted, is_full_duplex = None, False
        received: list[Any] = []
        sent = 0
        async for request in requests:
            if wanted is None:
                wanted = request.response_definition or StreamResponseDefinition()
                is_full_duplex = request.full_duplex
                _add_metadata(ctx, wanted)
            received.append(request)
            if is_full_duplex:
                if sent == len(wanted.response_data):
                    break
                await _delay(wanted)
                info = _request_info(ctx, received)
                yield _response(BidiStreamResponse, wanted.response_data[sent], info)
                sent += 1
                received = []
        if wanted is not None:
            rest = wanted.response_data[sent:]
            first = received if sent == 0 else None
            async for response in _responses(BidiStreamResponse, wanted, rest, first, ctx):
                yield response

    async def unimplemented(self, _request: Any, _ctx: Context) -> Any:
        raise ConnectError(Code.UNIMPLEMENTED, "not implemented, as the suite wants it")


async def _single(kind: Any, wanted: Any, requests: Sequence[Any], ctx: Context) -> Any:
    """Return the answer of a method with a single response, or raise it."""
    wanted = wanted or UnaryResponseDefinition()
    _add_metadata(ctx, wanted)
    await _delay(wanted)
    info = _request_info(ctx, requests)
    match wanted.response:
        case Oneof("error", error):
            raise _error(error, [info])
        case Oneof("response_data", data):
            return _response(kind, data, info)
    return _response(kind, b"", info)


async def _responses(
    kind: Any, wanted: Any, data: Iterable[bytes], requests: Sequence[Any] | None, ctx: Context
) -> AsyncIterator[Any]:
    """Yield a response for each of ``data``, and raise the error that is wanted after them.

    The first of them has ``requests``, unless these are None.
    """
    info = None if requests is None else _request_info(ctx, requests)
    for each in data:
        await _delay(wanted)
        yield _response(kind, each, info)
        info = None
    if wanted.error is not None:
        raise _error(wanted.error, [] if info is None else [info])


def _response(kind: Any, data: bytes, info: Any) -> Any:
    return kind(payload=ConformancePayload(data=data, request_info=info))


def _error(wanted: Any, info: Sequence[Message[Any]]) -> ConnectError:
    return ConnectError(_CODES[wanted.code], wanted.message, [*wanted.details, *info])


def _request_info(ctx: Context, requests: Iterable[Any]) -> Any:
    headers = ctx.request_headers
    info = ConformancePayload.RequestInfo(
        request_headers=[Header(name=name, value=list(headers.getall(name))) for name in headers],
        requests=[protobuf.wkt.Any.pack(request) for request in requests],
    )
    if ctx.timeout_ms is not None:
        info.timeout_ms = int(ctx.timeout_ms)
    if ctx.http_method == "GET":
        info.connect_get_info = ConformancePayload.ConnectGetInfo()
    return info


def _add_metadata(ctx: Context, wanted: Any) -> None:
    for headers, names in (
        (ctx.response_headers, wanted.response_headers),
        (ctx.response_trailers, wanted.response_trailers),
    ):
        for header in names:
            for value in header.value:
                headers.add(header.name, value)


async def _delay(wanted: Any) -> None:
    if wanted.response_delay_ms:
        await asyncio.sleep(wanted.response_delay_ms / 1000)
