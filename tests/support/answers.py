"""Status codes of responses, over any protocol and version of HTTP."""

import asyncio
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Final

import hpack

from tests.support import grpc_web_text
from tests.support.codes import GRPC_CODES, OK
from tests.support.http2 import CONTINUATION, DATA, END_HEADERS, HEADERS, Frame, Peer

OPEN: Final = "still open"
"""The code of a stream that has not ended while the client waited."""


@dataclass
class Answer:
    """A response, as far as it has been received."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.headers[":status"])

    @property
    def code(self) -> str:
        """The code: OK, or an error as Connect spells it.

        If the response has only an HTTP status, it is returned as in "http 404". Fails for a
        response of gRPC without a message that is not Trailers-Only.
        """
        kind = self.headers.get("content-type", "")
        if kind.startswith("application/grpc"):
            is_web = kind.startswith("application/grpc-web")
            assert is_web or self.body or not self.trailers, "an error is not Trailers-Only"
            return _grpc_code(self.headers | self.trailers | self._last_trailers())
        if kind.startswith("application/connect+"):
            return self._connect_end()
        if self.status == 200:
            return OK
        try:
            return str(json.loads(self.body)["code"])
        except (ValueError, KeyError, TypeError):
            return f"http {self.status}"

    def _last_trailers(self) -> dict[str, str]:
        """Return the trailers in the body of a gRPC-Web response."""
        for flags, payload in self._envelopes():
            if flags & 0x80:
                lines = payload.decode().splitlines()
                return dict(line.lower().split(": ", 1) for line in lines)
        return {}

    def _connect_end(self) -> str:
        for flags, payload in self._envelopes():
            if flags & 0x02:
                error = json.loads(payload).get("error")
                return str(error["code"]) if error else OK
        return OPEN

    def _envelopes(self) -> Iterator[tuple[int, bytes]]:
        left = self.body
        if self.headers["content-type"].startswith(grpc_web_text.CONTENT_TYPE):
            left = grpc_web_text.decoded(left)
        while len(left) >= 5:
            end = 5 + int.from_bytes(left[1:5])
            flags, payload = left[0], left[5:end]
            yield flags, gzip.decompress(payload) if flags & 1 else payload
            left = left[end:]


def _grpc_code(trailers: Mapping[str, str]) -> str:
    status = trailers.get("grpc-status")
    if status is None:
        return OPEN
    return OK if status == "0" else GRPC_CODES[int(status)]


def http1(received: bytes) -> Iterator[Answer]:
    """Yield the responses in the bytes received over an HTTP/1.1 connection."""
    stream = _Received(received)
    while True:
        response = HTTPResponse(stream)  # type: ignore[arg-type]
        try:
            response.begin()
        except HTTPException:  # the header section is incomplete
            return
        headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            body = response.read()
        except IncompleteRead as error:
            body = error.partial
        yield Answer({":status": str(response.status)} | headers, body)


class _Received(io.BytesIO):
    """The socket that HTTPResponse needs, on the received bytes."""

    def makefile(self, _mode: str) -> "_Received":
        return self

    def close(self) -> None:
        """Do nothing: more responses may follow."""


class Client(Peer):
    """An HTTP/2 client that records what it receives, and sends nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        """By stream id."""
        self._decoder = hpack.Decoder()
        self._block = b""

    @property
    def over(self) -> set[int]:
        """The streams that have ended."""
        return self.answered | self.resets.keys()

    async def waits(self, seconds: float, condition: Callable[[], bool]) -> bool:
        """Wait up to ``seconds`` for ``condition``. Return False if the connection ends first."""
        try:
            async with asyncio.timeout(seconds):
                await self.until(condition)
        except TimeoutError:
            return True
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        return True

    def take(self, frame: Frame) -> None:
        """Process a frame."""
        super().take(frame)
        if frame.kind == DATA:
            self.answers[frame.stream_id].body += frame.payload
        elif frame.kind in (HEADERS, CONTINUATION):
            self._block += frame.payload
            if frame.flags & END_HEADERS:
                answer = self.answers[frame.stream_id]
                decoded = self._decoder.decode(self._block, raw=True)
                headers = {name.decode(): value.decode() for name, value in decoded}
                self._block = b""
                (answer.trailers if answer.headers else answer.headers).update(headers)


class Recorder(Client):
    """A client that also keeps the frames of each stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.frames: defaultdict[int, list[Frame]] = defaultdict(list)
        """By stream id."""

    def take(self, frame: Frame) -> None:
        """Process a frame."""
        super().take(frame)
        self.frames[frame.stream_id].append(frame)

    def kinds(self, stream_id: int) -> list[int]:
        """Return the types of the frames of a stream."""
        return [frame.kind for frame in self.frames[stream_id]]
