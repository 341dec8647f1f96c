"""A reflection stream that is cancelled while it waits for a request."""

import asyncio

import pytest
from connectrpc.codec import proto_binary_codec
from starlette.types import Message, Scope

from server.rpc.interceptors.shutdown import ShutdownInterceptor
from server.rpc.reflection import reflection_services

PATH = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def test_cancelling_waits_for_the_pending_receive() -> None:
    """The request stream is closed after the pending receive has ended, not during it."""
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "root_path": "",
        "headers": [(b"content-type", b"application/connect+proto")],
    }

    async def test() -> None:
        waits = asyncio.Event()

        async def receive() -> Message:
            waits.set()
            try:
                return await asyncio.Future()
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)

        async def send(_message: Message) -> None:
            pass

        application, service = reflection_services()[0]
        app = application(
            service,
            interceptors=[ShutdownInterceptor(asyncio.Event())],
            codecs=[proto_binary_codec()],
            read_max_bytes=1_000,
        )
        call = asyncio.ensure_future(app(scope, receive, send))
        await waits.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(test())
