"""The contract, told by the server itself: grpcurl and the like need no proto file."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from connectrpc.codec import Codec
from connectrpc.interceptor import Interceptor
from connectrpc.server import ConnectASGIApplication
from connectrpc_grpcreflect import (
    ServerReflectionAlphaASGIApplication,
    ServerReflectionAlphaService,
    ServerReflectionASGIApplication,
    ServerReflectionService,
)

from server.gen.grpc_health.v1 import health_pb
from server.gen.listings.v1 import orders_pb
from server.rpc.interceptors.base import Context, Request, Response, StreamNext

_DESCRIBED = (orders_pb.desc(), health_pb.desc())  # their imports, and reflection, come along


def reflection(
    stopping: asyncio.Event,
    interceptors: Sequence[Interceptor],
    codecs: Sequence[Codec[Any, Any]],
    read_max_bytes: int,
) -> tuple[ConnectASGIApplication[Any], ConnectASGIApplication[Any]]:
    """Return ``grpc.reflection`` v1 and v1alpha, whose streams end when ``stopping`` is set.

    ``interceptors`` stand before them.
    """
    every = [*interceptors, _EndWithServer(stopping)]
    return (
        ServerReflectionASGIApplication(
            ServerReflectionService(*_DESCRIBED),
            interceptors=every,
            codecs=codecs,
            read_max_bytes=read_max_bytes,
        ),
        ServerReflectionAlphaASGIApplication(
            ServerReflectionAlphaService(*_DESCRIBED),
            interceptors=every,
            codecs=codecs,
            read_max_bytes=read_max_bytes,
        ),
    )


class _EndWithServer:
    """Ends streams that wait for their client's next question when the server stops."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    async def intercept_bidi_stream(
        self,
        call_next: StreamNext[AsyncIterator[Request], Response],
        request: AsyncIterator[Request],
        ctx: Context,
    ) -> AsyncIterator[Response]:
        """Hand the stream on, without what would come after the stop."""
        async with (
            aclosing(self._until_stop(request)) as questions,
            aclosing(call_next(questions, ctx)) as answers,
        ):
            async for answer in answers:
                yield answer

    async def _until_stop(self, questions: AsyncIterator[Request]) -> AsyncGenerator[Request]:
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                next_question = asyncio.ensure_future(anext(questions, None))
                next_question.add_done_callback(_take_note)
                try:
                    await asyncio.wait({stop, next_question}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not next_question.done():
                        next_question.cancel()
                        # Until it has let go of them, nobody can close the questions.
                        await asyncio.wait({next_question})
                if next_question.cancelled():
                    return
                question = next_question.result()
                if question is None:
                    return
                yield question
        finally:
            stop.cancel()


def _take_note(question: asyncio.Task[Any]) -> None:
    """Look at what is wrong with a question, if anything is: whoever asked may be gone by now.

    asyncio logs errors that nobody has looked at.
    """
    if not question.cancelled():
        question.exception()
