"""Responses to gRPC requests: one HEADERS frame without a message, and unchanged with one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.http import Limits, Server
from tests.support import http2
from tests.support.answers import Recorder
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_WINDOW,
    RST_STREAM,
    literals,
    run,
    until,
)

Part: TypeAlias = dict[str, Any]
Respond: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, None]]

GRPC: Final = (b"application/grpc", b"application/grpc+proto", b"application/grpc;v=1")
OTHERS: Final = (b"application/grpc-web", b"application/grpc-web+proto", b"application/json", b"")
HEAD: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
STATUS: Final = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"14")]}


def body(content: bytes, *, more: bool = True) -> Part:
    return {"type": "http.response.body", "body": content, "more_body": more}


@dataclass(frozen=True)
class Script:
    """A request, and what the application sends."""

    content_type: bytes
    verb: bytes
    chunks: tuple[bytes, ...]
    trailers: tuple[bytes, ...] | None
    """Their names, one to a message; None where the application announces none."""

    @property
    def content(self) -> bytes:
        return b"" if self.verb == b"HEAD" else b"".join(self.chunks)

    def parts(self) -> list[Part]:
        last = len(self.chunks) - 1
        parts = [HEAD | {"trailers": self.trailers is not None}]
        parts += [body(chunk, more=n < last) for n, chunk in enumerate(self.chunks)]
        names = self.trailers or ()
        return parts + [
            {
                "type": "http.response.trailers",
                "headers": [(name, b"t")],
                "more_trailers": n < len(names) - 1,
            }
            for n, name in enumerate(names)
        ]


def ask(client: Recorder, stream_id: int, content_type: bytes, verb: bytes = b"POST") -> None:
    block = literals(
        *((b":method", verb), (b":scheme", b"http"), (b":path", b"/%d" % stream_id)),
        *((b":authority", b"test"), (b"te", b"trailers")),
        *([(b"content-type", content_type)] if content_type else []),
    )
    client.send(HEADERS, END_HEADERS | END_STREAM, stream_id, block)


@asynccontextmanager
async def answering(respond: Respond, settings: bytes = b"") -> AsyncIterator[Recorder]:
    """Yield a client of a server whose application sends what ``respond`` sends."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await respond(scope, send)

    server = Server(app, limits=Limits(max_unsent=2**16), drain_timeout=1)
    async with http2.running(server) as port:
        served = http2.Served(http2.Calls(), port, server, [])
        async with Recorder.connected(served, settings) as client:
            yield client


scripts = st.builds(
    Script,
    st.sampled_from(GRPC + OTHERS),
    st.sampled_from([b"POST", b"POST", b"POST", b"HEAD"]),
    st.lists(st.binary(max_size=3), min_size=1, max_size=4).map(tuple),
    st.none()
    | st.lists(st.sampled_from([b"grpc-status", b"x"]), min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(scripts, min_size=1, max_size=60))
def test_only_responses_of_grpc_without_content_change(given_scripts: list[Script]) -> None:
    by_stream = {2 * number + 1: script for number, script in enumerate(given_scripts)}

    async def respond(scope: Any, send: Any) -> None:
        for part in by_stream[int(scope["path"][1:])].parts():
            await send(part)

    async def test() -> None:
        async with answering(respond) as client:
            for stream_id, script in by_stream.items():
                ask(client, stream_id, script.content_type, script.verb)
            await client.until(lambda: client.answered >= by_stream.keys())
            for stream_id, script in by_stream.items():
                check(client, stream_id, script)

    run(test())


def check(client: Recorder, stream_id: int, script: Script) -> None:
    answer, frames = client.answers[stream_id], client.frames[stream_id]
    trailers = dict.fromkeys((name.decode() for name in script.trailers or ()), "t")
    assert answer.body == script.content
    assert answer.headers[":status"] == "200"
    assert [bool(frame.flags & END_STREAM) for frame in frames][:-1] == [False] * (len(frames) - 1)
    if script.content_type in GRPC and not script.content:
        assert client.kinds(stream_id) == [HEADERS]
        assert trailers.items() <= answer.headers.items()
    else:
        assert client.kinds(stream_id).count(HEADERS) == (2 if trailers else 1)
        assert answer.trailers == trailers
        assert not trailers.keys() & answer.headers.keys()


def parts_of(parts: Sequence[Part], then: Callable[[], Coroutine[Any, Any, object]]) -> Respond:
    async def respond(_scope: Any, send: Any) -> None:
        for part in parts:
            await send(part)
        await then()

    return respond


def test_the_head_comes_with_the_first_content_of_a_stream_that_goes_on() -> None:
    """The stream waits after its first message; what is empty is no content."""

    async def test() -> None:
        release = asyncio.Event()
        parts = [HEAD, body(b""), body(b"first")]
        async with answering(parts_of(parts, release.wait)) as client:
            ask(client, 1, b"application/grpc")
            await client.until(lambda: client.answers[1].body)
            assert client.kinds(1) == [HEADERS, DATA]
            assert client.answers[1].body == b"first"
            assert 1 not in client.answered
            release.set()

    run(test())


def test_a_stream_of_grpc_waits_for_its_client() -> None:
    """It keeps the limit of unsent bytes, as others do."""

    async def test() -> None:
        sent: list[int] = []

        async def respond(_scope: Any, send: Any) -> None:
            await send(HEAD)
            for number in range(64):
                await send(body(bytes(2**14)))
                sent.append(number)

        async with answering(respond, NO_WINDOW) as client:
            ask(client, 1, b"application/grpc")
            await client.until(lambda: client.kinds(1) == [HEADERS])
            await until(lambda: len(sent) == 4)
            client.send(http2.PING, payload=bytes(8))
            await client.until(lambda: client.kinds(0)[-1:] == [http2.PING])
            assert len(sent) == 4, "the application waits"
            client.reset(1)

    run(test())


@pytest.mark.parametrize("parts", [[HEAD], [HEAD, body(b"")], [HEAD, body(b"", more=False)]])
def test_a_response_that_does_not_end_has_no_head(
    parts: list[Part], caplog: pytest.LogCaptureFixture
) -> None:
    """The application fails, or forgets the trailers: its stream is reset."""

    async def forget() -> None: ...

    async def test() -> None:
        async with answering(parts_of(parts, forget)) as client:
            ask(client, 1, b"application/grpc")
            await client.until(lambda: 1 in client.resets)
            assert client.kinds(1) == [RST_STREAM]

    run(test())
    assert "without completing response" in caplog.text


def test_a_client_that_goes_away_while_the_head_is_held() -> None:
    async def test() -> None:
        release, over = asyncio.Event(), asyncio.Event()

        async def respond(scope: Any, send: Any) -> None:
            await send(HEAD)
            if scope["path"] == "/1":
                await release.wait()
            await send(body(b"", more=False))
            await send(STATUS)
            over.set()

        async with answering(respond) as client:
            ask(client, 1, b"application/grpc")
            client.reset(1)
            ask(client, 3, b"application/grpc")
            await client.until(lambda: 3 in client.answered)
            over.clear()
            release.set()
            await over.wait()
            ask(client, 5, b"application/grpc")
            await client.until(lambda: 5 in client.answered)
            assert client.kinds(1) == []

    run(test())
